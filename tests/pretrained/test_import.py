import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cnn import models, pretrained
from cnn.errors import InputError
from cnn.pretrained import Naming, files
from tests.models.references import formula

SMALL = {'depths': (1, 1), 'width': 8}
NAMING = pretrained.namings('resnet/18')['torchvision']


def network(name='resnet/18', num_outputs=10, **options):
    model = models.build(name, num_outputs=num_outputs, **(SMALL | options))
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


def formula_weights(variables, naming=NAMING):
    shapes = pretrained.abstract_export(variables, naming)
    return {key: formula.weight(key, shape, naming.outputs) for key, shape in shapes.items()}


def zeros(variables):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)


def refusal(theirs, variables, model='resnet/18', **arguments):
    with pytest.raises(InputError) as caught:
        pretrained.import_weights(theirs, variables, model, **arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize('name', ['torchvision', 'timm_deep', 'ours'])
def test_an_export_is_imported_again_under_its_naming(name):
    _, variables = network(stem='deep', shortcut='average')
    ours = jax.tree.map(lambda leaf: formula.uniform(str(leaf.shape), leaf.shape), variables)
    theirs = pretrained.export(ours, pretrained.namings('resnet/18')[name])
    imported = pretrained.import_weights(theirs, zeros(variables), 'resnet/18')
    assert imported[1:] == (name, (), (), None, False, '')
    jax.tree.map(np.testing.assert_array_equal, imported.variables, ours)


@pytest.mark.parametrize('dtype', [np.float16, np.float64, ml_dtypes.bfloat16])
def test_values_take_the_type_of_the_networks_variables(dtype):
    _, variables = network()
    theirs = {name: array.astype(dtype) for name, array in formula_weights(variables).items()}
    imported = pretrained.import_weights(theirs, variables, 'resnet/18').variables
    assert {leaf.dtype for leaf in jax.tree.leaves(imported)} == {np.dtype('float32')}
    kernel = imported['params']['head']['kernel']
    np.testing.assert_array_equal(kernel, theirs['fc.weight'].astype('float32').T)
    half = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.bfloat16), variables)
    imported = pretrained.import_weights(theirs, half, 'resnet/18').variables
    assert {leaf.dtype for leaf in jax.tree.leaves(imported)} == {jnp.dtype('bfloat16')}


def test_the_head_is_left_as_it_was_where_the_classes_differ():
    theirs = formula_weights(network(num_outputs=1000)[1])
    _, variables = network()
    before = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), variables)
    imported = pretrained.import_weights(theirs, before, 'resnet/18')
    assert sorted(imported.replaced) == ['fc.bias', 'fc.weight']
    assert imported.classes == (1000, 10)
    assert 'the head is new: 10 classes here, 1000 there' in imported.note
    jax.tree.map(
        lambda new, old: np.testing.assert_array_equal(new, old),
        imported.variables['params'].pop('head'),
        before['params']['head'],
    )
    assert not any((leaf == 7).any() for leaf in jax.tree.leaves(imported.variables))


def test_a_head_of_other_inputs_does_not_fit():
    _, variables = network()
    theirs = formula_weights(variables) | {'fc.weight': np.ones((1000, 17)), 'fc.bias': np.ones(1000)}
    assert 'in 1 place: fc.weight has shape (1000, 17), not (10, 16);' in refusal(theirs, variables)


def test_what_is_missing_beyond_or_of_another_shape_is_listed_and_may_be_allowed_by_name():
    _, variables = network()
    theirs = formula_weights(variables)
    del theirs['bn1.running_var']
    theirs |= {'aux.weight': np.ones(3), 'conv1.weight': np.ones((8, 4, 7, 7))}
    line = refusal(theirs, variables)
    assert line.startswith('weights for resnet/18 as torchvision names them do not fit in 3 places: ')
    assert 'bn1.running_var is missing; ' in line
    assert 'conv1.weight has shape (8, 4, 7, 7), not (8, 3, 7, 7); ' in line
    assert 'aux.weight is not in the network; --allow_partial=REGEX' in line
    assert 'in 1 place: aux.weight' in refusal(theirs, variables, allow_partial=['bn1.*', r'conv1\.weight', 'aux'])
    before = zeros(variables)
    imported = pretrained.import_weights(theirs, before, 'resnet/18', ['bn1.*', 'conv1.weight', 'aux.*'])
    assert sorted(imported.left) == ['aux.weight', 'bn1.running_var', 'conv1.weight']
    assert imported.note.endswith('left out: bn1.running_var, conv1.weight, aux.weight')
    assert not imported.variables['params']['stem_conv']['kernel'].any()
    assert imported.variables['params']['stem_norm']['scale'].all()


