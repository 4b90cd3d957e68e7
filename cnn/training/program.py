"""An experiment as compiled functions, shared by all runs whose configurations differ in numbers only."""

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cnn import config as configuration
from cnn import models, tasks
from cnn.config import Experiment, Numbers, Spec
from cnn.data import augment, fitting, sources
from cnn.errors import InputError, nearest
from cnn.ops import conv, norm
from cnn.training import optimizers, paths, schedules, sharding
from cnn.training.distillation import Teacher
from cnn.training.state import create_train_state
from cnn.training.step import eval_step, feature_step, measure_step, train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """Jitted functions over global arrays, and what they are made of."""

    model: nn.Module
    task: tasks.Task
    spec: Spec  # of prepared examples
    state: Any  # abstract: shapes, dtypes and shardings
    init: Callable[..., Any]  # (numbers) -> state
    train_step: Callable[..., Any]  # (state, batch, key, numbers) -> state, row; the state is donated
    eval_step: Callable[..., Any]  # (variables, batch, key, numbers) -> totals, collected
    measure_step: Callable[..., Any]  # (variables, batch, key, numbers) -> statistics of that training batch
    feature_step: Callable[..., Any]  # (variables, batch, numbers) -> what the head would read


def resolve(config: Experiment, spec: Spec) -> Experiment:
    """The configuration with every option of model and task written out, checked against the data's spec.

    Raises InputError for names, variants and options that do not exist, and for a task that the data can't serve.
    Starts no device.
    """
    resolved = copy.deepcopy(config)
    resolved.model.options = models.options(config.model.name, config.model.options)
    resolved.task.options = tasks.options(config.task.name, config.task.options)
    task = tasks.build(config.task.name, **config.task.options)
    missing = [field for field in task.fields(spec) if field not in spec.shapes]
    if missing:
        raise InputError(
            f'task {config.task.name} needs {", ".join(missing)}; '
            f'data set {config.data.name} has {", ".join(sorted(spec.shapes))}'
        )
    fitting.fit(config, spec)
    prepared = augment.prepared_spec(spec, config.data, config.spectrogram)
    task.inputs(prepared)
    task.num_outputs(prepared)
    augment.check(config.augment, spec, prepared, task.fields(spec))
    for split in (config.data.train_split, config.data.validation_split, config.data.test_split):
        for name in re.findall(r'(?:^|\+)\s*(\w+)', split or ''):
            if spec.num_examples and name not in (*spec.num_examples, 'all'):
                raise nearest(f'split of data set {config.data.name}', name, spec.num_examples)
    if config.allow_partial is not None and config.init_from is None:
        raise InputError(
            f'config.allow_partial={config.allow_partial!r}: needs config.init_from, whose names it is about'
        )
    if config.eval.metric not in (None, *task.directions):
        raise nearest(f'metric of task {config.task.name}', str(config.eval.metric), task.directions)
    gives_logits = getattr(task, 'gives_logits', False)
    if config.eval.views != 'one' and not (gives_logits and 'image' in prepared.shapes):
        raise InputError(f'config.eval.views={config.eval.views!r}: is for one label for each image; set it to one')
    if config.distill.teacher is not None and not gives_logits:
        raise InputError('config.distill.teacher: is for tasks of one label for each example; set it to none')
    return resolved


def resolve_with_data(config: Experiment) -> tuple[Spec, Experiment]:
    """The data's spec, and the configuration with every name checked and every option and form written out."""
    spec = sources.spec(config.data)
    resolved = resolve(config, spec)
    resolved.model.conv = conv.chosen_form(resolved.model.conv)  # written down, so that the run folder tells the form
    return spec, resolved


def program_key(config: Experiment, spec: Spec, teacher: configuration.Model | None = None) -> str:
    """Equal for resolved configurations that have one program, where the mesh and the size of a batch are the same."""
    structure, _ = configuration.split_numbers(config)
    # Nothing else of the configuration enters a compiled function, but what batch normalisation goes by.
    parts: list[Any] = [structure.model, structure.task, structure.augment, structure.spectrogram]
    parts += [structure.optimizer, structure.ema, spec]
    settings = [structure.schedule.name, len(structure.schedule.boundaries)]
    fields = ('image_size', 'test_size', 'resize', 'resize_side', 'channels', 'sample_rate', 'length', 'mean', 'std')
    settings += [getattr(structure.data, field) for field in fields]
    settings += [structure.eval.views, dataclasses.asdict(teacher) if teacher else None]
    return json.dumps([*(dataclasses.asdict(part) for part in parts), *settings], sort_keys=True)


def build(
    config: Experiment, spec: Spec, num_examples: int, mesh: Mesh, teacher: Teacher | None = None
) -> tuple[Program, Numbers]:
    """The program of a resolved configuration and the numbers to call it with; `num_examples` are those of an epoch.

    It trains without a teacher where none is given, whatever the configuration says.
    Raises InputError where the network can't take the data's shapes, or has no statistics to recalibrate.
    """
    structure, numbers = configuration.split_numbers(config)
    count = functools.partial(configuration.steps, batch_size=config.data.batch_size, num_examples=num_examples)
    total = count(config.train.duration, total=0)
    numbers['steps'] = optimizers.counts(config, functools.partial(count, total=total))
    numbers['seed'] = np.uint32(config.seed)
    statistics = _statistics(config, mesh)
    if teacher:
        numbers['teacher'] = teacher.variables
    key = (program_key(config, spec, teacher.model if teacher else None), statistics, mesh)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = _build(structure, spec, numbers, mesh, statistics, teacher)
    program = _PROGRAMS[key]
    if config.eval.recalibrate and 'batch_stats' not in program.state.model_state:
        raise InputError(
            f'config.eval.recalibrate={config.eval.recalibrate}: this {config.model.name} has no batch normalisation; '
            'set it to 0'
        )
    return program, numbers


