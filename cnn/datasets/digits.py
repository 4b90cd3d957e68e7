"""Handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels, by 43 writers."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# The images stand in the order of their source, the UCI test set, so the rows of another range are other writers'.
SPLITS = {'train': (0, 1293), 'validation': (1293, 1437), 'test': (1437, 1797)}
NAMES = tuple('0123456789')


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split, in scikit-learn's order.

    Returns:
      uint8 (n, 8, 8), where ink v of 0 .. 16 is stored as round(v * 255 / 16); round(x * 16 / 255) gives v back.
      int64 (n,), 0 .. 9.
    """
    import sklearn.datasets

    start, stop = SPLITS[split]
    ink, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = np.rint(ink[start:stop] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return images, labels[start:stop].astype(np.int64)


def png(image: np.ndarray) -> bytes:
    """A grey uint8 (height, width) image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'png')
    return buffer.getvalue()


class Builder(tfds.core.GeneratorBasedBuilder):
    """image uint8 (8, 8, 1), label int64. Source: E. Alpaydin and C. Kaynak, UCI repository, 1998."""

    name = 'digits'
    VERSION = tfds.core.Version('1.0.0')
    NUM_EXAMPLES = {split: stop - start for split, (start, stop) in SPLITS.items()}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(names=NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(*read(split), strict=True)):
            yield index, {'image': png(image), 'label': int(label)}
