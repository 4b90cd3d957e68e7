import copy
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any, Optional

import pytest

from cnn import config as configuration
from cnn.config import Experiment, InputError

ROOT = pathlib.Path(__file__).parents[1]
PATHS = configuration.field_paths(Experiment())

# Another valid value of every field.
OTHERS = {
    'model.name': 'lenet',
    'model.options': {'a': None, 'b': (1, (2, 3)), 'c': True},
    'model.dtype': 'bfloat16',
    'model.param_dtype': 'float64',
    'model.batch_norm': 'ghost',
    'model.ghost_batch': 16,
    'model.conv': 'plain',
    'task.name': 'segmentation',
    'task.options': {'background': 0},
    'data.name': 'digit_scenes',
    'data.train_split': 'train[:50%]',
    'data.validation_split': None,
    'data.test_split': None,
    'data.batch_size': 32,
    'data.classes': ('0', '1'),
    'data.examples_per_class': 5,
    'data.split_seed': 1,
    'data.archives': 'archives',
    'data.image_size': (32, 48),
    'data.test_size': (40, 48),
    'data.resize': 'crop',
    'data.resize_side': 40,
    'data.channels': 3,
    'data.sample_rate': 8000,
    'data.length': 4000,
    'data.mean': (0.5,),
    'data.std': (0.25,),
    'data.resident': False,
    'data.workers': 2,
    'data.max_unreadable': 0,
    'spectrogram.bands': 40,
    'spectrogram.window': 200,
    'spectrogram.hop': 80,
    'spectrogram.low': 0.0,
    'spectrogram.high': 4000.0,
    'spectrogram.floor': 1e-3,
    'augment.repeats': 2,
    'augment.crop_scale': (0.5, 1.0),
    'augment.crop_ratio': (0.5, 2.0),
    'augment.shift': 2,
    'augment.shift_border': 'reflect',
    'augment.flip': True,
    'augment.alternating_flip': True,
    'augment.translate': 0.1,
    'augment.rotate': 10.0,
    'augment.shear': 5.0,
    'augment.brightness': 0.4,
    'augment.contrast': 0.4,
    'augment.saturation': 0.4,
    'augment.hue': 0.1,
    'augment.policy': 'randaugment',
    'augment.num_operations': 3,
    'augment.magnitude': 7.0,
    'augment.magnitude_std': 0.5,
    'augment.erase': 0.25,
    'augment.gain': 6.0,
    'augment.noise': 0.01,
    'augment.time_masks': 2,
    'augment.time_mask_width': 10,
    'augment.frequency_masks': 2,
    'augment.frequency_mask_width': 4,
    'augment.mixup': 0.2,
    'augment.cutmix': 1.0,
    'optimizer.name': 'adam',
    'optimizer.learning_rate': 0.2,
    'optimizer.momentum': 0.5,
    'optimizer.nesterov': True,
    'optimizer.second_momentum': 0.99,
    'optimizer.epsilon': 1e-6,
    'optimizer.weight_decay': 0.1,
    'optimizer.decay_exclude': ('bias',),
    'optimizer.clip_norm': 1.0,
    'optimizer.clip_adaptive': 0.01,
    'optimizer.trust_coefficient': 0.01,
    'optimizer.other': 'adamw',
    'optimizer.other_momentum': 0.8,
    'optimizer.newton_schulz': 3,
    'optimizer.unit_filters': True,
    'optimizer.sam': 0.05,
    'optimizer.frozen': ('stem.*', 'stage[12].*'),
    'optimizer.unfreeze': ('stage4.*@10%', '.*@2ep'),
    'optimizer.rates': ('head.*=10',),
    'optimizer.layer_decay': 0.75,
    'optimizer.accumulate': 2,
    'schedule.name': 'cosine',
    'schedule.warmup': '5%',
    'schedule.start': 0.1,
    'schedule.boundaries': ('50%', '75%'),
    'schedule.every': '2ep',
    'schedule.factor': 0.2,
    'schedule.power': 0.9,
    'schedule.final': 0.1,
    'ema.decay': 0.99,
    'ema.every': 2,
    'ema.warmup': True,
    'distill.teacher': 'runs/teacher',
    'distill.weight': 0.9,
    'distill.temperature': 4.0,
    'train.duration': '100',
    'eval.every': '2ep',
    'eval.metric': 'loss',
    'eval.views': 'flip',
    'eval.recalibrate': 10,
    'checkpoint.every': '1e6ex',
    'checkpoint.keep': 3,
    'log.every': '0',
    'mesh.data': 4,
    'mesh.fsdp': 2,
    'init_from': 'runs/other',
    'allow_partial': 'fc.*,aux.*',
    'seed': 1,
    'deterministic': True,
}

