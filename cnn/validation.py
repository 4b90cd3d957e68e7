"""Checks of what a user may set: types, choices, bounds and combinations of fields, each refused by name."""

import ast
import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from cnn.config import Experiment, field_paths, get, set_value, steps
from cnn.errors import InputError, nearest


def literal(text: str) -> Any:
    """What the text of an option says: a Python literal, also with lower-case true and false; else it is a string."""
    if text in ('true', 'false'):
        return text == 'true'
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError):
        return text


def conform(value: Any, annotation: Any) -> Any:
    """`value` as `annotation` has it: whole numbers become floats, lists become tuples, 'none' None where that may be.

    Raises TypeError where it can't be that type.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value in (None, 'none') and type(None) in arguments:
            return None
        (annotation,) = (argument for argument in arguments if argument is not type(None))
        return conform(value, annotation)
    if origin is tuple and isinstance(value, (tuple, list)):
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) == len(value):
            return tuple(map(conform, value, arguments))
    elif origin is dict and isinstance(value, dict):
        return value
    elif annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif annotation is Any or (isinstance(annotation, type) and type(value) is annotation):
        return value
    raise TypeError(f'{value!r} is not {type_name(annotation)}')


def type_name(annotation: Any) -> str:
    """How a type is written in a message: int, tuple[int, int], float or none, ..."""
    arguments = typing.get_args(annotation)
    if type(None) in arguments:
        return ' or '.join(type_name(kind) for kind in arguments if kind is not type(None)) + ' or none'
    return annotation.__name__ if isinstance(annotation, type) and not arguments else str(annotation)


def complete_options(kind: str, cls: Any, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a user may set on a model or task, with `defaults` and then `options` over those of the class.

    Raises InputError for an option that is no such field or has another type; `kind` names the owner in the message.
    """
    reserved = ('num_outputs', 'dtype', 'param_dtype', 'parent', 'name')
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init and field.name not in reserved}
    complete = {name: field.default for name, field in fields.items()} | dict(defaults)
    for name, value in options.items():
        if name not in fields:
            raise nearest(f'option of {kind}', name, fields)
        try:
            complete[name] = conform(value, fields[name].type)
        except TypeError as error:
            raise InputError(f'option {name} of {kind}: {error}') from None
    return complete


CHOICES: dict[str, tuple[str, ...]] = {
    'model.dtype': ('float32', 'bfloat16', 'float16', 'float64'),
    'model.param_dtype': ('float32', 'bfloat16', 'float64'),
    'model.conv': ('auto', 'portable', 'plain'),
    'model.batch_norm': ('global', 'device', 'ghost', 'frozen'),
    'data.resize': ('stretch', 'crop'),
    'augment.shift_border': ('zero', 'reflect'),
    'augment.policy': (
        'none',
        'randaugment',
        'trivialaugment',
        'autoaugment_imagenet',
        'autoaugment_cifar10',
        'autoaugment_svhn',
    ),
    'optimizer.name': ('sgd', 'adam', 'adamw', 'lamb', 'lars', 'rmsprop', 'lion', 'muon'),
    'optimizer.other': ('sgd', 'adamw'),
    'schedule.name': (
        'constant',
        'cosine',
        'linear',
        'polynomial',
        'step',
        'exponential',
        'inverse_sqrt',
        'one_cycle',
    ),
    'eval.views': ('one', 'flip', 'shift_flip'),
}
AT_LEAST: dict[str, float] = {
    'data.batch_size': 1,
    'data.workers': 0,
    'data.examples_per_class': 1,
    'data.split_seed': 0,
    'data.resize_side': 1,
    'data.sample_rate': 1,
    'data.length': 1,
    'data.max_unreadable': 0,
    'model.ghost_batch': 1,
    'spectrogram.bands': 0,
    'spectrogram.window': 2,
    'spectrogram.hop': 1,
    'spectrogram.low': 0,
    'spectrogram.floor': 0,
    'augment.repeats': 1,
    'augment.shift': 0,
    'augment.translate': 0,
    'augment.rotate': 0,
    'augment.shear': 0,
    'augment.brightness': 0,
    'augment.contrast': 0,
    'augment.saturation': 0,
    'augment.hue': 0,
    'augment.num_operations': 0,
    'augment.magnitude': 0,
    'augment.magnitude_std': 0,
    'augment.erase': 0,
    'augment.gain': 0,
    'augment.noise': 0,
    'augment.time_masks': 0,
    'augment.time_mask_width': 0,
    'augment.frequency_masks': 0,
    'augment.frequency_mask_width': 0,
    'augment.mixup': 0,
    'augment.cutmix': 0,
    'optimizer.learning_rate': 0,
    'optimizer.weight_decay': 0,
    'optimizer.accumulate': 1,
    'optimizer.trust_coefficient': 0,
    'optimizer.newton_schulz': 1,
    'schedule.start': 0,
    'schedule.power': 0,
    'eval.recalibrate': 0,
    'ema.every': 1,
    'checkpoint.keep': 1,
    'mesh.data': 1,
    'mesh.fsdp': 1,
    'seed': 0,
}
AT_MOST: dict[str, float] = {'augment.translate': 1, 'augment.hue': 0.5, 'augment.erase': 1}
DURATIONS = ('train.duration', 'schedule.warmup', 'schedule.every', 'eval.every', 'checkpoint.every', 'log.every')


