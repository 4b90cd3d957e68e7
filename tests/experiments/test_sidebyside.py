import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments.benchmarks import convolutions, networks, sidebyside, training_steps
from experiments.benchmarks.sidebyside import Disagreement, Options, Peer, PeerError, Result, Side, Timing

ROOT = pathlib.Path(__file__).parents[2]
torch_installed = importlib.util.find_spec('torch') is not None
needs_torch = pytest.mark.skipif(not torch_installed, reason='compares with PyTorch')
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec('torchvision') is None, reason='torchvision is not installed'
)


# What the child process of these tests serves instead of PyTorch.


def begin(device):
    return f'made up on {device}'


def begin_broken(device):
    raise RuntimeError('no such library\nat all')


def prepare(name, options):
    def broken():
        raise OSError('no compiler\nfor this')

    if name == 'unknown':
        raise KeyError(name)
    runs = {'slow': lambda: time.sleep(0.004), 'fast': lambda: time.sleep(0.001), 'broken': broken}
    return Side(runs, {'answer': np.float32(42), 'dtype': options.dtype})


def ours(name, options, values):
    if values is not None:
        sidebyside.agree('answer', 42 if name == 'right' else 43, values['answer'], 1e-3)
    return lambda: time.sleep(0.002)


def test_two_sides_are_timed_and_the_fastest_variant_counts():
    with Peer(prepare, begin) as peer:
        assert peer.description == 'made up on cpu'
        result = sidebyside.compare('right', ours, peer, Options(), rounds=2)
    assert set(result.torch) == {'slow', 'fast'}
    assert result.unavailable == {'broken': 'OSError: no compiler'}
    assert result.fastest() == 'fast'
    assert result.ratio() == result.jax.median / result.torch['fast'].median
    assert result.ratio('slow') < result.ratio()
    assert result.fastest('compiled') is result.ratio('compiled') is None


def test_a_case_that_computes_something_else_is_refused_by_its_name():
    with (
        Peer(prepare, begin) as peer,
        pytest.raises(Disagreement, match=r'^wrong: refused: answer differs by 2\.4e-02'),
    ):
        sidebyside.compare('wrong', ours, peer, Options(), rounds=1)


def test_an_error_of_the_child_is_told_and_leaves_it_serving():
    with Peer(prepare, begin) as peer:
        with pytest.raises(PeerError, match="KeyError: 'unknown'"):
            peer.prepare('unknown', Options())
        names, values, _ = peer.prepare('right', Options(dtype='bfloat16'))
        assert names == ['slow', 'fast']
        assert values['dtype'] == 'bfloat16'
    assert not peer._process.is_alive()


def test_a_peer_that_does_not_start_leaves_jax_alone(capsys):
    peer, options = sidebyside.connect(prepare, begin_broken)
    assert peer is None
    assert options.device == 'cpu'
    assert 'RuntimeError: no such library: JAX alone' in capsys.readouterr().out
    result = sidebyside.compare('right', ours, None, options, rounds=1)
    assert result.torch == {}
    assert result.ratio() is None
    json.dumps(result.record())


def test_contenders_take_turns():
    order = []

    def contender(name):
        def repeat(repetitions):
            order.append(name)
            return [1000.0] * repetitions

        return repeat

    timings = sidebyside.alternate({name: contender(name) for name in 'ab'}, rounds=3)
    assert ''.join(order) == 'ab' + 'ababab'
    assert timings['a'].milliseconds == (1000.0,) * 3


def test_the_first_repetition_of_a_block_is_not_counted():
    timings = sidebyside.alternate({'woken': lambda n: [9e9] + [1000.0] * (n - 1)}, rounds=3)
    assert timings['woken'].milliseconds == (1000.0,) * 3


def test_a_block_repeats_what_is_short():
    timings = sidebyside.alternate(
        {'short': lambda n: [sidebyside.BLOCK * 1000 / 20] * n, 'none': lambda n: [0] * n}, 2
    )
    assert len(timings['short'].milliseconds) == 40
    assert len(timings['none'].milliseconds) == 2 * sidebyside.MOST


def test_timings_are_medians_with_their_spread():
    timing = Timing(tuple(range(1, 102)))
    assert timing.median == 51
    assert timing.spread == (11, 91)
    assert str(timing) == '51.0 (11.0-91.0)'
    assert Result('x', timing, {'a': Timing((102,))}).ratio() == 0.5


def test_agreement_is_of_shape_and_of_values():
    with pytest.raises(Disagreement, match=r'y has shape \(2,\) in JAX and \(3,\) in PyTorch'):
        sidebyside.agree('y', np.ones(2), np.ones(3), 1)
    with pytest.raises(Disagreement, match='y differs by nan'):
        sidebyside.agree('y', np.full(2, np.nan), np.ones(2), 1)
    sidebyside.agree('y', np.full(2, 1.01), np.ones(2), 0.02)


@pytest.mark.parametrize(
    ('value', 'text'), [(1234.5, '1234'), (12.345, '12.3'), (0.1234, '0.123'), (0.001, '0.001'), (0, '0'), (None, '-')]
)
def test_numbers_have_three_digits(value, text):
    assert sidebyside.number(value) == text


def run_without_torch(module, *flags):
    code = f'import sys, runpy; sys.modules["torch"] = None; runpy.run_module({module!r}, run_name="__main__")'
    return subprocess.run([sys.executable, '-c', code, *flags], cwd=ROOT, capture_output=True, text=True)


