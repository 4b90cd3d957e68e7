import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models

CYCLES = [  # options, receptive field
    ({'dilations': (1, 2, 4), 'stacks': 1}, 8),
    ({'dilations': (1, 2, 4), 'stacks': 3}, 22),
    ({'dilations': (1, 2, 4), 'stacks': 3, 'initial_kernel': 2}, 23),
    ({'dilations': (1, 3), 'stacks': 2, 'kernel_size': 3}, 17),
]
cycles = pytest.mark.parametrize(('options', 'receptive_field'), CYCLES, ids=lambda value: str(value))


@pytest.fixture
def example(random_variables):
    """A function of the shape of a signal and of options: a network, its variables and normal inputs."""

    def make(shape, dtype='float32', condition=None, **options):
        fields = {'num_outputs': 5, 'levels': 6, 'channels': 4, 'skip_channels': 8} | options
        model = models.build('wavenet', dtype=dtype, param_dtype=dtype, **fields)
        x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        return model, random_variables(model, x, condition=condition), x

    return make


def tokens(*shape):
    return np.random.default_rng(1).integers(-1, 6, shape, 'int32')


def one_step_at_a_time(model, variables, x, condition):
    """Outputs [N, T, num_outputs] by the method `decode`."""
    length = x.shape[1]
    local = (
        None
        if condition is None
        else jnp.broadcast_to(
            condition if condition.ndim == 3 else condition[:, None], (len(x), length, condition.shape[-1])
        )
    )

    def step(cache, t):
        now = None if local is None else local[:, t]
        y, state = model.apply(
            {**variables, 'cache': cache}, jnp.asarray(x)[:, t], method='decode', condition=now, mutable=['cache']
        )
        return state['cache'], y

    first = None if local is None else local[:, 0]
    init = jax.eval_shape(lambda: model.init(jax.random.key(0), x[:, 0], method='decode', condition=first))
    assert jax.tree.map(jnp.shape, init['params']) == jax.tree.map(jnp.shape, variables['params'])
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), init['cache'])
    _, outputs = jax.jit(lambda cache: jax.lax.scan(step, cache, jnp.arange(length)))(cache)
    return outputs.swapaxes(0, 1)


@pytest.mark.parametrize(
    ('options', 'receptive_field'),
    [({'stacks': 1}, 1024), ({'stacks': 3}, 3070), ({'stacks': 3, 'initial_kernel': 2}, 3071), *CYCLES],
)
def test_receptive_field_by_formula(options, receptive_field):
    assert models.build('wavenet', num_outputs=256, **options).receptive_field == receptive_field


@cycles
def test_receptive_field_by_gradient(example, options, receptive_field):
    """The last output depends on the last `receptive_field` inputs and on no other."""
    model, variables, x = example((1, receptive_field + 5, 3), **options)
    gradient = jax.jit(jax.grad(lambda x: model.apply(variables, x, train=False)[0, -1].sum()))(x)
    reached = np.abs(gradient[0]).max(-1) > 0
    np.testing.assert_array_equal(reached, [False] * 5 + [True] * receptive_field)


@cycles
def test_the_future_changes_nothing(example, options, receptive_field):
    model, variables, _ = example((1, 30, 6), **options)
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    x = tokens(1, 30)
    y = apply(x)
    for t in (0, 11, 29):
        changed = x.copy()
        changed[:, t] = (x[:, t] + 2) % 6
        z = apply(changed)
        np.testing.assert_array_equal(z[:, :t], y[:, :t])
        assert not np.allclose(z[:, t], y[:, t])


def test_layers_are_as_in_figure_4(example):
    """Two layers, computed by hand."""
    model, variables, x = example((2, 7, 3), dilations=(1, 2), stacks=1, num_outputs=None)
    p = variables['params']
    h = x @ p['input']['kernel'][0] + p['input']['bias']
    expected = 0
    for layer, dilation in ((p['stack1_layer1'], 1), (p['stack1_layer2'], 2)):
        before = np.pad(h, ((0, 0), (dilation, 0), (0, 0)))[:, :-dilation]
        gates = before @ layer['gates']['kernel'][0] + h @ layer['gates']['kernel'][1] + layer['gates']['bias']
        y = np.tanh(gates[..., :4]) / (1 + np.exp(-gates[..., 4:]))
        expected += y @ layer['skip']['kernel'] + layer['skip']['bias']
        if dilation == 1:
            h = h + y @ layer['residual']['kernel'] + layer['residual']['bias']
    np.testing.assert_allclose(model.apply(variables, x, train=False), expected, atol=1e-5)
    assert 'residual' not in layer