_PROGRAMS: dict[Any, Program] = {}


def _statistics(config: Experiment, mesh: Mesh) -> norm.Statistics:
    """What batch normalisation goes by in training."""
    examples = config.data.batch_size // config.optimizer.accumulate
    groups = {'global': 1, 'device': mesh.size, 'ghost': examples // config.model.ghost_batch, 'frozen': 0}
    return norm.Statistics(groups[config.model.batch_norm])


def _network(model: configuration.Model, num_outputs: int | None) -> nn.Module:
    types = {'dtype': model.dtype, 'param_dtype': model.param_dtype}
    return models.build(model.name, num_outputs=num_outputs, **types, **model.options)


def _build(
    structure: Experiment,
    spec: Spec,
    numbers: Numbers,
    mesh: Mesh,
    statistics: norm.Statistics,
    teacher: Teacher | None,
) -> Program:
    prepare = augment.preparation(structure, spec)
    spec = augment.prepared_spec(spec, structure.data, structure.spectrogram)
    task = tasks.build(structure.task.name)
    fixed = {name: value for name, value in structure.task.options.items() if name not in numbers['task']}
    task = dataclasses.replace(task, **fixed)  # type: ignore[type-var]
    model = _network(structure.model, task.num_outputs(spec))
    optimizer = functools.partial(optimizers.build, structure.optimizer, structure.schedule)

    def init(numbers: Numbers) -> Any:
        use_ema = structure.ema.decay is not None
        return create_train_state(model, task, spec, optimizer(numbers), numbers['seed'], use_ema)

    train = functools.partial(
        train_step,
        model=model,
        task=task,
        optimizer=optimizer,
        learning_rate=functools.partial(schedules.learning_rate, structure.schedule),
        learning=functools.partial(paths.learning, structure.optimizer),
        sam=structure.optimizer.sam is not None,
        teacher=_network(teacher.model, task.num_outputs(spec)) if teacher else None,
        prepare=prepare,
        accumulate=structure.optimizer.accumulate,
        ema_every=structure.ema.every,
        ema_warmup=structure.ema.warmup,
    )
    evaluate = functools.partial(eval_step, model=model, task=task, prepare=prepare, view=structure.eval.views)
    measure = functools.partial(measure_step, model=model, task=task, prepare=prepare)
    extract = functools.partial(feature_step, model=model.clone(num_outputs=None), prepare=prepare)

    in_form = conv.forced(structure.model.conv)
    try:
        begin = jax.jit(in_form(init)).trace(numbers)
    except InputError as error:
        raise InputError(f'{error} (config.data.image_size resizes images)') from None
    state = begin.out_info
    paths.check(structure.optimizer, state.params)
    shardings, batch, everywhere = (
        sharding.state_sharding(mesh, state),
        sharding.batch_sharding(mesh),
        sharding.replicated(mesh),
    )
    inputs: Numbers = dict.fromkeys(numbers, everywhere)
    if teacher:
        inputs['teacher'] = jax.tree.map(lambda leaf: leaf.sharding, teacher.variables)
    return Program(
        model=model,
        task=task,
        spec=spec,
        state=jax.tree.map(lambda leaf, where: leaf.update(sharding=where), state, shardings),
        init=functools.partial(_init, begin, shardings),
        train_step=jax.jit(
            in_form(norm.forced(statistics)(train)),
            in_shardings=(shardings, batch, everywhere, inputs),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            in_form(evaluate),
            in_shardings=(shardings.eval_variables, batch, everywhere, inputs),
            out_shardings=everywhere,
        ),
        measure_step=jax.jit(
            in_form(norm.forced(norm.Statistics(measured=True))(measure)),
            in_shardings=(shardings.eval_variables, batch, everywhere, inputs),
            out_shardings=everywhere,
        ),
        feature_step=jax.jit(
            in_form(extract), in_shardings=(shardings.eval_variables, batch, inputs), out_shardings=everywhere
        ),
    )


def _init(begin: Any, shardings: Any, numbers: Numbers) -> Any:
    """What a traced function makes of the numbers, run operation by operation.

    Only what the state needs is run, not the forward pass in which the network makes its parameters. A deep network has
    few kinds of initialisation: compiled one by one they take less than half of the time that one program of all takes,
    from the compile cache too. Each array is whole on the first device before it is sharded.
    """
    jaxpr = begin.jaxpr.jaxpr
    wanted, needed = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(map(id, equation.outvars)):
            wanted.update(map(id, equation.invars))
            needed.append(equation)
    pruned = begin.jaxpr.replace(jaxpr=jaxpr.replace(eqns=needed[::-1]))
    leaves = jax.extend.core.jaxpr_as_fun(pruned)(*jax.tree.leaves(numbers))
    # A step takes its state's memory: no array may be there twice, nor be a constant of the program.
    owners = {id(leaf): place for place, leaf in reversed(list(enumerate(leaves)))} | dict.fromkeys(
        map(id, pruned.consts), -1
    )
    leaves = [leaf if owners[id(leaf)] == place else jnp.copy(leaf) for place, leaf in enumerate(leaves)]
    return jax.device_put(jax.tree.unflatten(jax.tree.structure(begin.out_info), leaves), shardings)
