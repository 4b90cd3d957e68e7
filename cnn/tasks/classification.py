"""Classification: one label for an example."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn import pictures
from cnn.config import Spec, nearest
from cnn.tasks import Apply, Batch, Pictures, Totals, class_names, input_field, ratios

CROSS_ENTROPIES = ('softmax', 'binary')
MOST_CLASSES = 1000  # of a confusion matrix; with the 21,841 of all ImageNet it would fill a device


@dataclasses.dataclass(frozen=True)
class Classification:
    """Cross-entropy over the classes of `label`; reads an image, signal, token sequence or video.

    Softmax; or binary, a sigmoid for each class and the mean over classes (Wightman et al. 2021). The target of a mixed
    example has the share `mix` on its own label and the rest on `mixed_label`. Evaluation reports the same loss, with
    targets that are neither smoothed nor mixed. Raises InputError for another cross-entropy.
    """

    label_smoothing: float = 0.0  # this share of the target is spread evenly over all classes (Szegedy et al. 2016)
    cross_entropy: str = 'softmax'  # softmax, binary
    target_threshold: Optional[float] = None  # in training, targets above it become 1 and the others 0

    directions: ClassVar[Mapping[str, str]] = {'accuracy': 'max', 'loss': 'min'}
    gives_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.cross_entropy not in CROSS_ENTROPIES:
            raise nearest('cross_entropy of task classification', self.cross_entropy, CROSS_ENTROPIES)

    def fields(self, spec: Spec) -> tuple[str, ...]:
        return input_field(spec.shapes, 'classification'), 'label'

    def inputs(self, spec: Spec) -> tuple[jax.ShapeDtypeStruct]:
        field = input_field(spec.shapes, 'classification')
        return (jax.ShapeDtypeStruct((1, *spec.shapes[field]), spec.dtypes[field]),)

    def num_outputs(self, spec: Spec) -> int:
        return len(class_names(spec, 'label', 'classification'))

    def loss(self, apply: Apply, variables: Any, batch: Batch, key: jax.Array) -> Any:
        inputs = batch[input_field(batch, 'classification')]
        logits, model_state = apply(variables, inputs, train=True, key=key)  # [N, classes]
        losses = self._losses(logits, self._targets(batch, logits.shape[-1]))
        count = batch['valid'].sum()
        correct = (logits.argmax(-1) == batch['label']) & batch['valid']
        return ((losses * batch['valid']).sum(), count), (model_state, {'accuracy': (correct.sum(), count)})

    def predict(self, apply: Apply, variables: Any, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        logits, _ = apply(variables, batch[input_field(batch, 'classification')], train=False)
        return {'logits': logits, 'label': logits.argmax(-1)}

    def metrics(self, predictions: dict[str, jax.Array], batch: Batch) -> Totals:
        valid, label, predicted = batch['valid'], batch['label'], predictions['label']
        count = valid.sum()
        losses = self._losses(predictions['logits'], jax.nn.one_hot(label, predictions['logits'].shape[-1]))
        totals = {
            'accuracy': (((predicted == label) & valid).sum(), count),
            'loss': ((losses * valid).sum(), count),
        }
        num_classes = predictions['logits'].shape[-1]
        if num_classes <= MOST_CLASSES:
            confusion = jnp.zeros((num_classes, num_classes), jnp.int32).at[label, predicted].add(valid)
            totals['confusion'] = (confusion, count)  # [true, predicted]
        return totals

    def collect(self, predictions: dict[str, jax.Array], batch: Batch) -> Any:
        """Images, labels and predictions of the most confidently misread examples, and which of them are misread."""
        if 'image' not in batch:
            return None
        label, predicted = batch['label'], predictions['label']
        confidence = jax.nn.softmax(predictions['logits']).max(-1)
        score = jnp.where((predicted != label) & batch['valid'], confidence, -1)
        score, worst = jax.lax.top_k(score, min(16, len(label)))
        return batch['image'][worst], label[worst], predicted[worst], score

    def summarize(self, totals: Totals, collected: Sequence[Any], spec: Spec) -> tuple[dict[str, float], Pictures]:
        names = class_names(spec, 'label', 'classification')
        drawings: Pictures = {}
        if 'confusion' in totals:
            drawings['confusion'] = lambda: pictures.confusion(totals['confusion'][0], names)
        if collected:
            images, labels, predicted, score = (np.concatenate(parts) for parts in zip(*collected, strict=True))
            misread = [index for index in np.argsort(-score, kind='stable')[:40] if score[index] >= 0]
            captions = [f'{names[labels[index]]} read as {names[predicted[index]]}' for index in misread]
            if misread:
                drawings['misread'] = lambda: pictures.grid(images[misread], captions)
        return ratios(totals), drawings

    def _targets(self, batch: Batch, num_classes: int) -> jax.Array:
        """What training aims at [N, classes]: mixed, then smoothed, then cut at the threshold."""
        targets = jax.nn.one_hot(batch['label'], num_classes)
        if 'mixed_label' in batch:
            own = batch['mix'][:, None]
            targets = own * targets + (1 - own) * jax.nn.one_hot(batch['mixed_label'], num_classes)
        targets = optax.smooth_labels(targets, self.label_smoothing)
        return targets if self.target_threshold is None else (targets > self.target_threshold).astype(targets.dtype)

    def _losses(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The cross-entropy of each example [N]."""
        if self.cross_entropy == 'binary':
            return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
        return optax.softmax_cross_entropy(logits, targets)


TASK = Classification
