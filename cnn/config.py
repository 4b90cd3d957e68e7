"""The configuration of an experiment: typed dataclasses, their validation and their fingerprint.

Everything that decides the bits of a run stands here. The classes are plain and mutable because configuration flags set
their fields one by one; `validate` is called once they are set. A field that is `None` (or, in `Augment`, zero) is off.
"""

import ast
import copy
import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional


class InputError(ValueError):
    """The user's mistake: one line that names the input and the remedy."""

    exit_code = 2


class RunFailed(Exception):
    """What ends a run that was asked for rightly, in one line: divergence, a damaged checkpoint, a full disk."""

    exit_code = 1


class RunStopped(Exception):
    """SIGTERM came; the state is saved and the same command resumes."""

    exit_code = 75


def nearest(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the nearest one that does."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    hint = f'did you mean {close[0]!r}?' if close else f'there are: {", ".join(choices) or "none"}'
    return InputError(f'unknown {kind} {name!r}; {hint}')


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one example of a data set is, and how many there are."""

    shapes: Mapping[str, tuple[int, ...]]  # of one example, by field: image, label, boxes, ...
    dtypes: Mapping[str, str]  # NumPy's names
    class_names: Mapping[str, tuple[str, ...]]  # by field: label, box_labels, semantic
    num_examples: Mapping[str, int]  # by split; empty where that is not known yet
    normalized: bool = False  # whether pixels were brought to mean 0 and deviation 1
    sample_rate: int | None = None  # Hz, of `signal`, where it is known


@dataclasses.dataclass
class Model:
    """Which network, by the name of its file in cnn/models and its variant."""

    name: str = 'simple_cnn'
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # fields of the network
    dtype: str = 'float32'  # of the computation
    param_dtype: str = 'float32'  # of the parameters
    batch_norm: str = 'global'  # statistics of: global (the whole batch), device, ghost (ghost_batch examples), frozen
    ghost_batch: int = 32  # examples
    conv: str = 'auto'  # form of the convolutions: auto (the fastest here), portable, plain (XLA's own); for comparison


@dataclasses.dataclass
class Task:
    """What the network is trained for, by the name of a file in cnn/tasks."""

    name: str = 'classification'
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # fields of the task


@dataclasses.dataclass
class Data:
    """Which examples, and how they are fed."""

    name: str = 'digits'
    train_split: str = 'train'
    validation_split: Optional[str] = 'validation'  # chooses the best checkpoint
    test_split: Optional[str] = 'test'  # read once, at the end
    batch_size: int = 128  # over all devices
    classes: tuple[str, ...] = ()  # of the data's classes, those that there are for this run; empty: all
    examples_per_class: Optional[int] = None  # of the training split, chosen by split_seed; None: all
    split_seed: int = 0  # which examples go where, in data that has no splits of its own
    archives: Optional[str] = None  # a directory with official archives, in place of the network
    image_size: Optional[tuple[int, int]] = None  # height, width after resizing; None keeps the size of the data
    test_size: Optional[tuple[int, int]] = None  # the same in evaluation; None: image_size
    resize: str = 'stretch'  # stretch; crop (evaluation: the middle, once the shorter side has resize_side pixels)
    resize_side: Optional[int] = None  # None: 8/7 of the shorter side of the crop, as 256 of 224
    channels: Optional[int] = None  # of images: 1 makes them grey, 3 repeats grey ones; None keeps them
    sample_rate: Optional[int] = None  # Hz, of signals; None: the data's, which must be one
    length: Optional[int] = None  # samples; longer signals are cut, zeros follow shorter ones; None keeps the data's
    mean: tuple[float, ...] = ()  # by channel, of pixels scaled to 0..1; empty leaves them there
    std: tuple[float, ...] = ()
    resident: Optional[bool] = None  # whole splits on the device; None: where they are small
    workers: int = 0  # processes that read; 0 reads in threads of this one
    max_unreadable: int = 10  # files that may be left out since they can't be read; one more ends the run


@dataclasses.dataclass
class Spectrogram:
    """Signals as images [frames, bands, 1] of log power in mel bands."""

    bands: int = 0  # 0: off
    window: int = 256  # samples of a frame
    hop: int = 128  # samples between frames
    low: float = 20.0  # Hz, where the lowest band begins
    high: Optional[float] = None  # Hz, where the highest ends; None: half of the sample rate
    floor: float = 1e-6  # added to the power before the logarithm


@dataclasses.dataclass
class Augment:
    """Operations on training batches, on the device, in this order. Strengths are traced; zero is off."""

    repeats: int = 1  # of each example in a batch, each augmented in its own way (Hoffer et al. 2020)
    crop_scale: tuple[float, ...] = ()  # a crop of this share of the area, from and to, resized to the image's size
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)  # of its width to its height
    shift: int = 0  # at most this many pixels, up, down, left or right; a signal's samples
    shift_border: str = 'zero'  # what comes in: zero, reflect
    flip: bool = False  # left to right, half of the images
    alternating_flip: bool = False  # left to right, in every other epoch, for half of the images in the odd ones
    translate: float = 0.0  # at most this share of the side
    rotate: float = 0.0  # at most so many degrees
    shear: float = 0.0  # at most so many degrees
    brightness: float = 0.0  # colour jitter as torchvision's: a factor in 1 - x .. 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # at most this share of the circle, up to .5
    policy: str = 'none'  # randaugment, trivialaugment, autoaugment_imagenet, autoaugment_cifar10, autoaugment_svhn
    num_operations: int = 2  # of randaugment
    magnitude: float = 9.0  # of randaugment, out of 30
    magnitude_std: float = 0.0  # its standard deviation
    erase: float = 0.0  # the probability that a rectangle is blanked (Zhong et al. 2020)
    gain: float = 0.0  # dB, at most, up or down
    noise: float = 0.0  # standard deviation of noise added to a signal
    time_masks: int = 0  # spans of frames of a spectrogram that are blanked (Park et al. 2019)
    time_mask_width: int = 20  # frames, at most, of each
    frequency_masks: int = 0
    frequency_mask_width: int = 8  # bands, at most, of each
    mixup: float = 0.0  # alpha of the beta distribution (Zhang et al. 2018); with cutmix, half of the batches have each
    cutmix: float = 0.0  # alpha (Yun et al. 2019)


@dataclasses.dataclass
class Optimizer:
    """How gradients change parameters."""

    name: str = (
        'sgd'  # sgd, adam (decay added to the gradient), adamw (decay beside it), lamb, lars, rmsprop, lion, muon
    )
    learning_rate: float = 0.1  # the peak of the schedule
    momentum: float = 0.9  # the first moment of adam, adamw and lamb; beta 1 of lion
    nesterov: bool = False
    second_momentum: float = 0.999  # of adam, adamw, lamb and rmsprop; beta 2 of lion
    epsilon: float = 1e-8  # of adam, adamw, lamb and lars; of rmsprop, inside the root
    weight_decay: float = 0.0
    decay_exclude: tuple[str, ...] = ('bias', 'scale')  # last names of the parameters that do not decay
    clip_norm: Optional[float] = None  # largest norm of the whole gradient
    clip_adaptive: Optional[float] = None  # largest norm of a unit's gradient, as a share of its weights' (Brock 2021)
    trust_coefficient: float = 1e-3  # of lars
    other: str = 'sgd'  # what muon leaves to it: all that is no filter; sgd or adamw
    other_momentum: float = 0.9  # of it
    newton_schulz: int = 5  # iterations of muon
    unit_filters: bool = False  # muon brings each filter to norm 1 in the mean before a step, in place of decay
    sam: Optional[float] = None  # radius of sharpness-aware minimisation (Foret et al. 2021)
    frozen: tuple[str, ...] = ()  # regular expressions of paths, such as 'stage1.*/kernel', that do not learn
    unfreeze: tuple[str, ...] = ()  # 'REGEX@DURATION': frozen paths that learn from then on
    rates: tuple[
        str, ...
    ] = ()  # 'REGEX=FACTOR' on the learning rate of the paths that it matches; the first one counts
    layer_decay: Optional[float] = None  # factor on the learning rate from one stage to the one before it
    accumulate: int = 1  # microbatches a step; the batch is divided, the result is the large batch's


@dataclasses.dataclass
class Schedule:
    """The learning rate over the run, as a factor on optimizer.learning_rate."""

    name: str = 'constant'  # constant, cosine, linear, polynomial, step, exponential, inverse_sqrt, one_cycle
    warmup: str = '0'  # a duration: linear from `start`; one_cycle: a half cosine from 1/25
    start: float = 0.0  # where the warm-up begins
    boundaries: tuple[str, ...] = ()  # durations at which `step` multiplies by `factor`
    every: str = '1ep'  # a duration after which `exponential` multiplies by `factor`, again and again
    factor: float = 0.1
    power: float = 1.0  # of polynomial
    final: float = 0.0  # where cosine, linear, polynomial and one_cycle end


@dataclasses.dataclass
class Ema:
    """An exponential moving average of parameters and batch statistics, used wherever the model is evaluated."""

    decay: Optional[float] = None
    every: int = 1  # steps between updates
    warmup: bool = False  # the decay is at most (1 + updates) / (10 + updates)


@dataclasses.dataclass
class Distill:
    """What a finished run teaches (Hinton et al. 2015)."""

    teacher: Optional[str] = None  # its folder
    weight: float = 0.5  # of the teacher's part of the loss; the labels' has the rest
    temperature: float = 1.0


@dataclasses.dataclass
class Train:
    """How long."""

    duration: str = '20ep'  # '2000' steps, '90ep' epochs, '1e6ex' examples


@dataclasses.dataclass
class Eval:
    """When the validation split is evaluated, and which metric chooses the best checkpoint."""

    every: str = '1ep'
    metric: Optional[str] = None  # None: the task's first
    views: str = 'one'  # over which predictions are averaged: one, flip, shift_flip (six: flips of three places)
    recalibrate: int = 0  # training batches from which the statistics of batch normalisation are taken anew at the end


@dataclasses.dataclass
class Checkpoint:
    """When the state is saved beside the best one, and how many of the last are kept."""

    every: str = '5ep'
    keep: int = 2


@dataclasses.dataclass
class Log:
    """When a row of training metrics is written."""

    every: str = '10'


@dataclasses.dataclass
class Mesh:
    """How devices share the work: data x fsdp devices; each example lives on one, fsdp also divides the state."""

    data: Optional[int] = None  # None: all that fsdp leaves
    fsdp: int = 1


@dataclasses.dataclass
class Experiment:
    """A run is a pure function of this."""

    model: Model = dataclasses.field(default_factory=Model)
    task: Task = dataclasses.field(default_factory=Task)
    data: Data = dataclasses.field(default_factory=Data)
    spectrogram: Spectrogram = dataclasses.field(default_factory=Spectrogram)
    augment: Augment = dataclasses.field(default_factory=Augment)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    ema: Ema = dataclasses.field(default_factory=Ema)
    distill: Distill = dataclasses.field(default_factory=Distill)
    train: Train = dataclasses.field(default_factory=Train)
    eval: Eval = dataclasses.field(default_factory=Eval)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    init_from: Optional[str] = None  # whose weights the run starts from: a run folder, a file, hf:OWNER/NAME
    allow_partial: Optional[str] = None  # regular expressions, with commas between, of names it may lack or have beyond
    seed: int = 0
    deterministic: bool = False  # on GPUs: slower kernels that repeat their bits


def field_paths(config: Any, prefix: str = '') -> dict[str, Any]:
    """The type of each field of a tree of dataclasses, by its dotted path."""
    paths: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            paths |= field_paths(value, f'{prefix}{field.name}.')
        else:
            paths[prefix + field.name] = field.type
    return paths


def get(config: Any, path: str) -> Any:
    """The value at a dotted path."""
    for name in path.split('.'):
        config = getattr(config, name)
    return config


def set_value(config: Any, path: str, value: Any) -> None:
    """Sets the value at a dotted path."""
    *parents, last = path.split('.')
    setattr(get(config, '.'.join(parents)) if parents else config, last, value)


def override(config: Experiment, values: Mapping[str, Any], base: Experiment) -> None:
    """Sets fields, and single options of model and task, by dotted path; `config` is a copy of `base`, changed or not.

    Options belong to a name: another network or task does not take those that the base gives to its own.
    Raises InputError for a field that does not exist.
    """
    paths, options = field_paths(base), {}
    for path, value in values.items():
        part, _, option = path.partition('.options.')
        if option and f'{part}.options' in paths:
            options[part, option] = value
        elif path in ('model.options', 'task.options'):
            raise InputError(f'{path}: set one option at a time, {path}.NAME')
        elif path not in paths:
            raise nearest('field', path, paths)
        else:
            set_value(config, path, value)
    for part in ('model', 'task'):
        if getattr(config, part).name != getattr(base, part).name:
            getattr(config, part).options = {}
    for (part, option), value in options.items():
        getattr(config, part).options[option] = value


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
# A run may be resumed with other values of these; every other difference makes it another run.
RESUMABLE = ('train.duration', 'eval.every', 'checkpoint.every', 'log.every')


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


def steps(text: str, *, batch_size: int, num_examples: int, total: int) -> int:
    """The number of steps in a duration: '2000' steps, '90ep' epochs, '1e6ex' examples, '5%' of `total` steps.

    At least one step unless the duration is zero. Raises ValueError if `text` is none of these.
    """
    units = {'ep': num_examples / batch_size, 'ex': 1 / batch_size, '%': total / 100}
    match = re.fullmatch(r'([0-9]*\.?[0-9]+(?:e[0-9]+)?)(ep|ex|%|)', text)
    amount, unit = (float(match[1]), match[2]) if match else (math.nan, '')
    if not math.isfinite(amount) or (not unit and amount != int(amount)):
        raise ValueError(text)
    return max(round(amount * units.get(unit, 1)), 1 if amount else 0)


COUNTS = ('augment.repeats', 'augment.num_operations', 'augment.time_masks', 'augment.frequency_masks')  # not numbers
Numbers = dict[str, Any]  # by part of the configuration and field; what a compiled program takes as arguments


def split_numbers(config: Experiment) -> tuple[Experiment, Numbers]:
    """Splits a resolved configuration into what decides the compiled program and the numbers that are its arguments.

    The numbers are every float of task options, augmentation, optimizer, schedule, EMA and distillation, the factors of
    optimizer.rates, and the strengths of augmentation that are on. In the first half NaN stands in their place, and in
    that of the durations of optimizer.unfreeze, so that one that is compiled in shows.
    """
    structure, numbers = copy.deepcopy(config), {}
    for part in ('augment', 'optimizer', 'schedule', 'ema', 'distill', 'task'):
        holder = structure.task.options if part == 'task' else vars(getattr(structure, part))
        whole = part == 'augment'
        kinds = (int, float) if whole else (float,)
        numbers[part] = {
            name: value
            for name, value in holder.items()
            if type(value) in kinds and (value or not whole) and f'{part}.{name}' not in COUNTS
        }
        holder.update(dict.fromkeys(numbers[part], math.nan))
    optimizer, rates = structure.optimizer, [entry.rpartition('=') for entry in structure.optimizer.rates]
    numbers['optimizer']['rates'] = [float(factor) for _, _, factor in rates]
    optimizer.rates = tuple(f'{pattern}=nan' for pattern, _, _ in rates)
    optimizer.unfreeze = tuple(f'{entry.rpartition("@")[0]}@nan' for entry in optimizer.unfreeze)
    return structure, numbers


def to_dict(config: Experiment) -> dict[str, Any]:
    """The tree as plain values, as run.json holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


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


def fingerprint(config: Experiment) -> str:
    """Twelve hexadecimal digits that name the configuration."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ: path -> (old, new)."""
    pairs = {path: (get(old, path), get(new, path)) for path in field_paths(old)}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}
