"""CIFAR-100: 60,000 photographs of 32 x 32 pixels in 100 classes of 20 kinds (Krizhevsky 2009)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from cnn.datasets import _cifar, _pictures
from cnn.datasets._archives import Archive, collect

ARCHIVES = [
    Archive(  # size and digest: TFDS 4.9.10, url_checksums/cifar100.txt
        'cifar-100-binary.tar.gz',
        168_513_733,
        '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
        ('https://www.cs.toronto.edu/~kriz/',),
    )
]
_MEMBERS = {'train': ['cifar-100-binary/train.bin'], 'test': ['cifar-100-binary/test.bin']}
_FINE = (
    'apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can '
    'castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin '
    'elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster '
    'man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck '
    'pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk '
    'skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger '
    'tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm'
)
_COARSE = (
    'aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices '
    'household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes '
    'large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees '
    'vehicles_1 vehicles_2'
)
NAMES, COARSE_NAMES = tuple(_FINE.split()), tuple(_COARSE.split())


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has its own
    """image uint8 (32, 32, 3), label (of 100) and coarse_label (of 20) int64, in the order of the archive.

    A set that TFDS prepared is shuffled.
    """

    name = 'cifar100'
    VERSION = tfds.core.Version('3.0.2')
    NUM_EXAMPLES = {'train': 50_000, 'test': 10_000}
    archives: str | None = None  # a directory that holds the archive; None: it is downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        return _pictures.info(self, _cifar.SHAPE, {'label': NAMES, 'coarse_label': COARSE_NAMES})

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        (archive,) = collect(ARCHIVES, self.name, self.archives, self.data_dir_root)
        return {split: self._generate_examples(archive, members) for split, members in _MEMBERS.items()}

    def _generate_examples(self, archive: Path, members: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = _cifar.read(archive, members, [len(COARSE_NAMES), len(NAMES)])
        return _pictures.examples(images, {'label': labels[:, 1], 'coarse_label': labels[:, 0]})