def test_without_torch_jax_is_timed_alone_and_it_is_said(tmp_path):
    flags = ('--only=depthwise 5x5', '--rounds=1', '--form=plain', f'--json={tmp_path / "rows.json"}')
    done = run_without_torch('experiments.benchmarks.convolutions', *flags)
    assert done.returncode == 0, done.stderr
    assert 'PyTorch is not installed: JAX alone; pip install torch==2.13.0' in done.stdout
    record = json.loads((tmp_path / 'rows.json').read_text())
    (row,) = record['rows']
    assert row['name'] == 'depthwise 5x5 8x14x14 480->480'
    assert row['jax']['median_ms'] > 0
    assert row['ratio'] is None
    assert record['flags']['CNN_CONV'] == 'plain'


def test_training_steps_without_torch():
    done = run_without_torch('experiments.benchmarks.training_steps', '--only=wavenet', '--rounds=1')
    assert done.returncode == 0, done.stderr
    assert sidebyside.MISSING in done.stdout
    assert done.stdout.splitlines()[-1].startswith('wavenet ')


def test_a_row_that_does_not_exist_is_refused():
    done = run_without_torch('experiments.benchmarks.convolutions', '--only=5-D')
    assert done.returncode == 2
    assert '--only=5-D is in no row: dense 3x3 8x56x56 64->64' in done.stderr


@pytest.mark.parametrize('name', training_steps.TRAININGS)
def test_networks_have_as_many_parameters_as_they_say(name):
    training = training_steps.TRAININGS[name]
    network = networks.build(name, training.classes)
    variables = jax.eval_shape(lambda: training_steps.initialized(network, training))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params'])) == training.parameters
    x, labels = training_steps.batch(training)
    outputs = jax.eval_shape(lambda variables: network.apply(variables, x, train=False), variables)
    assert outputs.shape == (*labels.shape, training.classes)


@pytest.mark.parametrize('name', convolutions.ROWS)
def test_rows_have_the_shape_that_they_count_with(name):
    row = convolutions.ROWS[name]
    x, kernel, gradient = (
        jax.ShapeDtypeStruct(shape, np.float32) for shape in (row.shape, row.kernel_shape, row.output_shape)
    )
    y = jax.eval_shape(lambda x, kernel: convolutions.convolution(row, x, kernel), x, kernel)
    assert y.shape == gradient.shape


def test_flops_are_two_for_each_multiply_add_of_output_and_gradients():
    assert convolutions.ROWS['dense 3x3 8x56x56 64->64'].flops == 6 * 8 * 56 * 56 * 9 * 64 * 64
    assert convolutions.ROWS['stem 3x3 64x32x32 3->64'].flops == 4 * 64 * 32 * 32 * 9 * 3 * 64
    assert convolutions.ROWS['depthwise 5x5 8x14x14 480->480'].flops == 6 * 8 * 14 * 14 * 25 * 480
    assert convolutions.ROWS['transposed 2x2/2 16x32x32 64->32'].flops == 6 * 16 * 64 * 64 * 64 * 32


@pytest.mark.slow
@pytest.mark.parametrize('contenders', [training_steps.scan_contenders, training_steps.vmap_contenders])
def test_steps_together_and_by_calls(contenders, monkeypatch):
    monkeypatch.setitem(training_steps.TRAININGS, 'wavenet', training_steps.Training(48_753, 2, (8,), 17, dense=True))
    timed = contenders('wavenet', 'float32')
    assert set(timed) == {'together', 'calls'}
    assert all(len(repeat(2)) == 2 for repeat in timed.values())


def test_a_step_descends():
    training = training_steps.Training(48_753, 4, (8,), 17, dense=True)
    network = networks.build('wavenet', 17)
    state = training_steps.start(training_steps.initialized(network, training))
    step = jax.jit(training_steps.step_function(network))
    losses = []
    for _ in range(3):
        state, loss = step(state, training_steps.batch(training))
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]


@needs_torch
@pytest.mark.parametrize('name', ['1-D causal k2 dilated64', 'transposed 3x3/2', 'stem 3x3'])
def test_rows_agree_with_pytorch(name):
    (name,) = sidebyside.chosen(list(convolutions.ROWS), name)
    with Peer(convolutions.torch_case, sidebyside.start_torch) as peer:
        variants, values, unavailable = peer.prepare(name, Options())
    assert variants[0] in ('NCHW', 'NCW')
    assert not unavailable
    convolutions.jax_case(name, Options(), values)
    values['gradient of the kernel'] = values['gradient of the kernel'][::-1]
    with pytest.raises(Disagreement, match='gradient of the kernel differs by'):
        convolutions.jax_case(name, Options(), values)


def values_only(name, options):
    import torch

    from experiments.benchmarks.networks_torch import Trainer

    training = training_steps.TRAININGS[name]
    x, labels = training_steps.batch(training)
    torch.manual_seed(0)
    checked = training_steps.CHECKED
    return Side({}, Trainer(name, training.classes, x[:checked], labels[:checked], 1e-3).values())


@needs_torch
@pytest.mark.parametrize(
    'name', ['simple_cnn', 'wavenet', pytest.param('shufflenet/v2_x1_0', marks=[needs_torchvision, pytest.mark.slow])]
)
def test_networks_agree_with_pytorch(name):
    with Peer(values_only, sidebyside.start_torch) as peer:
        _, values, _ = peer.prepare(name, Options())
    training_steps.jax_case(name, Options(), values)
    (last,) = (key for key in ('head.weight', 'fc.weight') if key in values['weights'])
    values['weights'][last] = values['weights'][last][::-1]
    with pytest.raises(Disagreement, match=r'(outputs|loss) differs by'):
        training_steps.jax_case(name, Options(), values)
