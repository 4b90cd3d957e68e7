"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in 10 classes (Krizhevsky 2009)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from cnn.datasets import _cifar, _pictures
from cnn.datasets._archives import Archive, collect

ARCHIVES = [
    Archive(  # size and digest: TFDS 4.9.10, url_checksums/cifar10.txt
        'cifar-10-binary.tar.gz',
        170_052_171,
        'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
        ('https://www.cs.toronto.edu/~kriz/',),
    )
]
_MEMBERS = {
    'train': [f'cifar-10-batches-bin/data_batch_{number}.bin' for number in range(1, 6)],
    'test': ['cifar-10-batches-bin/test_batch.bin'],
}
NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has its own
    """image uint8 (32, 32, 3), label int64, in the order of the archive. A set that TFDS prepared is shuffled."""

    name = 'cifar10'
    VERSION = tfds.core.Version('3.0.2')
    NUM_EXAMPLES = {'train': 50_000, 'test': 10_000}
    archives: str | None = None  # a directory that holds the archive; None: it is downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        return _pictures.info(self, _cifar.SHAPE, {'label': NAMES})

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        (archive,) = collect(ARCHIVES, self.name, self.archives, self.data_dir_root)
        return {split: self._generate_examples(archive, members) for split, members in _MEMBERS.items()}

    def _generate_examples(self, archive: Path, members: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = _cifar.read(archive, members, [len(NAMES)])
        return _pictures.examples(images, {'label': labels[:, 0]})
