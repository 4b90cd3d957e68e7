import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest
from changed_config import OTHERS, PATHS, changed

from cnn import config as configuration
from cnn import validation
from cnn.config import Experiment
from cnn.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]


def text(config):
    return json.dumps(configuration.to_dict(config), sort_keys=True)


def test_the_table_of_other_values_holds_every_field_and_another_value_of_each():
    assert OTHERS.keys() == PATHS.keys()
    for path, value in OTHERS.items():
        assert configuration.get(Experiment(), path) != value, path


def test_field_paths_are_the_leaves_of_the_tree():
    leaves = {
        f'{part}.{name}' if isinstance(value, dict) else part
        for part, value in dataclasses.asdict(Experiment()).items()
        for name in (value if isinstance(value, dict) else [''])
    }
    assert leaves == PATHS.keys()


@pytest.mark.parametrize(
    ('duration', 'expected'),
    [
        ('2000', 2000),
        ('2e3', 2000),
        ('0', 0),
        ('0ep', 0),
        ('0%', 0),
        ('90ep', 1406),  # 90 * 1000 / 64 = 1406.25
        ('1ep', 16),  # 15.625
        ('1.5ep', 23),  # 23.4375
        ('.5ep', 8),  # 7.8125
        ('1e6ex', 15625),
        ('96ex', 2),  # 1.5
        ('1ex', 1),  # 0.015625: not zero
        ('5%', 16),  # 5 of 100 of 321 = 16.05
        ('12.5%', 40),  # 40.125
        ('0.1%', 1),  # 0.321
        ('100%', 321),
    ],
)
def test_durations_in_steps(duration, expected):
    assert configuration.steps(duration, batch_size=64, num_examples=1000, total=321) == expected


@pytest.mark.parametrize(
    'duration',
    ['', ' 5', '5 ep', '-1', '-1ep', '+5', 'nan', 'inf', 'infep', '1.5', 'ep', '%', '5eps', '1_000', '1e999', '\u0663'],
)
def test_what_is_not_a_duration_is_refused(duration):
    with pytest.raises(ValueError, match=r'.*'):
        configuration.steps(duration, batch_size=64, num_examples=1000, total=321)
    with pytest.raises(InputError, match=r'config\.eval\.every='):
        validation.validate(changed({'eval.every': duration}))


def test_each_field_has_its_share_in_the_fingerprint():
    prints = {configuration.fingerprint(changed({path: value})) for path, value in OTHERS.items()}
    assert len(prints | {configuration.fingerprint(Experiment())}) == len(PATHS) + 1
    assert all(len(print_) == 12 and set(print_) <= set('0123456789abcdef') for print_ in prints)


def test_the_order_of_options_has_no_share_in_the_fingerprint():
    one, other = changed({'model.options': {'a': 1, 'b': 2}}), changed({'model.options': {'b': 2, 'a': 1}})
    assert configuration.fingerprint(one) == configuration.fingerprint(other)


