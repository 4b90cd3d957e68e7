import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import config, models
from cnn.errors import InputError
from cnn.training import paths

PARAMS = {
    'stem': {'kernel': jnp.ones(1)},
    'stage1_block0': {'conv1': {'kernel': jnp.ones(1)}, 'norm1': {'scale': jnp.ones(1), 'bias': jnp.ones(1)}},
    'stage2_block0': {'conv1': {'kernel': jnp.ones(1)}},
    'head': {'kernel': jnp.ones(1), 'bias': jnp.ones(1)},
}


def flat(tree):
    return {paths.name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_decay_spares_the_excluded_names_at_any_depth():
    tree = {'a': {'kernel': 0, 'bias': 0, 'norm': {'scale': 0, 'kernel': 0}}, 'scale': 0}
    mask = paths.decay_mask(tree, ('bias', 'scale'))
    assert mask == {'a': {'kernel': True, 'bias': False, 'norm': {'scale': False, 'kernel': True}}, 'scale': False}


def test_filters_are_kernels_of_more_than_two_axes():
    tree = {'conv': {'kernel': jnp.ones((3, 2, 2)), 'bias': jnp.ones(2)}, 'dense': {'kernel': jnp.ones((2, 2))}}
    tree['position'] = jnp.ones((1, 4, 2))
    assert flat(paths.filter_mask(tree)) == {
        'conv/bias': False, 'conv/kernel': True, 'dense/kernel': False, 'position': False
    }  # fmt: skip


def test_an_expression_means_the_paths_that_it_matches_as_a_whole_and_the_first_entry_counts():
    optimizer = config.Optimizer(
        frozen=('stage1', 'stage2.*', '.*/bias', 'stem.*'), unfreeze=('stage2@1', 'stage2.*@3', '.*/kernel@5')
    )
    assert flat(paths.when(optimizer, PARAMS)) == {
        'stem/kernel': '2',
        'stage1_block0/conv1/kernel': '2',
        'stage1_block0/norm1/scale': paths.ALWAYS,
        'stage1_block0/norm1/bias': paths.NEVER,
        'stage2_block0/conv1/kernel': '1',
        'head/kernel': '2',
        'head/bias': paths.NEVER,
    }


def test_gradients_are_those_of_what_learns_at_the_step():
    optimizer = config.Optimizer(frozen=('.*/bias',), unfreeze=('stage1.*@3',))
    numbers = {'steps': {'unfreeze': [3]}}

    @jax.jit
    def gradient(step):
        def total(params):
            return sum(leaf.sum() for leaf in jax.tree.leaves(paths.learning(optimizer, params, step, numbers)))

        return jax.grad(total)(PARAMS)

    for step, later in ((0, 0), (2, 0), (3, 1), (4, 1)):
        found = flat(gradient(step))
        expected = {path: later if path.startswith('stage1') else path != 'head/bias' for path in found}
        assert found == expected


def test_gradients_of_what_never_learns_are_not_computed():
    def operations(frozen):
        optimizer = config.Optimizer(frozen=frozen)

        def loss(params, x):
            params = paths.learning(optimizer, params, 0, {})
            return jnp.sum(jnp.tanh(x @ params['a']['kernel']) @ params['b']['kernel'])

        params = {name: {'kernel': jnp.ones((3, 3))} for name in 'ab'}
        return jax.jit(jax.grad(loss)).lower(params, jnp.ones((2, 3))).compile().as_text().count(' dot(')

    # The forward product of `a`, and the gradients of `b`, of what enters it, and of `a`; the loss's value is unused.
    assert (operations(()), operations(('a/.*',))) == (4, 2)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'frozen': ('stage_1_block0/conv1/kernel',)}, "frozen: .*nearest is 'stage1_block0/conv1/kernel'"),
        ({'frozen': ('stem',)}, "'stem' matches no parameter as a whole; the nearest is 'stem/kernel'"),
        ({'unfreeze': ('steem.*@10%',)}, "unfreeze: 'steem.*' matches no"),
        ({'rates': ('haed/bias=3',)}, "rates: 'haed/bias' .* 'head/bias'"),
        ({'frozen': ('.*',)}, 'every parameter'),
    ],
)
def test_an_expression_that_matches_nothing_is_named_with_the_nearest_path(fields, message):
    paths.check(config.Optimizer(), PARAMS)
    with pytest.raises(InputError, match=message):
        paths.check(config.Optimizer(**fields), PARAMS)
    paths.check(config.Optimizer(frozen=('.*',), unfreeze=('head.*@0',)), PARAMS)


def test_the_first_factor_that_matches_counts():
    optimizer = config.Optimizer(rates=('head=nan', 'head/bias=nan', 'head.*=nan'))
    assert flat(paths.rates(optimizer, PARAMS, {'rates': [9.0, 2.0, 3.0]})) == {
        **dict.fromkeys(flat(PARAMS), 1.0), 'head/bias': 2.0, 'head/kernel': 3.0
    }  # fmt: skip


@functools.cache
def depths(name):
    model, variant = models.build(name, num_outputs=10), models.variant(name)
    inputs = jnp.zeros((1, *variant.input_shape), variant.input_dtype)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=False)['params'])
    return {part: set(jax.tree.leaves(leaf)) for part, leaf in paths.depth(params).items()}


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('resnet/18', {'stem_conv': 5, 'stem_norm': 5, 'stage1_block0': 4, 'stage1_block1': 4, 'stage2_block0': 3,
                       'stage2_block1': 3, 'stage3_block0': 2, 'stage3_block1': 2, 'stage4_block0': 1,
                       'stage4_block1': 1, 'head': 0}),
        ('convnext/tiny', {'stem_conv': 5, 'stem_norm': 5, **{f'stage1_block{i}': 4 for i in range(3)},
                           'stage2_norm': 3, 'stage2_conv': 3, **{f'stage2_block{i}': 3 for i in range(3)},
                           'stage3_norm': 2, 'stage3_conv': 2, **{f'stage3_block{i}': 2 for i in range(9)},
                           'stage4_norm': 1, 'stage4_conv': 1, **{f'stage4_block{i}': 1 for i in range(3)},
                           'norm': 0, 'head': 0}),
        ('vit/ti_16', {'class_token': 13, 'position_embedding': 13, 'patch_embedding': 13, 'norm': 0, 'head': 0,
                       **{f'block{i}': 13 - i for i in range(1, 13)}}),
        ('unet', {**{f'encoder{i}': 5 - i for i in range(5)}, **{f'decoder{i}': 0 for i in range(4)},
                  **{f'up{i}': 0 for i in range(4)}, 'head': 0}),
        ('simple_cnn', {'conv1': 3, 'conv2': 2, 'conv3': 1, 'dense': 0, 'head': 0}),
    ],
)  # fmt: skip
def test_depth_counts_stages_from_the_head(name, expected):
    assert depths(name) == {part: {depth} for part, depth in expected.items()}


def test_every_familys_stages_begin_one_below_the_head_without_a_gap():
    found = {
        name: set().union(*depths(name).values()) for name in ('lenet', 'mlp', 'vgg/11', 'wavenet', 'squeezenet/1_1')
    }
    assert {name: sorted(depth) for name, depth in found.items()} == {
        'lenet': [0, 1, 2, 3, 4], 'mlp': [0, 1], 'vgg/11': [0, 1, 2, 3, 4, 5], 'wavenet': [0, 1, 2, 3, 4],
        'squeezenet/1_1': list(range(10)),
    }  # fmt: skip
    np.testing.assert_equal(depths('vgg/11')['dense_0'], {0})