WRONG = {
    int: ('1', 1.5, True, None),
    float: ('1', True, None, math.nan, math.inf),
    bool: ('true', 1, None),
    str: (1, None, ('a',)),
    dict[str, Any]: ('a', None, ['a']),
    tuple[float, ...]: (0.5, ('a',), None),
    tuple[str, ...]: ('a', (1,), None),
    Optional[str]: (1, ('a',)),
    Optional[int]: ('1', 1.5, True),
    Optional[float]: ('1', True, math.nan),
    Optional[bool]: ('true', 1),
    Optional[tuple[int, int]]: (8, (8,), (8, 8, 8), (8, 1.5), '8,8'),
}

RULES = [
    ({'model.dtype': 'float31'}, "unknown config.model.dtype 'float31'; did you mean 'float32'?"),
    ({'model.param_dtype': 'float16'}, "unknown config.model.param_dtype 'float16'; did you mean 'bfloat16'?"),
    ({'model.conv': 'plane'}, "unknown config.model.conv 'plane'; did you mean 'plain'?"),
    ({'optimizer.name': 'adm'}, "unknown config.optimizer.name 'adm'; did you mean 'adam'?"),
    (
        {'schedule.name': 'zzz'},
        "unknown config.schedule.name 'zzz'; "
        'there are: constant, cosine, exponential, inverse_sqrt, linear, one_cycle, polynomial, step',
    ),
    ({'data.batch_size': 0}, 'config.data.batch_size=0: must be at least 1'),
    ({'data.workers': -1}, 'config.data.workers=-1: must be at least 0'),
    ({'augment.shift': -1}, 'config.augment.shift=-1: must be at least 0'),
    ({'optimizer.learning_rate': -0.1}, 'config.optimizer.learning_rate=-0.1: must be at least 0'),
    ({'optimizer.weight_decay': -0.1}, 'config.optimizer.weight_decay=-0.1: must be at least 0'),
    ({'optimizer.accumulate': 0}, 'config.optimizer.accumulate=0: must be at least 1'),
    ({'ema.every': 0}, 'config.ema.every=0: must be at least 1'),
    ({'checkpoint.keep': 0}, 'config.checkpoint.keep=0: must be at least 1'),
    ({'mesh.data': 0}, 'config.mesh.data=0: must be at least 1'),
    ({'mesh.fsdp': 0}, 'config.mesh.fsdp=0: must be at least 1'),
    ({'seed': -1}, 'config.seed=-1: must be at least 0'),
    ({'seed': 2**32}, 'config.seed=4294967296: must be below 2**32'),
    ({'train.duration': '5%'}, "config.train.duration='5%': a share of itself; give steps, ep or ex"),
    (
        {'data.batch_size': 9, 'optimizer.accumulate': 2},
        'config.optimizer.accumulate=2: does not divide config.data.batch_size=9',
    ),
    ({'data.examples_per_class': 0}, 'config.data.examples_per_class=0: must be at least 1'),
    ({'data.split_seed': -1}, 'config.data.split_seed=-1: must be at least 0'),
    ({'data.resize_side': 0}, 'config.data.resize_side=0: must be at least 1'),
    ({'data.sample_rate': 0}, 'config.data.sample_rate=0: must be at least 1'),
    ({'data.length': 0}, 'config.data.length=0: must be at least 1'),
    ({'data.max_unreadable': -1}, 'config.data.max_unreadable=-1: must be at least 0'),
    ({'model.ghost_batch': 0}, 'config.model.ghost_batch=0: must be at least 1'),
    ({'spectrogram.bands': -1}, 'config.spectrogram.bands=-1: must be at least 0'),
    ({'spectrogram.window': 1}, 'config.spectrogram.window=1: must be at least 2'),
    ({'spectrogram.hop': 0}, 'config.spectrogram.hop=0: must be at least 1'),
    ({'spectrogram.low': -0.5}, 'config.spectrogram.low=-0.5: must be at least 0'),
    ({'spectrogram.floor': -0.5}, 'config.spectrogram.floor=-0.5: must be at least 0'),
    ({'augment.repeats': 0}, 'config.augment.repeats=0: must be at least 1'),
    ({'augment.translate': -0.5}, 'config.augment.translate=-0.5: must be at least 0'),
    ({'augment.rotate': -0.5}, 'config.augment.rotate=-0.5: must be at least 0'),
    ({'augment.shear': -0.5}, 'config.augment.shear=-0.5: must be at least 0'),
    ({'augment.brightness': -0.5}, 'config.augment.brightness=-0.5: must be at least 0'),
    ({'augment.contrast': -0.5}, 'config.augment.contrast=-0.5: must be at least 0'),
    ({'augment.saturation': -0.5}, 'config.augment.saturation=-0.5: must be at least 0'),
    ({'augment.hue': -0.5}, 'config.augment.hue=-0.5: must be at least 0'),
    ({'augment.num_operations': -1}, 'config.augment.num_operations=-1: must be at least 0'),
    ({'augment.magnitude': -0.5}, 'config.augment.magnitude=-0.5: must be at least 0'),
    ({'augment.magnitude_std': -0.5}, 'config.augment.magnitude_std=-0.5: must be at least 0'),
    ({'augment.erase': -0.5}, 'config.augment.erase=-0.5: must be at least 0'),
    ({'augment.gain': -0.5}, 'config.augment.gain=-0.5: must be at least 0'),
    ({'augment.noise': -0.5}, 'config.augment.noise=-0.5: must be at least 0'),
    ({'augment.time_masks': -1}, 'config.augment.time_masks=-1: must be at least 0'),
    ({'augment.time_mask_width': -1}, 'config.augment.time_mask_width=-1: must be at least 0'),
    ({'augment.frequency_masks': -1}, 'config.augment.frequency_masks=-1: must be at least 0'),
    ({'augment.frequency_mask_width': -1}, 'config.augment.frequency_mask_width=-1: must be at least 0'),
    ({'augment.mixup': -0.5}, 'config.augment.mixup=-0.5: must be at least 0'),
    ({'augment.cutmix': -0.5}, 'config.augment.cutmix=-0.5: must be at least 0'),
    ({'optimizer.trust_coefficient': -0.5}, 'config.optimizer.trust_coefficient=-0.5: must be at least 0'),
    ({'optimizer.newton_schulz': 0}, 'config.optimizer.newton_schulz=0: must be at least 1'),
    (
        {'optimizer.name': 'lamb', 'optimizer.nesterov': True},
        'config.optimizer.nesterov: lamb has no such form; leave it out',
    ),
    ({'schedule.start': -0.5}, 'config.schedule.start=-0.5: must be at least 0'),
    ({'schedule.power': -0.5}, 'config.schedule.power=-0.5: must be at least 0'),
    ({'eval.recalibrate': -1}, 'config.eval.recalibrate=-1: must be at least 0'),
    ({'augment.translate': 1.5}, 'config.augment.translate=1.5: must be at most 1'),
    ({'augment.hue': 1.0}, 'config.augment.hue=1.0: must be at most 0.5'),
    ({'augment.erase': 1.5}, 'config.augment.erase=1.5: must be at most 1'),
    ({'model.batch_norm': 'goast'}, "unknown config.model.batch_norm 'goast'; did you mean 'ghost'?"),
    ({'data.resize': 'strech'}, "unknown config.data.resize 'strech'; did you mean 'stretch'?"),
    ({'augment.shift_border': 'zzz'}, "unknown config.augment.shift_border 'zzz'; there are: reflect, zero"),
    ({'augment.policy': 'randaug'}, "unknown config.augment.policy 'randaug'; did you mean 'randaugment'?"),
    ({'optimizer.other': 'adam'}, "unknown config.optimizer.other 'adam'; did you mean 'adamw'?"),
    ({'eval.views': 'flop'}, "unknown config.eval.views 'flop'; did you mean 'flip'?"),
    ({'data.test_size': (0, 8)}, 'config.data.test_size=(0, 8): sides must be at least 1'),
    ({'data.channels': 2}, 'config.data.channels=2: give 1 (grey) or 3 (colour)'),
    ({'optimizer.clip_adaptive': 0.0}, 'config.optimizer.clip_adaptive=0.0: must be above 0; none turns it off'),
    ({'optimizer.sam': -0.1}, 'config.optimizer.sam=-0.1: must be above 0; none turns it off'),
    ({'optimizer.layer_decay': 0.0}, 'config.optimizer.layer_decay=0.0: must be above 0; none turns it off'),
    ({'distill.weight': 1.5}, 'config.distill.weight=1.5: must be in [0, 1]'),
    ({'distill.temperature': 0.0}, 'config.distill.temperature=0.0: must be above 0'),
    (
        {'augment.crop_scale': (0.5,)},
        'config.augment.crop_scale=(0.5,): give two positive numbers, from and to, at most 1',
    ),
    (
        {'augment.crop_scale': (0.5, 1.5)},
        'config.augment.crop_scale=(0.5, 1.5): give two positive numbers, from and to, at most 1',
    ),
    (
        {'augment.crop_ratio': (2.0, 1.0)},
        'config.augment.crop_ratio=(2.0, 1.0): give two positive numbers, from and to',
    ),
    ({'augment.crop_ratio': ()}, 'config.augment.crop_ratio: give two numbers'),
    (
        {'optimizer.frozen': ('b(',)},
        "config.optimizer.frozen='b(': is no regular expression (missing ), unterminated subpattern at position 1)",
    ),
    (
        {'optimizer.rates': ('b(=2',)},
        "config.optimizer.rates='b(': is no regular expression (missing ), unterminated subpattern at position 1)",
    ),
    *(
        ({'optimizer.rates': (entry,)}, f"config.optimizer.rates={entry!r}: write 'REGEX=FACTOR', such as 'head.*=10'")
        for entry in ('head', '=2', 'head=', 'head=nan', 'head=ten')
    ),
    (
        {'optimizer.unfreeze': ('head',)},
        "config.optimizer.unfreeze='head': write 'REGEX@DURATION', such as 'stage4.*@10%'",
    ),
    (
        {'optimizer.unfreeze': ('head@ten',)},
        "config.optimizer.unfreeze='ten': not a duration; write '2000' (steps), '90ep', '1e6ex' or '5%'",
    ),
    ({'data.mean': (0.5,)}, 'config.data.std: give one positive number for each of config.data.mean'),
    (
        {'data.mean': (0.5,), 'data.std': (0.0,)},
        'config.data.std: give one positive number for each of config.data.mean',
    ),
    ({'data.image_size': (8, 0)}, 'config.data.image_size=(8, 0): sides must be at least 1'),
    ({'ema.decay': 1.0}, 'config.ema.decay=1.0: must be in [0, 1)'),
    ({'ema.decay': -0.1}, 'config.ema.decay=-0.1: must be in [0, 1)'),
    ({'optimizer.clip_norm': 0.0}, 'config.optimizer.clip_norm=0.0: must be above 0; none turns it off'),
    (
        {'optimizer.name': 'adam', 'optimizer.nesterov': True, 'optimizer.momentum': 0.0},
        'config.optimizer.nesterov: needs config.optimizer.momentum above 0',
    ),
    (
        {'allow_partial': 'fc.*,b('},
        "config.allow_partial='b(': is no regular expression (missing ), unterminated subpattern at position 1)",
    ),
    *(
        (
            {path: ('10', 'ten') if path == 'schedule.boundaries' else 'ten'},
            f"config.{path}='ten': not a duration; write '2000' (steps), '90ep', '1e6ex' or '5%'",
        )
        for path in (
            'train.duration',
            'schedule.warmup',
            'schedule.boundaries',
            'schedule.every',
            'eval.every',
            'checkpoint.every',
            'log.every',
        )
    ),
]


