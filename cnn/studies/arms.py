"""From the arms of a study to configurations: resolved, traced without computing anything, and how they differ."""

import contextlib
import copy
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from cnn import config as configuration
from cnn import scripts, tasks, validation
from cnn.config import Experiment, Spec
from cnn.data import fitting, sources
from cnn.errors import InputError, nearest
from cnn.inspection import cost
from cnn.studies import Arm, Study
from cnn.studies.results import Cost
from cnn.training import program as programs
from cnn.training.state import TRAIN, stream

# Fields of config.Data that do not decide which examples there are.
HANDLING = (
    *('batch_size', 'image_size', 'test_size', 'resize', 'resize_side', 'channels', 'length', 'mean', 'std'),
    *('resident', 'workers', 'max_unreadable'),
)


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split."""

    num_examples: int
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Form:
    """An arm as an experiment that can be run."""

    arm: Arm
    given: Experiment  # the base with the arm's overrides, as a command line would give it
    config: Experiment  # the same, resolved; with the base's seed, and where it starts from an arm, that name
    spec: Spec  # of the data's examples
    splits: Mapping[str, Split]  # by role: train, and validation and test where there are such
    steps: int
    compilation: str  # equal for arms that share their compiled step
    cost: Cost

    @property
    def work(self) -> float:
        """Multiply-adds of the training: those of a gradient are three times those of the network."""
        return 3.0 * self.cost.multiply_adds * self.config.data.batch_size * self.steps


def base_file(study: Study) -> str:
    """FILE[:ARG] of the base, from here or else from the checkout."""
    there = not pathlib.Path(study.base.partition(':')[0]).exists()
    in_checkout = (scripts.ROOT / study.base.partition(':')[0]).is_file()
    return str(scripts.ROOT / study.base) if there and in_checkout else study.base


def forms(study: Study, splits: dict[str, Split]) -> tuple[Form, ...]:
    """Every arm, checked: names, values, data, shapes. Prepares data sets that are not; starts no accelerator.

    JAX must have been told to use the CPU. What is read of the data's splits is added to `splits`. Raises InputError
    naming the arm; for two arms that are one, both.
    """
    base = load_base(study)
    costs: dict[str, Cost] = {}
    made: dict[str, Form] = {}
    for arm in study.arms:
        with _named(arm):
            form = _form(study, base, arm, splits, costs)
        key = json.dumps(configuration.to_dict(form.config), sort_keys=True)
        if key in made:
            raise InputError(f'arms {made[key].arm.name!r} and {arm.name!r} have the same configuration; drop one')
        made[key] = form
    return tuple(made.values())


def load_base(study: Study) -> Experiment:
    """The base experiment. Raises InputError naming its file."""
    base = scripts.load(base_file(study), 'get_config', Experiment)
    try:
        validation.validate(base)
    except InputError as error:
        raise InputError(f'{study.base}: {error}') from None
    return base


def differences(old: Experiment, new: Experiment, *arms: Arm) -> dict[str, tuple[str, str]]:
    """Where two configurations differ: path -> (old, new) as texts, '-' for an option that is not there.

    An option that but one of two networks or tasks has counts where one of the arms names it.
    """
    fields, others = _flat(new), _flat(old)
    named = {path for arm in arms for path in arm.overrides}
    paths = [path for path in {**others, **fields} if path in named or (path in fields and path in others)]
    pairs = {path: tuple(repr(of[path]) if path in of else '-' for of in (others, fields)) for path in paths}
    return {path: (pair[0], pair[1]) for path, pair in pairs.items() if pair[0] != pair[1]}


def _flat(config: Experiment) -> dict[str, Any]:
    """Fields and options by dotted path."""
    flat: dict[str, Any] = {}
    for path in configuration.field_paths(config):
        value = configuration.get(config, path)
        if path.endswith('.options'):
            flat |= {f'{path}.{name}': option for name, option in value.items()}
        else:
            flat[path] = value
    return flat


@contextlib.contextmanager
def _named(arm: Arm) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f'arm {arm.name!r}: {error}') from error


def _form(study: Study, base: Experiment, arm: Arm, splits: dict[str, Split], costs: dict[str, Cost]) -> Form:
    """`splits` and `costs` hold what is known from other arms."""
    for path in study.seeded:
        if path in arm.overrides:
            raise InputError(f'overrides {path}, of which the study has several; leave it out')
    given = copy.deepcopy(base)
    configuration.override(given, arm.overrides, base)
    if arm.start is not None:
        if 'init_from' in arm.overrides:
            raise InputError(f'overrides init_from, and starts from arm {arm.start!r}; leave one of them out')
        given.init_from = arm.start  # whose runs have no folders yet
    validation.validate(given)
    spec, config = programs.resolve_with_data(given)
    directions = tasks.build(config.task.name, **config.task.options).directions
    for metric in (study.metric, *study.also):
        if metric not in directions:
            raise nearest(f'metric of task {config.task.name}', metric, directions)
    teacher = _others(arm, config, spec)
    key = programs.program_key(config, spec, teacher)
    if key not in costs:
        costs[key] = _traced(config, spec)
    own = find_splits(config, spec, splits)
    count = {'batch_size': config.data.batch_size, 'num_examples': own['train'].num_examples}
    settings = [config.data.batch_size, dataclasses.asdict(config.mesh), config.deterministic]
    return Form(
        arm,
        given,
        config,
        spec,
        own,
        steps=configuration.steps(config.train.duration, **count, total=0),
        compilation=json.dumps([key, *settings]),
        cost=costs[key],
    )


def _others(arm: Arm, config: Experiment, spec: Spec) -> configuration.Model | None:
    """Looks for the weights that the run starts from; the teacher's network, where there is one."""
    if config.init_from is None and config.distill.teacher is None:
        return None
    from cnn.training import evaluation, teachers  # which most studies need not wait for

    if config.init_from is not None and arm.start is None:
        evaluation.check_source(config.init_from)
    if config.distill.teacher is None:
        return None
    teachers.check(config, spec)
    return evaluation.read_config(pathlib.Path(config.distill.teacher)).model


