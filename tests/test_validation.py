import dataclasses
import json
import math
from typing import Any, Optional

import pytest
from changed_config import OTHERS, PATHS, changed

from cnn import config as configuration
from cnn import validation
from cnn.config import Experiment
from cnn.errors import InputError

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


@dataclasses.dataclass
class Network:
    num_outputs: int
    sizes: tuple[int, ...] = (1, 2)
    norm: str = 'batch'
    rate: float = 0.5
    depth: Optional[int] = 3
    bias: bool | None = None


def complete(options, defaults=None):
    return validation.complete_options('model net', Network, defaults or {}, options)


def test_the_default_and_all_other_values_together_are_valid():
    validation.validate(Experiment())
    validation.validate(changed(OTHERS))


@pytest.mark.parametrize(('settings', 'message'), RULES, ids=[str(settings) for settings, _ in RULES])
def test_validate_names_the_field_that_breaks_a_rule(settings, message):
    with pytest.raises(InputError) as caught:
        validation.validate(changed(settings))
    assert str(caught.value) == message


def test_every_rule_of_the_tables_is_among_those_that_are_tested():
    tabled = {*validation.CHOICES, *validation.AT_LEAST, *validation.DURATIONS}
    assert tabled <= {path for settings, _ in RULES for path in settings}


def test_the_bounds_themselves_are_valid():
    validation.validate(
        changed(
            {
                **validation.AT_LEAST,
                'optimizer.learning_rate': 0.0,
                'optimizer.weight_decay': 0.0,
                'ema.decay': 0.0,
                'data.image_size': (1, 1),
            }
        )
    )
    validation.validate(changed({'seed': 2**32 - 1}))


@pytest.mark.parametrize('path', PATHS)
def test_a_value_of_another_type_is_refused_by_its_path(path):
    for value in WRONG[PATHS[path]]:
        with pytest.raises(InputError) as caught:
            validation.validate(changed({path: value}))
        assert str(caught.value).startswith(f'config.{path}={value!r}: ')


@pytest.mark.parametrize('path', PATHS)
def test_a_misspelt_attribute_is_refused_with_the_nearest_field(path):
    with pytest.raises(InputError) as caught:
        validation.validate(changed({f'{path}x': configuration.get(Experiment(), path)}))
    assert str(caught.value) == f"unknown field 'config.{path}x'; did you mean 'config.{path}'?"


def test_a_part_that_is_replaced_by_a_value_is_refused():
    with pytest.raises(InputError, match=r"unknown field 'config\.model'; did you mean 'config\.model\.name'\?"):
        validation.validate(changed({'model': 'lenet'}))


def test_validate_brings_values_into_their_types():
    config = changed({'optimizer.learning_rate': 1, 'data.image_size': [8, 8], 'ema.decay': 0})
    validation.validate(config)
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
    conformed = validation.conform(value, annotation)
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
        validation.conform(value, annotation)


@pytest.mark.parametrize('path', PATHS)
def test_every_field_survives_json(path):
    extra = {'data.std': (0.25,)} if path == 'data.mean' else {'data.mean': (0.5,)} if path == 'data.std' else {}
    config = changed({path: OTHERS[path], **extra})
    again = validation.from_dict(json.loads(json.dumps(configuration.to_dict(config))))
    assert again == config
    assert configuration.differences(config, again) == {}
    assert repr(again) == repr(config)  # types too


def test_from_dict_does_not_share_the_options():
    values = configuration.to_dict(changed({'model.options': {'a': 1}}))
    validation.from_dict(values).model.options['a'] = 2
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
        validation.from_dict(values)
    assert str(caught.value) == message


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
