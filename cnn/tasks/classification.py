"""Classification: one label for an example."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn import pictures
from cnn.config import Spec
from cnn.errors import InputError, nearest
from cnn.tasks import Apply, Batch, Pictures, Totals, class_names, input_field, ratios

CROSS_ENTROPIES = ('softmax', 'binary')
MOST_CLASSES = 1000  # of a confusion matrix; with the 21,841 of all ImageNet it would fill a device


@dataclasses.dataclass(frozen=True)
class Classification:
    """Cross-entropy over the classes of `label`; reads an image, signal, token sequence or video.

    Softmax; or binary, a sigmoid for each class and the mean over classes (Wightman et al. 2021). The target of a mixed
    example has the share `mix` on its own label and the rest on `mixed_label`. Evaluation reports the same loss, with
    targets that are neither smoothed nor mixed, and with `shifts` accuracy_shift1, accuracy_shift2, ...: the means over
    moves up, down, left and right, where the pixels at the border are repeated. Raises InputError for another
    cross-entropy, and for shifts of what is no image or too small.
    """

    label_smoothing: float = 0.0  # this share of the target is spread evenly over all classes (Szegedy et al. 2016)
    cross_entropy: str = 'softmax'  # softmax, binary
    target_threshold: Optional[float] = None  # in training, targets above it become 1 and the others 0
    shifts: int = 0  # pixels: evaluation also reads the images moved by 1, by 2, ... by this many

    gives_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.cross_entropy not in CROSS_ENTROPIES:
            raise nearest('cross_entropy of task classification', self.cross_entropy, CROSS_ENTROPIES)
        if self.shifts < 0:
            raise InputError(f'task classification: shifts={self.shifts} must be 0 or more pixels')

    @property
    def directions(self) -> dict[str, str]:
        shifted = {f'accuracy_shift{pixels}': 'max' for pixels in range(1, self.shifts + 1)}
        return {'accuracy': 'max', 'loss': 'min', **shifted}

    def fields(self, spec: Spec) -> tuple[str, ...]:
        return input_field(spec.shapes, 'classification'), 'label'

    def inputs(self, spec: Spec) -> tuple[jax.ShapeDtypeStruct]:
        field = input_field(spec.shapes, 'classification')
        if self.shifts and (field != 'image' or self.shifts >= min(spec.shapes['image'][:2])):
            raise InputError(
                f'task classification: shifts={self.shifts} needs images with more pixels a side; '
                f'the data has `{field}` {list(spec.shapes[field])}'
            )
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
        inputs = batch[input_field(batch, 'classification')]
        logits, _ = apply(variables, inputs, train=False)
        predictions = {'logits': logits, 'label': logits.argmax(-1)}
        if self.shifts:
            views = moved(inputs, self.shifts)
            logits, _ = apply(variables, views.reshape(-1, *inputs.shape[1:]), train=False)
            predictions['moved_label'] = logits.argmax(-1).reshape(views.shape[:3])  # [N, pixels, direction]
        return predictions

    def metrics(self, predictions: dict[str, jax.Array], batch: Batch) -> Totals:
        valid, label, predicted = batch['valid'], batch['label'], predictions['label']
        count = valid.sum()
        losses = self._losses(predictions['logits'], jax.nn.one_hot(label, predictions['logits'].shape[-1]))
        totals = {
            'accuracy': (((predicted == label) & valid).sum(), count),
            'loss': ((losses * valid).sum(), count),
        }
        if self.shifts:
            right = (predictions['moved_label'] == label[:, None, None]) & valid[:, None, None]
            for pixels in range(1, self.shifts + 1):
                totals[f'accuracy_shift{pixels}'] = (right[:, pixels - 1].sum(), 4 * count)
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


def moved(images: jax.Array, furthest: int) -> jax.Array:
    """Images [N, H, W, C] moved by 1 to `furthest` pixels, up, down, left and right: [N, furthest, 4, H, W, C]."""
    framed = jnp.pad(images, ((0, 0), (furthest, furthest), (furthest, furthest), (0, 0)), 'edge')
    height, width = images.shape[1:3]

    def view(down: int, right: int) -> jax.Array:
        top, left = furthest - down, furthest - right
        return framed[:, top : top + height, left : left + width]

    distances = range(1, furthest + 1)
    return jnp.stack([jnp.stack([view(-n, 0), view(n, 0), view(0, -n), view(0, n)], 1) for n in distances], 1)


TASK = Classification
