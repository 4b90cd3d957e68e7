"""MNIST: 70,000 handwritten digits of 28 x 28 pixels (LeCun, Bottou, Bengio and Haffner 1998)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from cnn.datasets import _idx, _pictures
from cnn.datasets._archives import Archive, collect

_MIRRORS = ('https://storage.googleapis.com/cvdf-datasets/mnist/', 'https://ossci-datasets.s3.amazonaws.com/mnist/')
_FILES = (  # sizes and digests: TFDS 4.9.10, url_checksums/mnist.txt
    ('train-images-idx3-ubyte.gz', 9_912_422, '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609'),
    ('train-labels-idx1-ubyte.gz', 28_881, '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c'),
    ('t10k-images-idx3-ubyte.gz', 1_648_877, '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6'),
    ('t10k-labels-idx1-ubyte.gz', 4_542, 'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6'),
)
ARCHIVES = [Archive(*file, _MIRRORS) for file in _FILES]
NAMES = tuple('0123456789')


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has its own
    """image uint8 (28, 28, 1), label int64, in the order of the archives. A set that TFDS prepared is shuffled."""

    name = 'mnist'
    VERSION = tfds.core.Version('3.0.1')
    NUM_EXAMPLES = {'train': 60_000, 'test': 10_000}
    archives: str | None = None  # a directory that holds the files; None: they are downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        return _pictures.info(self, _idx.SHAPE, {'label': NAMES})

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        files = collect(ARCHIVES, self.name, self.archives, self.data_dir_root)
        return {'train': self._generate_examples(*files[:2]), 'test': self._generate_examples(*files[2:])}

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        pictures, numbers = _idx.read(images, labels, len(NAMES))
        return _pictures.examples(pictures, {'label': numbers})