def test_outputs_are_two_dense_layers_over_the_skip_connections(example):
    model, variables, x = example((2, 7, 3), dilations=(1, 2), stacks=2)
    maps = model.apply(variables, x, train=False, method='features')
    assert {name: (stride, array.shape) for name, (stride, array) in maps.items()} == {
        'stack1': (1, (2, 7, 4)),
        'skip': (1, (2, 7, 8)),
    }
    p = variables['params']
    hidden = np.maximum(np.maximum(maps['skip'][1], 0) @ p['hidden']['kernel'] + p['hidden']['bias'], 0)
    expected = hidden @ p['head']['kernel'] + p['head']['bias']
    np.testing.assert_allclose(model.apply(variables, x, train=False), expected, atol=1e-4)


def test_nothing_yet_is_a_token_of_zeros(example):
    model, variables, _ = example((1, 4, 6), dilations=(1,), stacks=1)
    x = np.array([[-1, 3, 0, 5]], 'int32')
    signal = np.eye(6, dtype='float32')[x] * (x >= 0)[..., None]
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    np.testing.assert_allclose(apply(x), apply(signal), atol=1e-6)


@pytest.mark.parametrize(
    'options', [{'stacks': 1}, {'stacks': 3}, {'stacks': 2, 'kernel_size': 3, 'initial_kernel': 2}]
)
@pytest.mark.parametrize('conditioning', ['none', 'global', 'local'])
def test_decoding_step_by_step_equals_the_whole_sequence(example, options, conditioning):
    """Over more steps than any ring buffer holds. Measured: at most 2e-6."""
    generator = np.random.default_rng(2)
    shapes = {'none': None, 'global': (2, 3), 'local': (2, 24, 3)}
    shape = shapes[conditioning]
    condition = None if shape is None else generator.standard_normal(shape, 'float32')
    model, variables, _ = example((2, 24, 6), condition=condition, dilations=(1, 2, 4), **options)
    x = tokens(2, 24)
    whole = jax.jit(lambda x: model.apply(variables, x, train=False, condition=condition))(x)
    steps = one_step_at_a_time(model, variables, x, condition)
    np.testing.assert_allclose(steps, whole, atol=1e-5, rtol=1e-5)
    if condition is not None:
        other = model.apply(variables, x, train=False, condition=condition + 1)
        assert not np.allclose(other, whole, atol=1e-2)


def test_decoding_equals_the_whole_sequence_in_float64(example):
    with jax.enable_x64(True):
        model, variables, x = example((2, 24, 3), dtype='float64', dilations=(1, 2, 4), stacks=2, kernel_size=3)
        whole = model.apply(variables, x, train=False)
        steps = one_step_at_a_time(model, variables, x, None)
        assert whole.dtype == steps.dtype == jnp.float64
        np.testing.assert_allclose(steps, whole, atol=1e-13)


def test_a_missing_cache_starts_a_sequence(example):
    model, variables, _ = example((2, 5, 6), dilations=(1, 2), stacks=1)
    x = tokens(2, 5)
    whole = model.apply(variables, x, train=False)
    first, state = model.apply(variables, x[:, 0], method='decode', mutable=['cache'])
    second, state = model.apply({**variables, **state}, x[:, 1:2], method='decode', mutable=['cache'])
    np.testing.assert_allclose(jnp.stack([first, second], 1), whole[:, :2], atol=1e-5)
    assert state['cache']['position'] == 2


def test_condition_adds_parameters_only_where_it_is_given(example):
    _, plain, _ = example((1, 4, 6), dilations=(1,), stacks=1)
    _, conditioned, _ = example((1, 4, 6), dilations=(1,), stacks=1, condition=np.zeros((1, 3), 'float32'))
    assert 'condition' not in plain['params']['stack1_layer1']
    assert conditioned['params']['stack1_layer1']['condition']['kernel'].shape == (3, 8)


def test_init_by_decode_gives_an_empty_cache():
    model = models.build('wavenet', num_outputs=5, levels=6, dilations=(1,), stacks=1, channels=4, skip_channels=4)
    variables = model.init(jax.random.key(0), jnp.array([3]), method='decode')
    assert variables['cache']['position'] == 0
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(variables['cache']))