def changed(settings):
    config = Experiment()
    for path, value in settings.items():
        configuration.set_value(config, path, copy.deepcopy(value))
    return config


def text(config):
    return json.dumps(configuration.to_dict(config), sort_keys=True)


@dataclasses.dataclass
class Network:
    num_outputs: int
    sizes: tuple[int, ...] = (1, 2)
    norm: str = 'batch'
    rate: float = 0.5
    depth: Optional[int] = 3
    bias: bool | None = None


def complete(options, defaults=None):
    return configuration.complete_options('model net', Network, defaults or {}, options)


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


def test_the_default_and_all_other_values_together_are_valid():
    configuration.validate(Experiment())
    configuration.validate(changed(OTHERS))


@pytest.mark.parametrize(('settings', 'message'), RULES, ids=[str(settings) for settings, _ in RULES])
def test_validate_names_the_field_that_breaks_a_rule(settings, message):
    with pytest.raises(InputError) as caught:
        configuration.validate(changed(settings))
    assert str(caught.value) == message


def test_every_rule_of_the_tables_is_among_those_that_are_tested():
    tabled = {*configuration.CHOICES, *configuration.AT_LEAST, *configuration.DURATIONS}
    assert tabled <= {path for settings, _ in RULES for path in settings}


def test_the_bounds_themselves_are_valid():
    configuration.validate(
        changed(
            {
                **configuration.AT_LEAST,
                'optimizer.learning_rate': 0.0,
                'optimizer.weight_decay': 0.0,
                'ema.decay': 0.0,
                'data.image_size': (1, 1),
            }
        )
    )
    configuration.validate(changed({'seed': 2**32 - 1}))