def test_long_lists_are_abridged_with_their_count():
    _, variables = network()
    theirs = {'conv1.weight': formula_weights(variables)['conv1.weight']}
    missing = len(jax.tree.leaves(variables)) - 1
    line = refusal(theirs, variables)
    assert f'do not fit in {missing} places: ' in line
    assert line.count('is missing') == 8
    assert f' and {missing - 8} more; --allow_partial' in line
    assert len(line) < 500


def test_weights_of_another_network_are_named_with_what_they_have():
    _, variables = network()
    line = refusal({'a': np.ones(1), 'b': np.ones(1), 'c': np.ones(1), 'd': np.ones(1)}, variables)
    assert line.startswith('these are no weights for resnet/18: none of their names is known, neither as torchvision')
    assert 'nor as ours has them; they have a, b, c and 1 more, not ' in line


def test_a_family_without_others_weights_has_its_own_names():
    model = models.build('simple_cnn', num_outputs=10, hidden=8)
    x = jax.ShapeDtypeStruct((1, 8, 8, 1), 'float32')
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    variables = jax.tree.map(lambda leaf: formula.uniform(str(leaf.shape), leaf.shape), variables)
    theirs = pretrained.export(variables, pretrained.namings('simple_cnn')['ours'])
    assert theirs['conv1/kernel'].shape == (3, 3, 1, 32)
    imported = pretrained.import_weights(theirs, zeros(variables), 'simple_cnn')
    jax.tree.map(np.testing.assert_array_equal, imported.variables, variables)
    # Other classes: the last axis, since these are our kernels.
    theirs |= {'head/kernel': np.ones((8, 3), np.float32), 'head/bias': np.ones(3, np.float32)}
    assert pretrained.import_weights(theirs, variables, 'simple_cnn').classes == (3, 10)


def test_older_names_are_renamed_and_names_that_are_there_twice_refused(monkeypatch):
    _, variables = network()
    renamed = NAMING._replace(older=((r'^stem\.', 'conv1.'),))
    monkeypatch.setattr(pretrained, 'namings', lambda model: {'torchvision': renamed})
    theirs = formula_weights(variables)
    kernel = theirs.pop('conv1.weight')
    older = theirs | {'stem.weight': kernel, 'bn1.num_batches_tracked': np.zeros(()), 'n_averaged': np.ones(())}
    imported = pretrained.import_weights(older, variables, 'resnet/18').variables
    np.testing.assert_array_equal(imported['params']['stem_conv']['kernel'], kernel.transpose(2, 3, 1, 0))
    both = older | {'conv1.weight': kernel}
    assert refusal(both, variables) == 'weights for resnet/18 have conv1.weight twice, once as conv1.weight'


def test_a_naming_that_gives_two_variables_one_name_is_an_error():
    _, variables = network()
    naming = Naming(((r'norm\d', 'norm'),))
    for function in (pretrained.abstract_export, lambda variables, naming: pretrained.export(zeros(variables), naming)):
        with pytest.raises(ValueError, match=r'are both named stage1_block0\.norm\.running_mean'):
            function(variables, naming)


@pytest.mark.parametrize(('naming', 'bias_of'), [('torchvision', 'conv'), ('ours', 'norm')])
def test_fused_batch_normalisation_becomes_the_identity_and_a_bias(naming, bias_of):
    """Kernels times f and biases b - m f, with f = s / sqrt(v + epsilon), compute what s, b, m and v did."""
    model, variables = network(block='basic')
    theirs = formula_weights(variables)
    whole = pretrained.import_weights(theirs, variables, 'resnet/18').variables
    fused = pretrained.export(whole, pretrained.OURS)
    epsilon = 1e-5
    for mean in [name for name in fused if name.endswith('/mean')]:
        norm = mean.removesuffix('/mean')
        conv = norm.replace('norm', 'conv')
        factor = fused.pop(f'{norm}/scale') / np.sqrt(fused.pop(f'{norm}/var') + epsilon)
        bias = fused.pop(f'{norm}/bias') - fused.pop(mean) * factor
        fused[f'{conv}/kernel'] = fused[f'{conv}/kernel'] * factor
        fused[f'{conv if bias_of == "conv" else norm}/bias'] = bias
    if naming == 'torchvision':
        fused = {
            NAMING.key(('', *name.split('/'))): NAMING.layout(name, array.shape).to_theirs(array)
            for name, array in fused.items()
        }
        assert {'conv1.bias', 'layer2.0.downsample.0.bias'} <= fused.keys()
    imported = pretrained.import_weights(fused, zeros(variables), 'resnet/18', epsilon=epsilon)
    assert (imported.naming, imported.fused) == (naming, True)
    assert 'batch normalisation is part of the convolutions there' in imported.note
    x = formula.uniform('input', (2, 32, 32, 3))
    outputs = jax.jit(functools.partial(model.apply, train=False))
    np.testing.assert_allclose(outputs(imported.variables, x), outputs(whole, x), rtol=1e-4, atol=1e-5)
    # At 1e-5 outputs do not show that the normalisation divides by sqrt(var + epsilon); a MobileNet's 1e-3 would.
    wide = pretrained.import_weights(fused, zeros(variables), 'resnet/18', epsilon=0.25).variables['batch_stats']
    np.testing.assert_array_equal(wide['stem_norm']['var'], 0.75)
    # A normalisation that is not there at all: not a fused file.
    del fused[next(name for name in fused if name.endswith('bias') and 'head' not in name and 'fc' not in name)]
    assert re.search('is missing; .* is missing', refusal(fused, variables))


