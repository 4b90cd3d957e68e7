"""The Task contract: what a network is trained for, as pure functions; and the way from a name to a task.

A task is a frozen dataclass of options in the file that bears its name. One step, one loop and one checkpoint serve all
tasks, because all that depends on the task stands behind the methods of `Task`:

    apply(variables, *inputs, train, key=None, method=None, mutable=None, **options) -> outputs, model_state

runs the model. `variables` is `{'params': ..., 'batch_stats': ..., ...}`, passed in the open, and `model_state` is
what the call leaves behind: `variables` without `params`, with what the call changed. Float options are traced numbers
inside a step, so they may be used in arithmetic but not in `if`. What that makes possible, in a line each:

    two-stage detector   outputs, _ = apply(variables, image, boxes, method='heads', ...): boxes enter the forward pass;
                         `collect` keeps detections, `summarize` makes mAP of them, which is no sum
    GAN                  one loss over both halves, each with the other's parameters under `lax.stop_gradient`; two
                         optimizers by parameter path are one optax chain; one step
    diffusion            `jax.random.split(key)` for times and noise; `predict` samples, from EMA weights when EMA is on
    model called twice   _, state = apply(variables, a, ...); apply({**variables, **state}, b, ...): statistics thread
    distillation         variables['teacher'] is a collection that the model does not touch and the step hands on;
                         or an `apply` that lets another network read the same inputs (cnn/training/distillation.py)
    SAM                  jax.grad of the loss inside `loss`, then the loss again at params + stop_gradient(radius)
    accumulation         `loss` returns a sum and a count; the step divides once, whatever each microbatch ignored
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from cnn.config import Spec
from cnn.errors import InputError, nearest
from cnn.validation import complete_options

Batch = Mapping[str, Any]
Apply = Callable[..., tuple[Any, Any]]
Totals = dict[str, tuple[Any, Any]]  # metric -> (sum, count), which add over batches and devices
Pictures = dict[str, Callable[[], Any]]  # file name -> drawing function, which gives uint8 [H, W, 3]

INPUT_FIELDS = ('image', 'signal', 'tokens', 'video')


class Task(Protocol):
    """What a network is trained for. See the module's docstring for `apply` and examples."""

    # Whether an example has one row of logits: views of it may be averaged, a teacher followed.
    gives_logits: ClassVar[bool] = False

    @property
    def directions(self) -> Mapping[str, str]:
        """Metrics of `summarize`: more is better, 'max', or less, 'min'. The first one chooses the best checkpoint."""

    def fields(self, spec: Spec) -> tuple[str, ...]:
        """The fields of an example that the task reads."""

    def inputs(self, spec: Spec) -> tuple[Any, ...]:
        """Abstract inputs of the model for a batch of one, for init, describe and plan."""

    def num_outputs(self, spec: Spec) -> int | None:
        """The size of the model's head."""

    def loss(self, apply: Apply, variables: Any, batch: Batch, key: Any) -> tuple[tuple[Any, Any], tuple[Any, Totals]]:
        """((sum, count), (model_state, metrics)): the sum is differentiated, the division comes after accumulation."""

    def predict(self, apply: Apply, variables: Any, batch: Batch, key: Any) -> Any:
        """A pytree of predictions."""

    def metrics(self, predictions: Any, batch: Batch) -> Totals:
        """Sums and counts over the examples where `batch['valid']`; sums may be arrays."""

    def collect(self, predictions: Any, batch: Batch) -> Any:
        """Arrays of fixed shape that the host keeps of a batch, for `summarize`; None for nothing."""

    def summarize(self, totals: Totals, collected: Sequence[Any], spec: Spec) -> tuple[dict[str, float], Pictures]:
        """Metrics and pictures of a whole split, on the host, in NumPy."""


def names() -> tuple[str, ...]:
    """Every task: the files of this package."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def task_class(name: str) -> Any:
    """The class of a task, by the name of its file. Raises InputError with the nearest name."""
    if name not in names():
        raise nearest('task', name, names())
    return importlib.import_module(f'cnn.tasks.{name}').TASK


def options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the task of that name. Raises InputError for a task, option or type that does not fit."""
    return complete_options(f'task {name}', task_class(name), {}, given)


def build(name: str, **given: Any) -> Task:
    """The task of that name with those options; raises what `options` raises."""
    return task_class(name)(**options(name, given))


def input_field(fields: Mapping[str, Any], task: str) -> str:
    """Which field the model reads: the first of image, signal, tokens, video that there is."""
    for field in INPUT_FIELDS:
        if field in fields:
            return field
    raise InputError(f'task {task} needs one of {", ".join(INPUT_FIELDS)}; the data has {", ".join(sorted(fields))}')


def class_names(spec: Spec, field: str, task: str) -> tuple[str, ...]:
    """The class names of a field. Raises InputError where the data has none."""
    if field not in spec.class_names:
        raise InputError(f'task {task} needs `{field}` with class names; the data has {", ".join(sorted(spec.shapes))}')
    return spec.class_names[field]


def ratios(totals: Totals) -> dict[str, float]:
    """sum / count of each metric whose sum is a number."""
    return {name: float(total / max(count, 1)) for name, (total, count) in totals.items() if total.ndim == 0}