@pytest.mark.parametrize('path', PATHS)
def test_a_value_of_another_type_is_refused_by_its_path(path):
    for value in WRONG[PATHS[path]]:
        with pytest.raises(InputError) as caught:
            configuration.validate(changed({path: value}))
        assert str(caught.value).startswith(f'config.{path}={value!r}: ')


@pytest.mark.parametrize('path', PATHS)
def test_a_misspelt_attribute_is_refused_with_the_nearest_field(path):
    with pytest.raises(InputError) as caught:
        configuration.validate(changed({f'{path}x': configuration.get(Experiment(), path)}))
    assert str(caught.value) == f"unknown field 'config.{path}x'; did you mean 'config.{path}'?"


def test_a_part_that_is_replaced_by_a_value_is_refused():
    with pytest.raises(InputError, match=r"unknown field 'config\.model'; did you mean 'config\.model\.name'\?"):
        configuration.validate(changed({'model': 'lenet'}))


def test_validate_brings_values_into_their_types():
    config = changed({'optimizer.learning_rate': 1, 'data.image_size': [8, 8], 'ema.decay': 0})
    configuration.validate(config)
    values = config.optimizer.learning_rate, config.data.image_size, config.ema.decay
    assert values == (1.0, (8, 8), 0.0)
    assert [type(value) for value in values] == [float, tuple, float]