def validate(config: Experiment) -> None:
    """Checks every field by itself and brings it into its type. Raises InputError naming the field."""
    paths = field_paths(Experiment())
    for path in _attributes(config):
        if path not in paths:
            raise nearest('field', f'config.{path}', [f'config.{known}' for known in paths])
    for path, annotation in paths.items():
        value = get(config, path)
        try:
            set_value(config, path, conform(value, annotation))
        except TypeError as error:
            raise InputError(f'config.{path}={value!r}: {error}') from None
    for path, choices in CHOICES.items():
        if get(config, path) not in choices:
            raise nearest(f'config.{path}', get(config, path), choices)
    for path, bound in AT_LEAST.items():
        value = get(config, path)
        if value is not None and value < bound:
            raise InputError(f'config.{path}={value}: must be at least {bound:g}')
    for path in DURATIONS:
        _check_duration(path, get(config, path))
    for boundary in config.schedule.boundaries:
        _check_duration('schedule.boundaries', boundary)
    if config.train.duration.endswith('%'):
        raise InputError(f'config.train.duration={config.train.duration!r}: a share of itself; give steps, ep or ex')
    _validate_combinations(config)


def _attributes(config: Any, prefix: str = '') -> Iterator[str]:
    """The paths of all that was set, of fields that do not exist too."""
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            yield from _attributes(value, f'{prefix}{name}.')
        else:
            yield prefix + name


def _check_duration(path: str, text: str) -> None:
    try:
        steps(text, batch_size=1, num_examples=1, total=1)
    except ValueError:
        raise InputError(
            f"config.{path}={text!r}: not a duration; write '2000' (steps), '90ep', '1e6ex' or '5%'"
        ) from None


def _check_range(path: str, values: tuple[float, ...], most: float) -> None:
    if values and (len(values) != 2 or not 0 < values[0] <= values[1] <= most):
        bound = f', at most {most:g}' if math.isfinite(most) else ''
        raise InputError(f'config.{path}={values}: give two positive numbers, from and to{bound}')


def _check_pattern(path: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f'config.{path}={pattern!r}: is no regular expression ({error})') from None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _validate_combinations(config: Experiment) -> None:
    if config.seed >= 2**32:
        raise InputError(f'config.seed={config.seed}: must be below 2**32')
    if config.data.batch_size % config.optimizer.accumulate:
        raise InputError(
            f'config.optimizer.accumulate={config.optimizer.accumulate}: '
            f'does not divide config.data.batch_size={config.data.batch_size}'
        )
    if len(config.data.mean) != len(config.data.std) or any(std <= 0 for std in config.data.std):
        raise InputError('config.data.std: give one positive number for each of config.data.mean')
    if config.data.image_size and min(config.data.image_size) < 1:
        raise InputError(f'config.data.image_size={config.data.image_size}: sides must be at least 1')
    if config.data.test_size and min(config.data.test_size) < 1:
        raise InputError(f'config.data.test_size={config.data.test_size}: sides must be at least 1')
    if config.data.channels not in (None, 1, 3):
        raise InputError(f'config.data.channels={config.data.channels}: give 1 (grey) or 3 (colour)')
    if config.ema.decay is not None and not 0 <= config.ema.decay < 1:
        raise InputError(f'config.ema.decay={config.ema.decay}: must be in [0, 1)')
    for path in ('optimizer.clip_norm', 'optimizer.clip_adaptive', 'optimizer.sam', 'optimizer.layer_decay'):
        value = get(config, path)
        if value is not None and value <= 0:
            raise InputError(f'config.{path}={value}: must be above 0; none turns it off')
    for path, most in AT_MOST.items():
        if get(config, path) > most:
            raise InputError(f'config.{path}={get(config, path)}: must be at most {most:g}')
    if not 0 <= config.distill.weight <= 1:
        raise InputError(f'config.distill.weight={config.distill.weight}: must be in [0, 1]')
    if config.distill.temperature <= 0:
        raise InputError(f'config.distill.temperature={config.distill.temperature}: must be above 0')
    _check_range('augment.crop_scale', config.augment.crop_scale, 1)
    _check_range('augment.crop_ratio', config.augment.crop_ratio, math.inf)
    if not config.augment.crop_ratio:
        raise InputError('config.augment.crop_ratio: give two numbers')
    for pattern in (config.allow_partial or '').split(','):
        _check_pattern('allow_partial', pattern)
    for pattern in config.optimizer.frozen:
        _check_pattern('optimizer.frozen', pattern)
    for entry in config.optimizer.rates:
        pattern, _, factor = entry.rpartition('=')
        _check_pattern('optimizer.rates', pattern)
        if not pattern or not _is_number(factor):
            raise InputError(f"config.optimizer.rates={entry!r}: write 'REGEX=FACTOR', such as 'head.*=10'")
    for entry in config.optimizer.unfreeze:
        pattern, _, duration = entry.rpartition('@')
        _check_pattern('optimizer.unfreeze', pattern)
        if not pattern:
            raise InputError(f"config.optimizer.unfreeze={entry!r}: write 'REGEX@DURATION', such as 'stage4.*@10%'")
        _check_duration('optimizer.unfreeze', duration)
    if config.optimizer.nesterov and config.optimizer.momentum == 0:
        raise InputError('config.optimizer.nesterov: needs config.optimizer.momentum above 0')
    if config.optimizer.nesterov and config.optimizer.name in ('lamb', 'rmsprop', 'lion'):
        raise InputError(f'config.optimizer.nesterov: {config.optimizer.name} has no such form; leave it out')


def from_dict(values: Mapping[str, Any]) -> Experiment:
    """The Experiment that `to_dict` wrote. Raises InputError for fields that it does not have."""
    config = Experiment()
    paths = field_paths(config)
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and name not in paths
        flat |= {f'{name}.{key}': item for key, item in value.items()} if nested else {name: value}
    for path, value in flat.items():
        if path not in paths:
            raise nearest('field of the configuration', path, paths)
        if path.endswith('.options'):
            value = {key: _tuples(item) for key, item in value.items()}
        set_value(config, path, value)
    validate(config)
    return config


def _tuples(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
