"""Learning from a trained network beside the labels."""

import dataclasses
from typing import Any, NamedTuple

import jax
import optax

from cnn import config
from cnn.tasks import Apply, Batch, Task


class Teacher(NamedTuple):
    """A trained network.

    Its variables are arguments of the train step beside the state, not part of it: checkpoints stay as small as those
    of other runs, and a finished student can be evaluated without the teacher's folder.
    """

    model: config.Model
    variables: Any  # that it is evaluated with, on the mesh
    fingerprint: str  # of the variables
    note: str  # where they come from


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A task of logits [N, classes] whose loss also follows a teacher's on the same inputs.

    The loss of an example is (1 - weight) times the task's and weight x temperature^2 times the Kullback-Leibler
    divergence of the student's distribution from the teacher's, both at that temperature (Hinton et al. 2015,
    section 2). The teacher runs as in evaluation, and nothing of it learns.
    """

    task: Task
    teacher: Apply
    variables: Any  # the teacher's
    weight: Any
    temperature: Any

    def loss(self, apply: Apply, variables: Any, batch: Batch, key: jax.Array) -> Any:
        """As Task.loss, with the divergence as a metric, `distillation`."""
        calls = []

        def watched(variables: Any, *inputs: Any, **options: Any) -> tuple[Any, Any]:
            logits, model_state = apply(variables, *inputs, **options)
            calls.append((inputs, logits))
            return logits, model_state

        (total, count), (model_state, metrics) = self.task.loss(watched, variables, batch, key)
        ((inputs, logits),) = calls
        taught, _ = self.teacher(self.variables, *inputs, train=False)
        student, teacher = (jax.nn.log_softmax(outputs / self.temperature) for outputs in (logits, taught))
        divergence = self.temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)  # [N]
        divergence = (divergence * batch['valid']).sum()
        total = (1 - self.weight) * total + self.weight * divergence
        return (total, count), (model_state, {**metrics, 'distillation': (divergence, batch['valid'].sum())})
