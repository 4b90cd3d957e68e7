import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from flax import linen as nn

import launch
from cnn import models
from cnn.config import Data, Experiment
from cnn.data import sources
from cnn.errors import InputError
from cnn.inspection import describe
from cnn.training import program, sharding


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def process(*arguments):
    return subprocess.run(
        [sys.executable, 'launch.py', 'describe', *arguments],
        cwd=launch.ROOT,
        env={**os.environ, 'JAX_PLATFORMS': ''},
        capture_output=True,
        text=True,
        timeout=300,
    )


def main(*arguments):
    """Runs the verb in this process, whose platform is the CPU."""
    return launch.main(launch.parse(['launch.py', 'describe', *arguments], flags.FlagValues()))


class Shared(nn.Module):
    """Modules within modules, called again, without outputs that are arrays, and a method beside __call__."""

    def setup(self):
        self.stem = nn.Conv(4, (3, 3), strides=2)
        self.inner = Inner()

    def __call__(self, x):
        maps = self.inner(self.stem(x))
        return {'last': self.inner.again(maps['first']), **maps}


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        offset = self.param('offset', nn.initializers.zeros, (4,))
        x = nn.Dropout(0.5, deterministic=True)(x + offset)
        return {'first': nn.Conv(4, (1, 1), name='conv')(x), 'early': x}

    def again(self, x):
        return x + self.get_variable('params', 'offset')


def test_a_row_for_each_module_with_numbers_of_its_own():
    figures = describe.describe(Shared(), array(1, 8, 10, 2))
    rows = {layer['name']: layer for layer in figures['layers']}
    assert list(rows) == ['stem', 'inner', 'inner/conv']
    assert [rows[name]['parameters'] for name in rows] == [76, 4, 20]
    assert [rows[name]['output'] for name in rows] == [[4, 5, 4]] * 3
    assert rows['inner/conv'] == {
        'name': 'inner/conv',
        'calls': 1,
        'output': [4, 5, 4],
        'parameters': 20,
        'multiply_adds': 4 * 5 * 4 * 4,
        'activation_multiply_adds': 0,
        'receptive_field': [3, 3],
        'stride': [2, 2],
        'everywhere': False,
    }
    assert figures['parameters'] == 100
    assert figures['inputs'] == [[8, 10, 2]]


def test_rows_stand_in_the_order_in_which_modules_are_entered():
    variant = models.variant('vit/ti_16')
    model = models.build('vit/ti_16', num_outputs=variant.num_outputs, depth=1)
    names = [layer['name'] for layer in describe.describe(model, array(1, *variant.input_shape), train=False)['layers']]
    assert names.index('block1/attention') < names.index('block1/attention/out') < names.index('head')


def test_a_network_of_any_rank_and_task_is_described():
    sequence = models.build('wavenet', num_outputs=5, channels=4, skip_channels=4, stacks=1)
    figures = describe.describe(sequence, array(1, 64, 2), train=False)
    assert (figures['receptive_field'], figures['stride']) == ([1024], [1])
    volume = nn.Sequential([nn.Conv(4, (3, 3, 3)), nn.relu, nn.Conv(2, (1, 5, 5), strides=(1, 2, 2))])
    figures = describe.describe(volume, array(1, 4, 8, 8, 1))
    assert (figures['receptive_field'], figures['stride']) == ([3, 7, 7], [1, 2, 2])
    assert figures['multiply_adds'] == 256 * 4 * 27 + 64 * 2 * 4 * 25


def test_an_input_of_which_nothing_is_left_is_refused():
    with pytest.raises(
        InputError, match=r'nothing is left of the input after the network, 0 x 0 x 4; use a larger one'
    ):
        describe.describe(nn.Conv(4, (3, 3), padding='VALID', name='conv'), array(1, 2, 2, 1))


def test_the_table_has_a_line_for_each_layer_and_the_totals():
    model = models.build('simple_cnn', num_outputs=10)
    lines = describe.table(describe.describe(model, array(1, 32, 32, 3), train=False)).splitlines()
    assert lines[0] == '32 x 32 x 3 in'
    assert [line.split()[0] for line in lines[2:9]] == ['layer', 'conv1', 'conv2', 'conv3', 'dense', 'head', 'total']
    assert lines[4].split() == ['conv2', *'16x16x64'.replace('x', ' x ').split(), '18,496', '4,718,592', '8', '2']
    assert lines[7].split() == ['head', '10', '2,570', '2,560', 'all', '-']
    assert lines[8].split() == ['total', '620,362', '10,848,768', '22', '8']
    assert 'products with constants, not in the total: 49,152 multiply-adds' in lines


def test_the_table_marks_what_also_sees_all_and_products_of_activations():
    model = models.build('vit/ti_16', num_outputs=3, depth=1)
    table = describe.table(describe.describe(model, array(1, 224, 224, 3), train=False))
    attention = next(line.split() for line in table.splitlines() if line.startswith('block1/attention '))
    assert attention[-4:] == ['0', f'{2 * 197**2 * 192:,}', 'all', '-']
    assert next(line for line in table.splitlines() if line.startswith('block1/dense1 ')).split()[-2:] == ['16*', '-']
    assert '*: and all the rest' in table


def test_what_the_gradient_keeps_is_counted_without_arguments():
    def kept(function, *shapes):
        return describe.kept_bytes(function, *(array(*shape) for shape in shapes))

    assert kept(lambda w, x: (x @ w).sum(), (5, 3), (7, 5)) == 0
    assert kept(lambda w, x: jnp.sin(x @ w).sum(), (5, 3), (7, 5)) == 4 * 7 * 3  # the cosine
    two = kept(lambda w, x: (jnp.sin(x @ w) @ w.T).sum(), (5, 3), (7, 5))
    assert two == 2 * 4 * 7 * 3  # and the sine, but not the transpose of the parameter