@pytest.mark.parametrize(
    ('value', 'annotation', 'expected'),
    [
        (1, float, 1.0),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([[1, 2], [3]], tuple[tuple[int, ...], ...], ((1, 2), (3,))),
        ([8, 'a'], tuple[int, str], (8, 'a')),
        (None, Optional[int], None),
        ('none', Optional[int], None),
        (None, int | None, None),
        ('none', str, 'none'),
        ((), tuple[int, ...], ()),
        ({'a': 1}, dict[str, Any], {'a': 1}),
        ([1], Any, [1]),
    ],
)
def test_conform_gives_the_value_in_the_type(value, annotation, expected):
    conformed = configuration.conform(value, annotation)
    assert conformed == expected
    assert type(conformed) is type(expected)


@pytest.mark.parametrize(
    ('value', 'annotation', 'message'),
    [
        (True, int, 'True is not int'),
        (1.0, int, '1.0 is not int'),
        (1, bool, '1 is not bool'),
        (math.inf, float, 'inf is not float'),
        ('1', Optional[float], "'1' is not float"),
        ((1, 2, 3), tuple[int, int], r'\(1, 2, 3\) is not tuple\[int, int\]'),
        ('ab', tuple[str, ...], r"'ab' is not tuple\[str, ...\]"),
        ([('a', 1)], dict[str, Any], r'is not dict\[str, typing.Any\]'),
    ],
)
def test_conform_refuses_what_cannot_be_the_type(value, annotation, message):
    with pytest.raises(TypeError, match=message):
        configuration.conform(value, annotation)


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
        configuration.validate(changed({'eval.every': duration}))


