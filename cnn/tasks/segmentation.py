"""Segmentation: one class for every pixel."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn import pictures
from cnn.config import Spec
from cnn.layers import center_crop
from cnn.tasks import Apply, Batch, Pictures, Totals, class_names, ratios


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Cross-entropy over pixels, plus soft Dice if wanted; reads `image` and `semantic`.

    Where the network gives a smaller map than the picture (valid convolutions), the middle of the labels is used.
    """

    ignore_label: int = 255  # pixels with this label count nowhere
    background: Optional[int] = None  # a class that is left out of the mean IoU
    dice_weight: float = 0.0  # of 1 - Dice (Milletari et al. 2016), an image weighing as its labelled pixels do

    directions: ClassVar[Mapping[str, str]] = {'mean_iou': 'max', 'pixel_accuracy': 'max', 'loss': 'min'}

    def fields(self, spec: Spec) -> tuple[str, ...]:
        return 'image', 'semantic'

    def inputs(self, spec: Spec) -> tuple[jax.ShapeDtypeStruct]:
        return (jax.ShapeDtypeStruct((1, *spec.shapes['image']), spec.dtypes['image']),)

    def num_outputs(self, spec: Spec) -> int:
        return len(class_names(spec, 'semantic', 'segmentation'))

    def loss(self, apply: Apply, variables: Any, batch: Batch, key: jax.Array) -> Any:
        logits, model_state = apply(variables, batch['image'], train=True, key=key)  # [N, H, W, classes]
        label, labelled = self._target(batch, logits)
        count = labelled.sum()
        losses = (optax.softmax_cross_entropy_with_integer_labels(logits, label) * labelled).sum()
        losses += self.dice_weight * (_dice_loss(logits, label, labelled) * labelled.sum((1, 2))).sum()
        correct = ((logits.argmax(-1) == label) & labelled).sum()
        return (losses, count), (model_state, {'pixel_accuracy': (correct, count)})

    def predict(self, apply: Apply, variables: Any, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        logits, _ = apply(variables, batch['image'], train=False)
        return {'logits': logits, 'semantic': logits.argmax(-1)}

    def metrics(self, predictions: dict[str, jax.Array], batch: Batch) -> Totals:
        logits, predicted = predictions['logits'], predictions['semantic']
        label, labelled = self._target(batch, logits)
        count = labelled.sum()
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        confusion = jnp.zeros((logits.shape[-1],) * 2, jnp.int32).at[label, predicted].add(labelled)
        return {
            'pixel_accuracy': (((predicted == label) & labelled).sum(), count),
            'loss': ((losses * labelled).sum(), count),
            'confusion': (confusion, count),  # [true, predicted]
        }

    def collect(self, predictions: dict[str, jax.Array], batch: Batch) -> tuple[jax.Array, ...]:
        """The first pictures of a batch with their true and predicted maps, and which of them are no padding."""
        predicted = predictions['semantic'][:8]
        image, truth = (center_crop(batch[field][:8], predicted.shape) for field in ('image', 'semantic'))
        return image, truth, predicted, batch['valid'][:8]

    def summarize(self, totals: Totals, collected: Sequence[Any], spec: Spec) -> tuple[dict[str, float], Pictures]:
        iou = intersection_over_union(totals['confusion'][0])
        if self.background is not None:
            iou = np.delete(iou, self.background)
        drawings: Pictures = {}
        if collected:
            *maps, valid = collected[0]
            image, truth, predicted = (array[valid] for array in maps)
            names = class_names(spec, 'semantic', 'segmentation')
            drawings['segmentation'] = lambda: pictures.segmentation(image, truth, predicted, names, self.ignore_label)
        return {'mean_iou': float(np.nanmean(iou)), **ratios(totals)}, drawings

    def _target(self, batch: Batch, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Labels [N, H, W] in the frame of the logits, and where they count; ignored pixels hold class 0."""
        label = center_crop(batch['semantic'], logits.shape).astype(jnp.int32)
        labelled = (label != self.ignore_label) & batch['valid'][:, None, None]
        return jnp.where(labelled, label, 0), labelled


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """IoU by class of a matrix [true, predicted] of pixel counts; NaN for a class that is in neither."""
    hits = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def _dice_loss(logits: jax.Array, label: jax.Array, labelled: jax.Array) -> jax.Array:
    """1 - Dice of each image [N], the mean over classes, smoothed by one pixel."""
    probability = jax.nn.softmax(logits) * labelled[..., None]
    target = jax.nn.one_hot(label, logits.shape[-1]) * labelled[..., None]
    overlap = (probability * target).sum((1, 2))  # [N, classes]
    size = (probability + target).sum((1, 2))
    return 1 - ((2 * overlap + 1) / (size + 1)).mean(-1)


TASK = Segmentation
