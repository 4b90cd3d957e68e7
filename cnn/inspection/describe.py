"""A network layer by layer, and the memory that training it takes: found out by tracing it, with nothing computed."""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from cnn import config as configuration
from cnn import models, tasks
from cnn.config import Experiment, Spec
from cnn.errors import InputError
from cnn.inspection import cost, receptive_field
from cnn.training import optimizers
from cnn.training.state import TRAIN, average, stream
from cnn.training.step import apply_function

FIELDS = {1: 'tokens', 2: 'signal', 3: 'image', 4: 'video'}  # of an example, by the number of its axes


class Call(NamedTuple):
    """A method of a module as it was called; shapes are those of the first array that went in and came out."""

    path: str
    method: str
    before: tuple[int, ...]
    after: tuple[int, ...]


def describe(model: nn.Module, *inputs: jax.ShapeDtypeStruct, **options: Any) -> dict[str, Any]:
    """What `table` shows of any linen module called with these inputs and options, as plain values.

    A layer is a module that has parameters or multiply-adds of its own, or that contains no other and changes the shape
    (a pool). One that is called several times is described by its last call, with the multiply-adds of all. Receptive
    fields are by spatial axis of the first input, None where all of it is seen (cnn/inspection/receptive_field.py);
    that of the whole is the largest with positions still told apart.

    Raises InputError for an input too small for the network.
    """
    return _describe(model, _variables(model, inputs, options), inputs, options)


