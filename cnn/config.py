"""The configuration of an experiment: typed dataclasses, their paths and their fingerprint.

Everything that decides the bits of a run stands here. The classes are plain and mutable because configuration flags set
their fields one by one; cnn/validation.py checks them once they are set. A field that is `None` (or, in `Augment`,
zero) is off.
"""

import copy
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Optional

from cnn.errors import InputError, nearest


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


# A run may be resumed with other values of these; every other difference makes it another run.
RESUMABLE = ('train.duration', 'eval.every', 'checkpoint.every', 'log.every')


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


def fingerprint(config: Experiment) -> str:
    """Twelve hexadecimal digits that name the configuration."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ: path -> (old, new)."""
    pairs = {path: (get(old, path), get(new, path)) for path in field_paths(old)}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}