@pytest.mark.parametrize('path', PATHS)
def test_every_field_survives_json(path):
    extra = {'data.std': (0.25,)} if path == 'data.mean' else {'data.mean': (0.5,)} if path == 'data.std' else {}
    config = changed({path: OTHERS[path], **extra})
    again = configuration.from_dict(json.loads(json.dumps(configuration.to_dict(config))))
    assert again == config
    assert configuration.differences(config, again) == {}
    assert repr(again) == repr(config)  # types too


def test_from_dict_does_not_share_the_options():
    values = configuration.to_dict(changed({'model.options': {'a': 1}}))
    configuration.from_dict(values).model.options['a'] = 2
    assert values['model']['options'] == {'a': 1}


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (
            {'optimizer': {'learning_rat': 0.1}},
            "unknown field of the configuration 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?",
        ),
        ({'sede': 1}, "unknown field of the configuration 'sede'; did you mean 'seed'?"),
        ({'seed': '1'}, "config.seed='1': '1' is not int"),
    ],
)
def test_from_dict_refuses_what_does_not_fit(values, message):
    with pytest.raises(InputError) as caught:
        configuration.from_dict(values)
    assert str(caught.value) == message


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


def test_options_are_completed_from_the_defaults_and_the_class():
    assert complete({}) == {'sizes': (1, 2), 'norm': 'batch', 'rate': 0.5, 'depth': 3, 'bias': None}
    assert complete({}, {'rate': 0.1})['rate'] == 0.1
    assert complete({'rate': 0.2}, {'rate': 0.1})['rate'] == 0.2


def test_options_are_brought_into_their_types():
    completed = complete({'sizes': [3], 'rate': 1, 'depth': None, 'norm': 'none'})
    assert completed == {'sizes': (3,), 'norm': 'none', 'rate': 1.0, 'depth': None, 'bias': None}
    assert type(completed['rate']) is float
    assert complete({'depth': 'none', 'bias': True}) == complete({'depth': None, 'bias': True})


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'nrom': 'batch'}, "unknown option of model net 'nrom'; did you mean 'norm'?"),
        ({'num_outputs': 3}, "unknown option of model net 'num_outputs'; "),
        ({'sizes': 3}, 'option sizes of model net: 3 is not tuple[int, ...]'),
        ({'sizes': (1.5,)}, 'option sizes of model net: 1.5 is not int'),
        ({'rate': None}, 'option rate of model net: None is not float'),
        ({'rate': '1'}, "option rate of model net: '1' is not float"),
        ({'norm': 1}, 'option norm of model net: 1 is not str'),
        ({'bias': 1}, 'option bias of model net: 1 is not bool'),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        complete(options)
    assert str(caught.value).startswith(message)


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


@pytest.mark.parametrize(
    ('name', 'hint'),
    [('trian', "did you mean 'train'?"), ('', 'there are: data, train'), ('zzz', 'there are: data, train')],
)
def test_the_nearest_name_is_suggested_or_all_are_listed(name, hint):
    assert str(configuration.nearest('verb', name, ['train', 'data'])) == f'unknown verb {name!r}; {hint}'
