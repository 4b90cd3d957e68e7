"""Fashion-MNIST: 70,000 pictures of 28 x 28 pixels of Zalando's articles (Xiao, Rasul and Vollgraf 2017)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from cnn.datasets import _idx, _pictures
from cnn.datasets._archives import Archive, collect

_MIRRORS = (
    'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
    'https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/',
)
_FILES = (  # sizes and digests: TFDS 4.9.10, url_checksums/fashion_mnist.txt
    ('train-images-idx3-ubyte.gz', 26_421_880, '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84'),
    ('train-labels-idx1-ubyte.gz', 29_515, 'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845'),
    ('t10k-images-idx3-ubyte.gz', 4_422_102, '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073'),
    ('t10k-labels-idx1-ubyte.gz', 5_148, '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5'),
)
ARCHIVES = [Archive(*file, _MIRRORS) for file in _FILES]
NAMES = (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has its own
    """image uint8 (28, 28, 1), label int64, in the order of the archives. A set that TFDS prepared is shuffled."""

    name = 'fashion_mnist'
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