def find_splits(config: Experiment, spec: Spec, known: dict[str, Split]) -> dict[str, Split]:
    """The splits of a run by role; those that were read before are `known`, to which others are added."""
    data = config.data
    names = {'train': data.train_split, 'validation': data.validation_split, 'test': data.test_split}
    fields = tasks.build(config.task.name, **config.task.options).fields(spec)
    settings = {name: value for name, value in vars(data).items() if name not in HANDLING}
    found = {}
    for role, split in names.items():
        if split is None:
            continue
        key = json.dumps([settings, split], sort_keys=True)
        if key not in known:
            source = sources.load(data, split, fields)
            known[key] = Split(len(source), source.fingerprint)
        found[role] = known[key]
    return found


def _traced(config: Experiment, spec: Spec) -> Cost:
    """Traces initialisation and loss. Raises InputError where the network can't take the data's shapes."""
    try:
        with jax.enable_x64('float64' in (config.model.dtype, config.model.param_dtype)):
            return _cost(config, spec)
    except InputError:
        raise
    except Exception as error:
        # A network that does not say what it can take breaks where it is given something else.
        said = str(error).strip().partition('\n')[0]
        raise InputError(f'{config.model.name} can not be built or take the data: {said}') from error


def _cost(config: Experiment, spec: Spec) -> Cost:
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    program, numbers = programs.build(config, spec, 1, mesh)
    rows = fitting.fitted_spec(spec, config.data)
    shapes = {field: (rows.shapes[field], rows.dtypes[field]) for field in program.task.fields(rows)}
    shapes |= {'valid': ((), 'bool'), 'index': ((), 'int32'), 'epoch': ((), 'int32')}
    batch = {field: jax.ShapeDtypeStruct((1, *shape), dtype) for field, (shape, dtype) in shapes.items()}
    variables, key = program.state.eval_variables, jax.eval_shape(lambda: stream(0, TRAIN))
    loss: Any = program.measure_step  # in training, without the gradient
    jaxpr = loss.trace(variables, batch, key, numbers).jaxpr.jaxpr
    kinds = [cost.PARAMETER] * len(jax.tree.leaves(variables)) + [cost.INPUT] * len(batch)
    counts = cost.count(jaxpr, kinds + [cost.CONSTANT] * (len(jaxpr.invars) - len(kinds)))
    multiply_adds = sum(number for (_, kind), number in counts.items() if kind == cost.LAYER)
    return Cost(sum(leaf.size for leaf in jax.tree.leaves(program.state.params)), multiply_adds)
