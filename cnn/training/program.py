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
from cnn.config import Experiment, InputError, Numbers, Spec
from cnn.data import augment
from cnn.ops import conv
from cnn.training import optimizers, sharding
from cnn.training.state import create_train_state
from cnn.training.step import eval_step, train_step


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
    prepared = augment.prepared_spec(spec, config.data)
    task.inputs(prepared)
    task.num_outputs(prepared)
    for split in (config.data.train_split, config.data.validation_split, config.data.test_split):
        for name in re.findall(r'(?:^|\+)\s*(\w+)', split or ''):
            if spec.num_examples and name not in (*spec.num_examples, 'all'):
                raise configuration.nearest(f'split of data set {config.data.name}', name, spec.num_examples)
    if config.allow_partial is not None and config.init_from is None:
        raise InputError(
            f'config.allow_partial={config.allow_partial!r}: needs config.init_from, whose names it is about'
        )
    if config.eval.metric not in (None, *task.directions):
        raise configuration.nearest(f'metric of task {config.task.name}', str(config.eval.metric), task.directions)
    return resolved


def build(config: Experiment, spec: Spec, num_examples: int, mesh: Mesh) -> tuple[Program, Numbers]:
    """The program of a resolved configuration and the numbers to call it with; `num_examples` are those of an epoch.

    Raises InputError where the network can't take the data's shapes.
    """
    structure, numbers = configuration.split_numbers(config)
    count = functools.partial(configuration.steps, batch_size=config.data.batch_size, num_examples=num_examples)
    total = count(config.train.duration, total=0)
    numbers['steps'] = {
        'total': total,
        'warmup': count(config.schedule.warmup, total=total),
        'boundaries': [count(boundary, total=total) for boundary in config.schedule.boundaries],
    }
    numbers['seed'] = np.uint32(config.seed)
    # Nothing else of the configuration enters a compiled function.
    parts: list[Any] = [structure.model, structure.task, structure.augment, structure.optimizer, structure.ema, spec]
    settings = [structure.schedule.name, len(structure.schedule.boundaries)]
    settings += [structure.data.image_size, structure.data.mean, structure.data.std]
    key = (json.dumps([*(dataclasses.asdict(part) for part in parts), *settings], sort_keys=True), mesh)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = _build(structure, spec, numbers, mesh)
    return _PROGRAMS[key], numbers


_PROGRAMS: dict[Any, Program] = {}


def _build(structure: Experiment, spec: Spec, numbers: Numbers, mesh: Mesh) -> Program:
    spec = augment.prepared_spec(spec, structure.data)
    task = tasks.build(structure.task.name)
    fixed = {name: value for name, value in structure.task.options.items() if name not in numbers['task']}
    task = dataclasses.replace(task, **fixed)  # type: ignore[type-var]
    model = models.build(
        structure.model.name,
        num_outputs=task.num_outputs(spec),
        dtype=structure.model.dtype,
        param_dtype=structure.model.param_dtype,
        **structure.model.options,
    )
    optimizer = functools.partial(optimizers.build, structure.optimizer, structure.schedule)
    prepare = functools.partial(augment.prepare, data=structure.data, augment=structure.augment)

    def init(numbers: Numbers) -> Any:
        use_ema = structure.ema.decay is not None
        return create_train_state(model, task, spec, optimizer(numbers), numbers['seed'], use_ema)

    train = functools.partial(
        train_step,
        model=model,
        task=task,
        optimizer=optimizer,
        learning_rate=functools.partial(optimizers.learning_rate, structure.schedule),
        prepare=prepare,
        accumulate=structure.optimizer.accumulate,
        ema_every=structure.ema.every,
    )
    evaluate = functools.partial(eval_step, model=model, task=task, prepare=prepare)

    in_form = conv.forced(structure.model.conv)
    try:
        begin = jax.jit(in_form(init)).trace(numbers)
    except InputError as error:
        raise InputError(f'{error} (config.data.image_size resizes images)') from None
    state = begin.out_info
    shardings, batch, everywhere = (
        sharding.state_sharding(mesh, state),
        sharding.batch_sharding(mesh),
        sharding.replicated(mesh),
    )
    return Program(
        model=model,
        task=task,
        spec=spec,
        state=jax.tree.map(lambda leaf, where: leaf.update(sharding=where), state, shardings),
        init=functools.partial(_init, begin, shardings),
        train_step=jax.jit(
            in_form(train),
            in_shardings=(shardings, batch, everywhere, everywhere),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            in_form(evaluate),
            in_shardings=(shardings.eval_variables, batch, everywhere, everywhere),
            out_shardings=everywhere,
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
