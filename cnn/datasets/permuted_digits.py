"""`digits` with their pixels in another order, one for all pictures: what is near in one tells nothing any more.

What Le, Jaitly & Hinton 2015 (A Simple Way to Initialize Recurrent Networks of Rectified Linear Units, section 4.2) do
to MNIST. A network that looks at all pixels alike has the same task as before.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cnn.datasets import digits

# Where each pixel comes from, of 64 row by row. NumPy promises the raw bits of Philox for ever.
ORDER = np.argsort(np.random.Philox(key=[0, 0]).random_raw(64), kind='stable')


class Builder(digits.Builder):
    """image uint8 (8, 8, 1), label int64; splits, order and source are those of `digits`."""

    name = 'permuted_digits'
    VERSION = tfds.core.Version('1.0.0')

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(*digits.read(split), strict=True)):
            yield index, {'image': digits.png(image.ravel()[ORDER].reshape(8, 8)), 'label': int(label)}