def _variables(model: nn.Module, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    def init(*inputs: Any) -> Any:
        return model.init({'params': jax.random.key(0), 'dropout': jax.random.key(0)}, *inputs, **options)

    return jax.eval_shape(init, *inputs)


def _describe(model: nn.Module, variables: Any, inputs: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    calls: list[Call] = []
    with nn.intercept_methods(functools.partial(_record, calls)):
        run = jax.make_jaxpr(lambda variables, *inputs: model.apply(variables, *inputs, **options))(variables, *inputs)
    empty = next((call for call in calls if 0 in call.after), None)
    if empty:
        where = empty.path or 'the network'
        raise InputError(f'nothing is left of the input after {where}, {_shape(empty.after[1:])}; use a larger one')

    first = len(jax.tree.leaves(variables))
    counts = cost.count(run.jaxpr, [cost.PARAMETER] * first + [cost.INPUT] * (len(run.in_avals) - first))
    _, trace = receptive_field.trace(run, first)
    rank = receptive_field.spatial_rank(inputs[0].shape)
    params = variables.get('params', {})
    paths = list(dict.fromkeys(['', *(call.path for call in calls)]))
    parameters = _own_parameters(params, paths)

    layers = []
    for path in paths:
        own = {
            'parameters': parameters.get(path, 0),
            'multiply_adds': counts[path, cost.LAYER],
            'activation_multiply_adds': counts[path, cost.ACTIVATION],
        }
        made = [index for index, call in enumerate(calls) if call.path == path and f'call {index}' in trace.named]
        made = [index for index in made if calls[index].method == '__call__'] or made
        before, after = (calls[made[-1]].before, calls[made[-1]].after) if made else ((), ())
        contains = path == '' or any(other.startswith(f'{path}/') for other in paths)
        if any(own.values()) or (before != after and not contains):
            value = trace.named[f'call {made[-1]}'] if made else receptive_field.Value()
            layers.append(
                {
                    'name': path or type(model).__name__,
                    'calls': len(made),
                    'output': list(after[1:]),
                    **own,
                    **_plain(receptive_field.field(value, rank)),
                }
            )
    totals = {kind: sum(number for (_, of), number in counts.items() if of == kind) for kind in cost.KINDS}
    return {
        'inputs': [list(array.shape[1:]) for array in inputs],
        'layers': layers,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
        'multiply_adds': totals[cost.LAYER],
        'activation_multiply_adds': totals[cost.ACTIVATION],
        'other_multiply_adds': totals[cost.OTHER],
        **_plain(receptive_field.field(trace.whole, rank)),
    }


def _record(calls: list[Call], method: Callable, args: Any, kwargs: Any, context: Any) -> Any:
    """Calls a method of a module inside a scope of its path; names the first array that it returns."""
    path, index = '/'.join(context.module.path), len(calls)
    before = next((leaf.shape for leaf in jax.tree.leaves((args, kwargs)) if isinstance(leaf, jax.Array)), ())
    calls.append(Call(path, context.method_name, before, ()))
    with cost.scope(path):
        outputs = method(*args, **kwargs)
    outputs, after = _named(outputs, f'call {index}')
    calls[index] = calls[index]._replace(after=after or ())
    return outputs


def _named(outputs: Any, name: str) -> tuple[Any, tuple[int, ...] | None]:
    """Outputs with a name for the first array among them, and its shape; dicts keep their order."""
    if isinstance(outputs, jax.Array):
        return checkpoint_name(outputs, name), outputs.shape
    items = (
        outputs.items() if isinstance(outputs, dict) else enumerate(outputs) if type(outputs) in (tuple, list) else ()
    )
    for key, item in items:
        item, shape = _named(item, name)
        if shape is not None:
            if isinstance(outputs, dict):
                return {**outputs, key: item}, shape
            return type(outputs)([*outputs[:key], item, *outputs[key + 1 :]]), shape
    return outputs, None


def _own_parameters(params: Any, paths: Iterable[str]) -> dict[str, int]:
    """Numbers by the module that has them: the longest path that leads to them."""
    known = set(paths)
    own: dict[str, int] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = [str(key.key) for key in keys[:-1]]
        while '/'.join(path) not in known:
            path.pop()
        own['/'.join(path)] = own.get('/'.join(path), 0) + leaf.size
    return own


def _plain(field: receptive_field.Field) -> dict[str, Any]:
    def number(stride: Fraction | None) -> float | int | None:
        return stride if stride is None else int(stride) if stride.denominator == 1 else float(stride)

    return {
        'receptive_field': list(field.size),
        'stride': [number(stride) for stride in field.stride],
        'everywhere': field.everywhere,
    }


def experiment(config: Experiment, spec: Spec, num_outputs: int | None = None) -> dict[str, Any]:
    """`describe` of the network of a resolved experiment, and the memory that training it on a batch takes.

    Args:
      spec: of prepared examples.
      num_outputs: None for what the task makes of the spec.

    Raises InputError where the network can't take the spec's shapes.
    """
    task = tasks.build(config.task.name, **config.task.options)
    model = models.build(
        config.model.name,
        num_outputs=task.num_outputs(spec) if num_outputs is None else num_outputs,
        dtype=config.model.dtype,
        param_dtype=config.model.param_dtype,
        **config.model.options,
    )
    inputs = task.inputs(spec)
    variables = _variables(model, inputs, {'train': False})
    return {
        'model': config.model.name,
        'num_outputs': model.num_outputs,
        'dtype': config.model.dtype,
        **_describe(model, variables, inputs, {'train': False}),
        'memory': memory(config, spec, task, model, variables),
    }


def made_up(config: Experiment, shape: tuple[int, ...]) -> tuple[Experiment, Spec]:
    """An experiment with every option written out, and the spec of examples of that shape. Needs no data.

    Raises InputError for names and options that do not exist, and for a shape of another rank than the network's.
    """
    config = copy.deepcopy(config)
    config.model.options = models.options(config.model.name, config.model.options)
    config.task.options = tasks.options(config.task.name, config.task.options)
    variant, task = models.variant(config.model.name), tasks.build(config.task.name, **config.task.options)
    given, published = (','.join(map(str, sizes)) for sizes in (shape, variant.input_shape))
    wrong = InputError(f'--input={given}: {config.model.name} takes an input such as --input={published}')
    if len(shape) not in FIELDS:
        raise wrong
    field = FIELDS[len(shape)]
    spec = Spec({field: shape}, {field: 'int32' if field == 'tokens' else 'float32'}, {}, {})
    if field not in task.fields(spec):
        raise InputError(f'--input={given}: task {config.task.name} reads {task.fields(spec)[0]}, not {field}')
    ranks = {len(variant.input_shape), 2 if variant.input_dtype == 'int32' else 0}  # tokens, or a signal in their place
    if task.inputs(spec)[0].ndim - 1 not in ranks:
        raise wrong
    return config, spec


def memory(config: Experiment, spec: Spec, task: tasks.Task, model: nn.Module, variables: Any) -> dict[str, Any]:
    """Bytes, over all devices, that training on a batch takes; `variables` are the model's, abstract.

    All but `activations` are exact. These are what the gradient of the loss keeps of the forward pass of a microbatch,
    as it is traced: an upper bound of what XLA keeps, which computes cheap values again instead. Where the spec lacks
    what the loss reads, the outputs stand for it.
    """
    params, model_state = variables['params'], {name: value for name, value in variables.items() if name != 'params'}
    structure, numbers = configuration.split_numbers(config)
    numbers['steps'] = optimizers.counts(config, lambda duration: 1)
    optimizer = optimizers.build(structure.optimizer, structure.schedule, numbers)
    ema = jax.eval_shape(average, params, model_state) if config.ema.decay is not None else None

    microbatch = config.data.batch_size // config.optimizer.accumulate
    apply, fields = apply_function(model), task.fields(spec)
    key = jax.eval_shape(lambda: stream(0, TRAIN))
    if all(field in spec.shapes for field in fields):
        batch: Any = {'valid': jax.ShapeDtypeStruct((microbatch,), bool)}
        for field in fields:
            if -1 in spec.shapes[field]:
                raise InputError(f'describe needs examples of one shape; `{field}` is {spec.shapes[field]}')
            batch[field] = jax.ShapeDtypeStruct((microbatch, *spec.shapes[field]), spec.dtypes[field])

        def forward(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
            return task.loss(apply, {'params': params, **model_state}, batch, key)[0][0]
    else:
        inputs = task.inputs(spec)
        batch = [jax.ShapeDtypeStruct((microbatch, *array.shape[1:]), array.dtype) for array in inputs]

        def forward(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
            return apply({'params': params, **model_state}, *batch, train=True, key=key)[0]

    return {
        'batch_size': config.data.batch_size,
        'parameters': _bytes(params),
        'gradients': _bytes(params),
        'optimizer': _bytes(jax.eval_shape(optimizer.init, params)),
        'model_state': _bytes(model_state),
        'ema': _bytes(ema),
        'activations': kept_bytes(forward, params, model_state, batch, key),
    }


def kept_bytes(function: Callable[..., Any], params: Any, *rest: Any) -> int:
    """Bytes that the gradient by `params` keeps of a call, of what comes of the other arguments and is none of them."""

    def pull_back(params: Any, *rest: Any) -> Any:
        return jax.vjp(lambda params: function(params, *rest), params)[1]

    jaxpr = jax.make_jaxpr(pull_back)(params, *rest).jaxpr
    number = len(jax.tree.leaves(params))
    sources = [cost.PARAMETER] * number + [cost.INPUT] * (len(jaxpr.invars) - number)
    dependences = zip(jaxpr.outvars, cost.dependence(jaxpr, sources), strict=True)
    kept = {variable for variable, depends in dependences if depends & cost.INPUT}
    return _bytes([variable.aval for variable in kept.difference(jaxpr.invars)])


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def table(figures: Mapping[str, Any]) -> str:
    """What `describe` or `experiment` returned: a line for each layer, then the totals."""
    attention = figures['activation_multiply_adds'] > 0
    header = ['layer', 'output', 'parameters', 'multiply-adds', 'receptive field', 'stride']
    rows = [
        [
            layer['name'] + (f' (x{layer["calls"]})' if layer['calls'] > 1 else ''),
            _shape(layer['output']),
            *(f'{layer[name]:,}' for name in ('parameters', 'multiply_adds')),
            _field(layer),
            _stride(layer),
        ]
        for layer in figures['layers']
    ]
    total = ['total', '', *(f'{figures[name]:,}' for name in ('parameters', 'multiply_adds'))]
    rows = [header, *rows, [*total, _field(figures), _stride(figures)]]
    if attention:
        column = ['of activations', *(f'{layer["activation_multiply_adds"]:,}' for layer in figures['layers'])]
        for row, cell in zip(rows, [*column, f'{figures["activation_multiply_adds"]:,}'], strict=True):
            row.insert(4, cell)
    lines = [', '.join(map(_shape, figures['inputs'])) + ' in', '', *_columns(rows, left=2)]
    if 'model' in figures:
        lines[0] = f'{figures["model"]} on {lines[0][:-3]}, {figures["num_outputs"]} outputs, {figures["dtype"]}'
    lines.append('')
    if any(layer['everywhere'] for layer in figures['layers']):
        lines.append('*: and all the rest, by a mean over positions or by attention')
    if attention:
        lines.append('of activations: multiply-adds of two activations with each other, not in the total')
    if figures['other_multiply_adds']:
        lines.append(f'products with constants, not in the total: {figures["other_multiply_adds"]:,} multiply-adds')
    if 'memory' in figures:
        sizes = {name: size for name, size in figures['memory'].items() if name != 'batch_size' and size}
        lines.append(
            f'memory of training on batches of {figures["memory"]["batch_size"]}: {_mib(sum(sizes.values()))} MiB ('
            + ', '.join(f'{name.replace("_", " ")} {_mib(size)}' for name, size in sizes.items())
            + ')'
        )
        lines.append('activations are an upper bound: what the traced gradient keeps, before XLA computes some again')
    return '\n'.join(lines)


def zoo() -> list[dict[str, Any]]:
    """Every network that can be named, with what is published about it."""
    return [{'name': name, **models.variant(name)._asdict()} for name in models.names()]


def zoo_table(variants: Sequence[Mapping[str, Any]]) -> str:
    """What `zoo` returned, a line for each network."""
    rows = [['name', 'parameters', 'multiply-adds', 'top-1 %', 'input', 'outputs', 'source']]
    for variant in variants:
        multiply_adds = variant['multiply_adds']
        rows.append(
            [
                variant['name'],
                f'{variant["parameters"]:,}',
                '-' if multiply_adds is None else f'{multiply_adds:,}',
                ' / '.join(f'{accuracy:g}' for accuracy in variant['accuracy']) or '-',
                _shape(variant['input_shape']),
                str(variant['num_outputs']),
                variant['source'],
            ]
        )
    return '\n'.join(_columns(rows, left=1, last=True))


def _columns(rows: Sequence[Sequence[str]], left: int, last: bool = False) -> list[str]:
    """Lines with columns of one width; the first `left` begin at the left, and the last one if told."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(text: str, index: int) -> str:
        return (
            text.ljust(widths[index])
            if index < left or (last and index == len(widths) - 1)
            else text.rjust(widths[index])
        )

    return ['  '.join(cell(text, index) for index, text in enumerate(row)).rstrip() for row in rows]


def _shape(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))


def _field(figures: Mapping[str, Any]) -> str:
    sizes = ['all' if size is None else str(size) for size in figures['receptive_field']]
    text = sizes[0] if len(set(sizes)) == 1 else ' x '.join(sizes)
    return ('-' if text == '0' else text) + '*' * figures['everywhere']


def _stride(figures: Mapping[str, Any]) -> str:
    strides = ['-' if stride is None else f'{stride:g}' for stride in figures['stride']]
    return strides[0] if len(set(strides)) == 1 else ' x '.join(strides)


def _mib(size: float) -> str:
    return f'{size / 2**20:,.1f}'