def test_what_fused_weights_can_not_become_is_refused():
    _, variables = network(preactivation=True)
    theirs = formula_weights(variables)
    for name in [name for name in theirs if re.search(r'(norm|bn)\d?\.', name)]:
        del theirs[name]
    theirs |= {f'layer1.0.conv{index}.bias': np.ones(8) for index in (1, 2, 3)}
    assert 'is missing' in refusal(theirs, variables)
    # Nor does a network without normalisation and biases take weights with them.
    assert 'layer1.0.bn1.running_mean is not in the network' in refusal(
        formula_weights(network()[1]), network(norm='none')[1]
    )


def test_weights_are_saved_with_the_counts_that_pytorch_wants(tmp_path):
    _, variables = network()
    ours = jax.tree.map(lambda leaf: formula.uniform(str(leaf.shape), leaf.shape), variables)
    path = tmp_path / 'x.safetensors'
    assert pretrained.save(path, ours, 'resnet/18') == 'torchvision'
    theirs = files.read(str(path))
    counts = [name for name in theirs if name.endswith('.num_batches_tracked')]
    assert len(counts) == len([name for name in theirs if name.endswith('.running_var')]) > 3
    assert all(theirs[name].dtype == np.int64 and theirs[name].shape == () for name in counts)
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.import_weights(theirs, variables, 'resnet/18').variables, ours
    )
    assert pretrained.save(path, ours, 'resnet/18', 'ours') == 'ours'
    assert 'stem_conv/kernel' in files.read(str(path))
    with pytest.raises(InputError, match="unknown naming of model resnet/18 'torchvison'; did you mean 'torchvision'"):
        pretrained.save(path, ours, 'resnet/18', 'torchvison')


REFERENCES = {
    name: entry['naming']
    for file in sorted((pathlib.Path(formula.__file__).parent).glob('*.json'))
    for name, entry in json.loads(file.read_text()).items()
    if name in models.names()
}
SAVED = REFERENCES | dict.fromkeys(('vit/s_16', 'vit/ti_16'), 'torchvision')  # whose class takes all sizes


@pytest.mark.parametrize('name', REFERENCES)
def test_weights_are_saved_with_the_names_that_their_reference_has(name, tmp_path):
    assert pretrained.save(tmp_path / 'x.safetensors', {'params': {}}, name) == SAVED[name]
    assert re.fullmatch(pretrained.namings(name)[REFERENCES[name]].variants, name.partition('/')[2])


def test_our_resnet_50_is_torchvisions(tmp_path):
    make = pytest.importorskip('tests.models.references.make', exc_type=ImportError)
    torch = make.torch
    from safetensors.torch import load_file

    model, variables = network('resnet/50', num_outputs=1000, depths=(3, 4, 6, 3), width=64)
    ours = pretrained.import_weights(formula_weights(variables), variables, 'resnet/50').variables
    pretrained.save(tmp_path / 'x.safetensors', ours, 'resnet/50')
    theirs = make.torchvision.models.resnet50(weights=None).eval()
    theirs.load_state_dict(load_file(tmp_path / 'x.safetensors'), strict=True)
    x = formula.uniform('input', (2, 64, 64, 3))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    apply = jax.jit(functools.partial(model.apply, train=False), compiler_options={'xla_backend_optimization_level': 1})
    np.testing.assert_allclose(apply(ours, x), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
