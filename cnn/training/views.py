"""Test-time augmentation: predictions averaged over views of an image."""

from typing import Any

import jax
import jax.numpy as jnp

from cnn.tasks import Apply

# By the name in config.eval.views: the weight of each view, and (up, left, mirrored) of its pixels.
VIEWS: dict[str, tuple[tuple[float, tuple[int, int, bool]], ...]] = {
    'one': ((1.0, (0, 0, False)),),
    'flip': tuple((1 / 2, (0, 0, mirrored)) for mirrored in (False, True)),
    # Half of the weight for the image in its place, half for two that are moved by a pixel, up and left or down and
    # right, as in Keller Jordan's airbench (arXiv:2404.00498).
    'shift_flip': tuple(
        (weight, (shift, shift, mirrored))
        for shift, weight in ((0, 1 / 4), (1, 1 / 8), (-1, 1 / 8))
        for mirrored in (False, True)
    ),
}


def averaged(apply: Apply, name: str) -> Apply:
    """An `apply` of images [N, H, W, C] that returns the weighted mean of the logits of their views.

    What a moved image lacks at its border is reflected. The views of an image lie side by side in the batch, on the
    device that has the image.
    """
    weights, places = zip(*VIEWS[name], strict=True)
    if len(places) == 1:
        return apply

    def apply_views(variables: Any, images: jax.Array, **options: Any) -> tuple[Any, Any]:
        views = jnp.stack([_view(images, *place) for place in places], 1)
        outputs, model_state = apply(variables, views.reshape(-1, *images.shape[1:]), **options)
        outputs = outputs.reshape(len(images), len(places), *outputs.shape[1:])
        return sum(weight * outputs[:, view] for view, weight in enumerate(weights)), model_state

    return apply_views


def _view(images: jax.Array, up: int, left: int, mirrored: bool) -> jax.Array:
    height, width = images.shape[1:3]
    framed = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), 'reflect')
    view = framed[:, 1 + up : 1 + up + height, 1 + left : 1 + left + width]
    return view[:, :, ::-1] if mirrored else view
