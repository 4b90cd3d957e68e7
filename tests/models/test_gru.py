import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError
from cnn.inspection.describe import describe
from tests.models.references import formula

PYTORCH = pathlib.Path(__file__).parent / 'references' / 'gru' / 'gru.json'  # made by make_gru.py there
X = np.random.default_rng(0).standard_normal((2, 4, 3, 2), 'float32')


def cell(weights, suffix):
    """Our parameters of PyTorch's layer of that name, whose two biases are one wherever they are added."""
    to, of = (np.split(weights[f'weight_{kind}_{suffix}'].T, 3, axis=1) for kind in ('ih', 'hh'))
    to_bias, of_bias = (np.split(weights[f'bias_{kind}_{suffix}'], 3) for kind in ('ih', 'hh'))
    gates = {f'i{gate}': {'kernel': to[at], 'bias': to_bias[at] + of_bias[at]} for at, gate in enumerate('rz')}
    states = {f'h{gate}': {'kernel': of[at]} for at, gate in enumerate('rz')}
    candidate = {
        'in': {'kernel': to[2], 'bias': to_bias[2]},
        'hn': {'kernel': of[2], 'bias': of_bias[2]},
    }
    return {'cell': gates | states | candidate}


@pytest.mark.parametrize(
    'network', json.loads(PYTORCH.read_text())['networks'], ids=lambda entry: str(entry['options'])
)
def test_states_and_gradients_are_those_of_pytorch(network):
    weights = {name: formula.weight(name, tuple(shape)).astype('float64') for name, shape in network['shapes'].items()}
    suffixes = sorted(name.removeprefix('bias_ih_') for name in weights if name.startswith('bias_ih'))  # l0, l0_reverse
    params = {f'layer{int(name[1]) + 1}{name[2:]}': cell(weights, name) for name in suffixes}
    count, length, channels = network['sequence']
    options = network['options']
    last = f'layer{options["depth"]}'

    def states(x):
        rows = x.reshape(count, length, channels, 1)
        _, states = model.apply({'params': params}, rows, train=False, method='features')[last]
        return states.reshape(count, length, -1)

    with jax.enable_x64(True):
        model = models.build('gru', num_outputs=None, dtype='float64', param_dtype='float64', **options)
        x = jnp.asarray(formula.uniform('input', (count, length, channels)), 'float64')
        y, pull_back = jax.vjp(jax.jit(states), x)
        (gradient,) = pull_back(jnp.asarray(formula.uniform('cotangent', y.shape), 'float64'))
    assert formula.distance(y, network['states']) < 1e-12
    assert formula.distance(gradient, network['gradient']) < 1e-12


@pytest.mark.parametrize('options', [{}, {'bidirectional': True, 'depth': 2}], ids=str)
@pytest.mark.parametrize('reads', ['rows', 'pixels'])
def test_parameters_are_three_kernels_of_input_and_state_and_four_biases(reads, options):
    model = models.build('gru', num_outputs=5, width=6, reads=reads, **options)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), X)
    directions, depth = 1 + options.get('bidirectional', False), options.get('depth', 1)
    inputs = [3 * 2 if reads == 'rows' else 2] + [directions * 6] * (depth - 1)
    cells = sum(directions * (3 * 6 * (length + 6) + 4 * 6) for length in inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == cells + (directions * 6 + 1) * 5


@pytest.mark.parametrize(('reads', 'steps', 'channels'), [('rows', 4, 6), ('pixels', 12, 2)])
def test_each_step_costs_three_products_of_input_and_state(reads, steps, channels):
    model = models.build('gru', num_outputs=5, width=6, reads=reads)
    figures = describe(model, jax.ShapeDtypeStruct((1, *X.shape[1:]), 'float32'), train=False)
    assert figures['multiply_adds'] == steps * 3 * (channels + 6) * 6 + 6 * 5
    assert figures['activation_multiply_adds'] == figures['other_multiply_adds'] == 0
    assert figures['layers'][-1]['receptive_field'] == ([4, None] if reads == 'rows' else [4, 3])  # the head sees all


def test_pixels_are_read_row_by_row(random_variables):
    model = models.build('gru', num_outputs=None, width=6, reads='pixels')
    variables = random_variables(model, X)
    rows = models.build('gru', num_outputs=None, width=6)
    np.testing.assert_array_equal(
        model.apply(variables, X, train=False), rows.apply(variables, X.reshape(2, 12, 1, 2), train=False)
    )


@pytest.mark.parametrize(('reads', 'grid'), [('rows', (4, 1)), ('pixels', (4, 3))])
def test_maps_have_a_position_for_each_element(random_variables, reads, grid):
    model = models.build('gru', num_outputs=5, width=6, depth=2, reads=reads, bidirectional=True)
    maps = model.apply(random_variables(model, X), X, train=False, method='features')
    shape = (2, *grid, 12)
    assert {name: (stride, states.shape) for name, (stride, states) in maps.items()} == {
        'layer1': (1, shape),
        'layer2': (1, shape),
    }


def test_the_last_state_of_each_direction_or_the_mean_of_all_is_the_summary(random_variables):
    model = models.build('gru', num_outputs=None, width=6, bidirectional=True)
    variables = random_variables(model, X)
    (_, states) = model.apply(variables, X, train=False, method='features')['layer1']
    ends = np.concatenate([states[:, -1, 0, :6], states[:, 0, 0, 6:]], axis=1)
    np.testing.assert_array_equal(model.apply(variables, X, train=False), ends)
    mean = models.build('gru', num_outputs=None, width=6, bidirectional=True, summary='mean')
    np.testing.assert_allclose(mean.apply(variables, X, train=False), states.mean((1, 2)), rtol=1e-5)


def test_a_state_knows_what_was_read_before_it_and_nothing_else(random_variables):
    model = models.build('gru', num_outputs=None, width=6, bidirectional=True)
    variables = random_variables(model, X)
    changed = X.copy()
    changed[:, 2] += 1
    states, others = (
        model.apply(variables, x, train=False, method='features')['layer1'][1][:, :, 0] for x in (X, changed)
    )
    moved = np.abs(states - others).max(0) > 1e-4  # [T, 2 width]
    np.testing.assert_array_equal(moved[:, :6].all(1), [False, False, True, True])
    np.testing.assert_array_equal(moved[:, 6:].all(1), [True, True, True, False])
    np.testing.assert_array_equal(moved.all(1), [False, False, True, False])


def test_dropout_is_of_training_only(random_variables):
    model = models.build('gru', num_outputs=3, width=6, dropout=0.5)
    variables = random_variables(model, X)
    y = model.apply(variables, X, train=False)
    dropped = model.apply(variables, X, train=True, rngs={'dropout': jax.random.key(0)})
    assert not np.allclose(y, dropped, atol=1e-3)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'reads': 'row'}, "unknown reads of gru 'row'; did you mean 'rows'"),
        ({'summary': 'lest'}, "unknown summary of gru 'lest'; did you mean 'last'"),
        ({'depth': 0}, 'gru: depth=0: it needs a layer at least'),
    ],
)
def test_errors_are_one_line_that_names_the_input(options, message):
    model = models.build('gru', num_outputs=5, **options)
    with pytest.raises(InputError) as error:
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), X)
    assert message in str(error.value)
    assert '\n' not in str(error.value)
