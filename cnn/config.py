"""The configuration of an experiment: typed dataclasses, their validation and their fingerprint.

Everything that decides the bits of a run stands here. The classes are plain and mutable because configuration flags set
their fields one by one; `validate` is called once they are set. A field that is `None` (or, in `Augment`, zero) is off.
"""

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


@dataclasses.dataclass
class Model:
    """Which network, by the name of its file in cnn/models and its variant."""

    name: str = 'simple_cnn'
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # fields of the network
    dtype: str = 'float32'  # of the computation
    param_dtype: str = 'float32'  # of the parameters
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
    image_size: Optional[tuple[int, int]] = None  # height, width after resizing; None keeps the size of the data
    mean: tuple[float, ...] = ()  # by channel, of pixels scaled to 0..1; empty leaves them there
    std: tuple[float, ...] = ()
    resident: Optional[bool] = None  # whole splits on the device; None: where they are small
    workers: int = 0  # processes that read; 0 reads in threads of this one


@dataclasses.dataclass
class Augment:
    """Operations on training batches, on the device, in this order. Strengths are traced; zero is off."""

    shift: int = 0  # at most this many pixels, up, down, left or right; zeros come in
    flip: bool = False  # left to right, half of the images


@dataclasses.dataclass
class Optimizer:
    """How gradients change parameters."""

    name: str = 'sgd'  # sgd, adam (decay added to the gradient), adamw (decay beside it)
    learning_rate: float = 0.1  # the peak of the schedule
    momentum: float = 0.9  # of sgd; the first moment of adam and adamw
    nesterov: bool = False
    second_momentum: float = 0.999  # of adam and adamw
    epsilon: float = 1e-8  # of adam and adamw
    weight_decay: float = 0.0
    decay_exclude: tuple[str, ...] = ('bias', 'scale')  # last names of the parameters that do not decay
    clip_norm: Optional[float] = None  # largest norm of the whole gradient
    accumulate: int = 1  # microbatches a step; the batch is divided, the result is the large batch's


@dataclasses.dataclass
class Schedule:
    """The learning rate over the run, as a factor on optimizer.learning_rate."""

    name: str = 'constant'  # constant, cosine, step, one_cycle
    warmup: str = '0'  # a duration: linear from zero; one_cycle: a half cosine from 1/25
    boundaries: tuple[str, ...] = ()  # durations at which `step` multiplies by `factor`
    factor: float = 0.1
    final: float = 0.0  # where cosine and one_cycle end


@dataclasses.dataclass
class Ema:
    """An exponential moving average of parameters and batch statistics, used wherever the model is evaluated."""

    decay: Optional[float] = None
    every: int = 1  # steps between updates


@dataclasses.dataclass
class Train:
    """How long."""

    duration: str = '20ep'  # '2000' steps, '90ep' epochs, '1e6ex' examples


@dataclasses.dataclass
class Eval:
    """When the validation split is evaluated, and which metric chooses the best checkpoint."""

    every: str = '1ep'
    metric: Optional[str] = None  # None: the task's first


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
    augment: Augment = dataclasses.field(default_factory=Augment)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    ema: Ema = dataclasses.field(default_factory=Ema)
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
    'optimizer.name': ('sgd', 'adam', 'adamw'),
    'schedule.name': ('constant', 'cosine', 'step', 'one_cycle'),
}
AT_LEAST: dict[str, float] = {
    'data.batch_size': 1,
    'data.workers': 0,
    'augment.shift': 0,
    'optimizer.learning_rate': 0,
    'optimizer.weight_decay': 0,
    'optimizer.accumulate': 1,
    'ema.every': 1,
    'checkpoint.keep': 1,
    'mesh.data': 1,
    'mesh.fsdp': 1,
    'seed': 0,
}
DURATIONS = ('train.duration', 'schedule.warmup', 'eval.every', 'checkpoint.every', 'log.every')
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
    if config.ema.decay is not None and not 0 <= config.ema.decay < 1:
        raise InputError(f'config.ema.decay={config.ema.decay}: must be in [0, 1)')
    if config.optimizer.clip_norm is not None and config.optimizer.clip_norm <= 0:
        raise InputError(f'config.optimizer.clip_norm={config.optimizer.clip_norm}: must be above 0; none turns it off')
    for pattern in (config.allow_partial or '').split(','):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f'config.allow_partial={pattern!r}: is no regular expression ({error})') from None
    if config.optimizer.nesterov and config.optimizer.momentum == 0:
        raise InputError('config.optimizer.nesterov: needs config.optimizer.momentum above 0')


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


Numbers = dict[str, Any]  # by part of the configuration and field; what a compiled program takes as arguments


def split_numbers(config: Experiment) -> tuple[Experiment, Numbers]:
    """Splits a resolved configuration into what decides the compiled program and the numbers that are its arguments.

    The numbers are every float of task options, augmentation, optimizer, schedule and EMA, and the strengths of
    augmentation that are on. In the first half NaN stands in their place, so that one that is compiled in shows.
    """
    structure, numbers = copy.deepcopy(config), {}
    for part in ('augment', 'optimizer', 'schedule', 'ema', 'task'):
        holder = structure.task.options if part == 'task' else vars(getattr(structure, part))
        whole = part == 'augment'
        kinds = (int, float) if whole else (float,)
        numbers[part] = {name: value for name, value in holder.items() if type(value) in kinds and (value or not whole)}
        holder.update(dict.fromkeys(numbers[part], math.nan))
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
