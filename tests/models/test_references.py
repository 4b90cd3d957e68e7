"""Networks against those of others: the same weights and inputs give the same outputs and gradients.

The fixtures in references/ were made by references/make.py from PyTorch's, torchvision's, timm's and Keras's networks
in float64. Weights come from a formula by the others' names and shapes, and into our networks through cnn/pretrained,
whose rules are tested so too. One network of each family is checked by default, the smallest; the others are slow.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models, pretrained
from tests.models.references import formula

ENTRIES = {
    name: entry
    for file in sorted((pathlib.Path(__file__).parent / 'references').glob('*.json'))
    for name, entry in json.loads(file.read_text()).items()
}


def cases():
    families = {}
    for name, entry in ENTRIES.items():
        families.setdefault((name.partition('/')[0].partition(' ')[0], entry['train']), []).append(name)
    default = {min(names, key=lambda name: ENTRIES[name]['parameters']) for names in families.values()}
    default.remove('densenet/121 train')  # half a minute, for statistics that other families' networks have too
    return [pytest.param(name, marks=[] if name in default else pytest.mark.slow) for name in ENTRIES]


def network(name):
    """Ours, its abstract variables, and the naming of theirs."""
    entry = ENTRIES[name]
    model = models.build(name.partition(' ')[0], num_outputs=entry['num_outputs'], **entry['options'])
    x = jax.ShapeDtypeStruct(entry['shape'], 'float32')
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    return model, variables, pretrained.namings(name.partition(' ')[0])[entry['naming']]


@pytest.mark.parametrize('name', ENTRIES)
def test_names_and_shapes_are_theirs(name):
    _, variables, naming = network(name)
    theirs = pretrained.abstract_export(variables, naming)
    assert formula.fingerprint(theirs) == ENTRIES[name]['names'], theirs
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == ENTRIES[name]['parameters']


@pytest.mark.parametrize('name', cases())
def test_outputs_and_gradients_are_theirs(name):
    """Outputs in float32; gradients in float64, since in float32 a ReLU near zero may open in one of two networks."""
    entry = ENTRIES[name]
    model, variables, naming = network(name)
    theirs = pretrained.abstract_export(variables, naming)
    weights = {key: formula.weight(key, shape, naming.outputs) for key, shape in theirs.items()}
    imported = pretrained.import_weights(weights, variables, name.partition(' ')[0])
    assert (imported.naming, imported.replaced, imported.left) == (entry['naming'], (), ())
    collections = [collection for collection in variables if collection != 'params']
    x = formula.uniform('input', entry['shape'])

    def outputs(model, variables, x):
        return model.apply(variables, x, train=entry['train'], mutable=collections)

    def gradient(variables, x):
        double = model.clone(dtype=jnp.float64, param_dtype=jnp.float64)
        cotangent = formula.uniform('cotangent', (len(x), entry['num_outputs']))
        return jax.grad(lambda x: (outputs(double, variables, x)[0] * cotangent).sum())(x)

    y, state = jitted(functools.partial(outputs, model))(imported.variables, x)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, (imported.variables, x))
        dx = jitted(gradient)(*wide)
    assert formula.distance(y, entry['outputs']) < 1e-4
    assert formula.distance(dx, entry['gradient']) < 1e-9

    statistics = pretrained.export(state, naming)
    for layer, kept in entry['statistics'].items():
        mean, variance = f'{layer}.running_mean', f'{layer}.running_var'
        # PyTorch's running variance moves towards the unbiased variance of the batch, ours towards the biased one.
        moved = statistics[variance] - 0.9 * weights[variance]
        unbiased = 0.9 * weights[variance] + moved * kept['positions'] / (kept['positions'] - 1)
        assert formula.distance(statistics[mean], kept['mean']) < 1e-4
        assert formula.distance(unbiased, kept['variance']) < 1e-4


def jitted(function):
    """Compiled in a third of the time, since it runs once."""
    return jax.jit(function, compiler_options={'xla_backend_optimization_level': 1})