def test_the_fingerprint_is_the_same_in_every_process():
    program = (
        'from cnn import config; e = config.Experiment(); e.model.options = {"a": {"b": (1,)}, "c": 0.1}; '
        'print(config.fingerprint(e))'
    )
    expected = configuration.fingerprint(changed({'model.options': {'a': {'b': (1,)}, 'c': 0.1}}))
    for seed in ('1', '2'):
        environment = {**os.environ, 'PYTHONHASHSEED': seed}
        process = subprocess.run(
            [sys.executable, '-c', program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert process.stdout.strip() == expected


@pytest.mark.parametrize('path', PATHS)
def test_differences_are_exactly_the_changed_fields(path):
    config = changed({path: OTHERS[path]})
    assert configuration.differences(Experiment(), Experiment()) == {}
    pair = (configuration.get(Experiment(), path), OTHERS[path])
    assert configuration.differences(Experiment(), config) == {path: pair}


def test_what_may_differ_on_resuming_are_the_duration_and_the_intervals():
    intervals = {path for path in PATHS if path.endswith('.every') and path not in ('ema.every', 'schedule.every')}
    assert set(configuration.RESUMABLE) == {'train.duration'} | intervals


# Two values of everything that is only a number; both give one program.
NUMBERS = {
    'augment.shift': (1, 2),
    'augment.translate': (0.1, 0.2),
    'augment.rotate': (5.0, 10.0),
    'augment.shear': (5.0, 8.0),
    'augment.brightness': (0.1, 0.2),
    'augment.contrast': (0.1, 0.2),
    'augment.saturation': (0.1, 0.2),
    'augment.hue': (0.1, 0.2),
    'augment.magnitude': (7.0, 9.0),
    'augment.magnitude_std': (0.5, 1.0),
    'augment.erase': (0.1, 0.2),
    'augment.gain': (3.0, 6.0),
    'augment.noise': (0.1, 0.2),
    'augment.time_mask_width': (10, 20),
    'augment.frequency_mask_width': (4, 8),
    'augment.mixup': (0.2, 0.8),
    'augment.cutmix': (0.5, 1.0),
    'optimizer.learning_rate': (0.1, 0.2),
    'optimizer.momentum': (0.9, 0.5),
    'optimizer.second_momentum': (0.999, 0.9),
    'optimizer.epsilon': (1e-8, 1e-6),
    'optimizer.weight_decay': (0.0, 0.1),
    'optimizer.clip_norm': (1.0, 2.0),
    'optimizer.clip_adaptive': (0.01, 0.02),
    'optimizer.trust_coefficient': (1e-3, 2e-3),
    'optimizer.other_momentum': (0.9, 0.8),
    'optimizer.sam': (0.05, 0.1),
    'optimizer.layer_decay': (0.8, 0.9),
    'schedule.start': (0.0, 0.1),
    'schedule.power': (1.0, 2.0),
    'schedule.factor': (0.1, 0.2),
    'schedule.final': (0.0, 0.1),
    'ema.decay': (0.9, 0.99),
    'distill.weight': (0.5, 0.9),
    'distill.temperature': (1.0, 2.0),
    'task.options': ({'label_smoothing': 0.0}, {'label_smoothing': 0.1}),
}


# Two values of what changes the program.
KINDS = {
    'augment.shift': (0, 1),
    'augment.flip': (False, True),
    'augment.repeats': (1, 2),
    'augment.num_operations': (1, 2),
    'augment.time_masks': (0, 1),
    'augment.frequency_masks': (1, 2),
    'augment.policy': ('none', 'randaugment'),
    'augment.crop_scale': ((), (0.5, 1.0)),
    'augment.mixup': (0.0, 0.2),
    'optimizer.sam': (None, 0.1),
    'optimizer.layer_decay': (None, 0.9),
    'optimizer.frozen': ((), ('a',)),
    'optimizer.rates': (('a=2',), ('b=2',)),
    'optimizer.unfreeze': (('a@2',), ('b@2',)),
    'optimizer.newton_schulz': (5, 3),
    'optimizer.unit_filters': (False, True),
    'spectrogram.bands': (0, 40),
    'model.batch_norm': ('global', 'frozen'),
    'ema.warmup': (False, True),
    'distill.teacher': (None, 'a'),
    'optimizer.name': ('sgd', 'adam'),
    'optimizer.nesterov': (False, True),
    'optimizer.decay_exclude': (('bias',), ()),
    'optimizer.clip_norm': (None, 1.0),
    'optimizer.accumulate': (1, 2),
    'schedule.name': ('cosine', 'constant'),
    'ema.decay': (None, 0.9),
    'ema.every': (1, 2),
    'model.name': ('mlp', 'lenet'),
    'model.options': ({'dropout': 0.1}, {'dropout': 0.2}),
    'model.dtype': ('float32', 'bfloat16'),
    'task.name': ('classification', 'segmentation'),
    'task.options': ({'background': 0}, {'background': 1}),
    'data.image_size': (None, (8, 8)),
}


def test_the_table_of_numbers_holds_every_number():
    parts = ('augment', 'optimizer', 'schedule', 'ema', 'distill')
    floats = {
        path
        for path, kind in PATHS.items()
        if path.split('.')[0] in parts and 'float' in str(kind) and 'tuple' not in str(kind)
    }
    whole = {'augment.shift', 'augment.time_mask_width', 'augment.frequency_mask_width'}
    assert NUMBERS.keys() == floats | whole | {'task.options'}


@pytest.mark.parametrize('path', NUMBERS)
def test_configurations_that_differ_in_a_number_have_one_structure(path):
    one, other = (configuration.split_numbers(changed({path: value})) for value in NUMBERS[path])
    assert text(one[0]) == text(other[0])
    part, name = path.split('.')
    name = 'label_smoothing' if part == 'task' else name
    values = [value[name] if part == 'task' else value for value in NUMBERS[path]]
    assert [one[1][part].pop(name), other[1][part].pop(name)] == values
    assert one[1] == other[1]
    held = configuration.get(one[0], path)
    assert math.isnan(held[name] if part == 'task' else held)


def test_factors_of_paths_and_times_of_unfreezing_leave_the_structure_as_numbers():
    one = configuration.split_numbers(changed({'optimizer.rates': ('a=2', 'b=3'), 'optimizer.unfreeze': ('c@1ep',)}))
    other = configuration.split_numbers(changed({'optimizer.rates': ('a=5', 'b=4'), 'optimizer.unfreeze': ('c@7',)}))
    assert text(one[0]) == text(other[0])
    assert (one[1]['optimizer']['rates'], other[1]['optimizer']['rates']) == ([2.0, 3.0], [5.0, 4.0])


@pytest.mark.parametrize('path', KINDS)
def test_configurations_that_differ_in_kind_have_two_structures(path):
    one, other = (configuration.split_numbers(changed({path: value})) for value in KINDS[path])
    assert text(one[0]) != text(other[0])


def test_splitting_off_the_numbers_leaves_the_configuration_alone():
    config = changed(OTHERS)
    configuration.split_numbers(config)
    assert config == changed(OTHERS)
