"""`digits` with room around them: 8 x 8 pixels in the middle of 16 x 16, the rest black; they can be moved by 4."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cnn.datasets import digits

FRAME = 4  # pixels on each side


class Builder(tfds.core.GeneratorBasedBuilder):
    """image uint8 (16, 16, 1), label int64; splits, order and source are those of `digits`."""

    name = 'framed_digits'
    VERSION = tfds.core.Version('1.0.0')
    NUM_EXAMPLES = digits.Builder.NUM_EXAMPLES

    def _info(self) -> tfds.core.DatasetInfo:
        side = 8 + 2 * FRAME
        features = {
            'image': tfds.features.Image(shape=(side, side, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(names=digits.NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in digits.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(*digits.read(split), strict=True)):
            yield index, {'image': digits.png(np.pad(image, FRAME)), 'label': int(label)}
