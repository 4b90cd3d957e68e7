import itertools

import jax
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError
from cnn.models.coatnet import RelativePosition

TINY = {'stages': 'CT', 'depths': (1, 2), 'widths': (4, 16), 'stem_width': 4, 'head_width': 8}
X = np.random.default_rng(0).standard_normal((2, 16, 16, 3), 'float32')


def run(model, variables, train=False, method='__call__'):
    """Outputs or feature maps; in training with noise, of a fixed key."""
    rngs = {'dropout': jax.random.key(0)} if train else {}
    return jax.jit(lambda variables: model.apply(variables, X, train=train, rngs=rngs, method=method))(variables)


def abstract(side=16, **options):
    """Abstract outputs and parameters."""
    model = models.build('coatnet/0', num_outputs=5, **(TINY | options))
    x = jax.ShapeDtypeStruct((1, side, side, 3), 'float32')
    outputs, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), x)
    return outputs, variables['params']


def test_relative_position_is_that_of_the_query_minus_the_key():
    height, width, heads = 2, 3, 2
    table = np.arange(3.0 * 5 * heads).reshape(3 * 5, heads)
    bias = RelativePosition(heads, 'float32').apply({'params': {'table': table}}, height, width)
    assert bias.shape == (heads, 6, 6)
    for query, key, head in itertools.product(range(6), range(6), range(heads)):
        rows, columns = (a - b for a, b in zip(divmod(query, width), divmod(key, width), strict=True))
        assert bias[head, query, key] == table.reshape(3, 5, heads)[rows + 1, columns + 2, head]


def test_table_has_the_size_of_the_map_and_can_be_left_out():
    for side, rows in ((16, 9), (32, 49)):
        _, params = abstract(side)
        assert params['stage2_block1']['relative_position']['table'].shape == (rows, 2)
    _, params = abstract(relative_position=False)
    assert 'relative_position' not in params['stage2_block1']


def test_stages_say_which_blocks_they_have():
    _, params = abstract(stages='CC', squeeze_excite=0.5)
    assert all('attention' not in block for block in params.values())
    assert params['stage2_block1']['squeeze_excite']['reduce']['kernel'].shape == (1, 1, 64, 8)
    _, params = abstract(stages='TT', widths=(8, 16), squeeze_excite=0.0)
    assert {name for name, block in params.items() if 'attention' in block} == {
        'stage1_block0',
        'stage2_block0',
        'stage2_block1',
    }


def test_sizes_follow_from_options():
    _, params = abstract(width_multiplier=2.0, expansion=3)
    assert params['stem_conv2']['kernel'].shape == (3, 3, 8, 8)
    assert params['stage1_block0']['conv2']['kernel'].shape == (3, 3, 1, 24)
    assert params['stage2_block0']['attention']['qkv']['kernel'].shape == (8, 96)
    assert params['stage2_block0']['dense1']['kernel'].shape == (32, 96)
    _, params = abstract(pool='conv')
    assert params['stage2_block0']['pool']['conv']['kernel'].shape == (2, 2, 4, 4)


def test_pool_is_that_of_the_shortcut(random_variables):
    """With a last layer of zeros a block gives what it carries."""

    def stage1(pool):
        model = models.build('coatnet/0', num_outputs=None, **(TINY | {'pool': pool}))
        variables = random_variables(model, X)
        variables['params']['stage1_block0']['conv3'] = jax.tree.map(
            np.zeros_like, variables['params']['stage1_block0']['conv3']
        )
        maps = run(model, variables, method='features')
        return np.asarray(maps['stem'][1]), np.asarray(maps['stage1'][1])

    for pool, reduce in (('average', np.mean), ('max', np.max)):
        stem, stage = stage1(pool)
        blocks = stem.reshape(2, 4, 2, 4, 2, 4)
        np.testing.assert_allclose(stage, reduce(blocks, axis=(2, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('option', ['dropout', 'drop_path'])
def test_noise_is_of_training_only(random_variables, option):
    model = models.build('coatnet/0', num_outputs=None, norm='layer', **TINY, **{option: 0.5})
    variables = random_variables(model, X)
    assert not np.allclose(run(model, variables, train=True), run(model, variables), atol=1e-3)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'stages': 'CM'}, "coatnet: stages='CM' has other letters than C and T"),
        ({'stages': 'CTT'}, 'coatnet: 3 stages, 2 depths, 2 widths'),
        ({'widths': (4, 12)}, 'coatnet: heads of 8 do not divide a width of 12'),
        ({'pool': 'mean'}, "unknown pool 'mean'"),
        ({'padding': 'SAM'}, "unknown padding 'SAM'; did you mean 'SAME'"),
    ],
)
def test_errors_are_one_line_that_names_the_input(options, message):
    with pytest.raises(InputError) as error:
        abstract(**options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)