@pytest.mark.parametrize('decay', [None, 0.9])
@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_the_memory_of_a_state_is_that_of_training(optimizer, decay):
    config, spec = Experiment(), sources.spec(Data('digits'))
    config.model.options, config.optimizer.name, config.ema.decay = {'norm': 'batch'}, optimizer, decay
    config = program.resolve(config, spec)
    built, _ = program.build(config, spec, 1000, sharding.make_mesh(config))
    memory = describe.experiment(config, built.spec)['memory']
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(built.state))
    assert sum(memory[name] for name in ('parameters', 'optimizer', 'model_state', 'ema')) == state - 4  # the step
    assert memory['gradients'] == memory['parameters'] == 4 * 620_010


def test_activations_grow_with_the_microbatch():
    config, spec = Experiment(), sources.spec(Data('digits'))
    config = program.resolve(config, spec)

    def activations(batch_size, accumulate):
        config.data.batch_size, config.optimizer.accumulate = batch_size, accumulate
        return describe.experiment(config, spec)['memory']['activations']

    assert activations(128, 2) == activations(64, 1)
    assert activations(128, 1) / activations(64, 1) == pytest.approx(2, rel=1e-3)


def test_the_default_experiment_is_described_in_a_process_of_its_own():
    result = process()
    assert (result.returncode, result.stderr) == (0, '')
    lines = result.stdout.splitlines()
    assert lines[0] == 'simple_cnn on 8 x 8 x 1, 10 outputs, float32'
    assert next(line.split() for line in lines if line.startswith('total ')) == [
        'total',
        '620,010',
        '1,135,104',
        '18',
        '2',
    ]
    assert any(line.startswith('memory of training on batches of 64: ') for line in lines)


def test_a_network_is_described_without_data_as_json():
    result = process('--config.model.name=resnet/18', '--input=224,224,3', '--json', '--config.data.batch_size=2')
    assert (result.returncode, result.stderr) == (0, '')
    figures = json.loads(result.stdout)
    assert (figures['parameters'], figures['multiply_adds'], figures['num_outputs']) == (
        11_689_512,
        1_814_073_344,
        1000,
    )
    assert (figures['receptive_field'], figures['stride']) == ([435, 435], [32, 32])
    assert figures['layers'][0]['name'] == 'stem_conv'
    assert figures['layers'][-1]['receptive_field'] == [None, None]
    assert figures['memory']['activations'] > 4 * math.prod(figures['layers'][0]['output']) * 2


def test_the_zoo_is_listed():
    result = process('--list')
    assert (result.returncode, result.stderr) == (0, '')
    header, *lines = result.stdout.splitlines()
    assert header.split() == ['name', 'parameters', 'multiply-adds', 'top-1', '%', 'input', 'outputs', 'source']
    assert [line.split()[0] for line in lines] == list(models.names())
    row = next(line for line in lines if line.startswith('resnet/50 '))
    assert row.split('  ')[0] == 'resnet/50'
    for part in ('25,557,032', '4,089,184,256', '76.13 / 80.858', '224 x 224 x 3', 'He et al. 2016, table 1'):
        assert part in row


def test_the_list_as_json(capsys):
    assert main('--list', '--json') == 0
    rows = {row['name']: row for row in json.loads(capsys.readouterr().out)}
    assert tuple(rows) == models.names()
    assert rows['resnet/18']['parameters'] == 11_689_512


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--input=abc', "--input='abc': write the shape of an example, such as --input=224,224,3"),
        ('--input=8,0,1', "--input='8,0,1': write the shape"),
        ('--input=8,8', '--input=8,8: simple_cnn takes an input such as --input=32,32,3'),
        ('--input=1,1,1,1,1', '--input=1,1,1,1,1: simple_cnn takes an input such as --input=32,32,3'),
        ('--config.model.name=lenet --input=8,8,1', 'lenet needs images of at least 32 x 32, not 8 x 8'),
        ('--config.task.name=segmentation --input=64', 'task segmentation reads image, not tokens'),
        ('--config.model.options.widht=1 --input=8,8,1', "did you mean 'widths'?"),
        ('--config.task.options.smoothing=1 --input=8,8,1', "did you mean 'label_smoothing'?"),
        ('--workdir=x', 'describe writes nothing; leave --workdir out'),
        ('--steps=3', '--steps belongs to another verb: python launch.py benchmark --steps'),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    try:
        code = main(*arguments.split())
        text = capsys.readouterr().err
    except InputError as error:
        code, text = error.exit_code, f'{error}\n'
    assert code == 2
    assert message in text
    assert text.count('\n') == 1


def test_an_input_that_breaks_a_network_is_a_mistake(monkeypatch, capsys):
    def refuse(*_):
        raise TypeError('shapes do not fit\nsecond line')

    monkeypatch.setattr(describe, 'experiment', refuse)
    assert main('--input=16,16,3') == 2
    assert capsys.readouterr().err == 'launch.py: --input=16,16,3: simple_cnn can not take it: shapes do not fit\n'
    with pytest.raises(TypeError):
        main()


def test_tokens_and_their_signals_are_both_inputs_of_a_wavenet():
    config = Experiment()
    config.model.name = 'wavenet'
    for shape, dtype in (((512,), 'int32'), ((512, 3), 'float32')):
        _, spec = describe.made_up(config, shape)
        assert list(spec.dtypes.values()) == [dtype]
    config.task.name = 'autoregression'
    _, spec = describe.made_up(config, (28, 28, 1))
    assert spec.shapes == {'image': (28, 28, 1)}
