"""Random access to the examples of a prepared set: records in ArrayRecord files, decoded without TensorFlow."""

import bisect
import concurrent.futures
import functools
import hashlib
import itertools
import json
import logging
import operator
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cnn.config import Spec
from cnn.data import decoding
from cnn.data.decoding import Unreadable
from cnn.data.files import narrowed
from cnn.errors import InputError

_HASHED_BYTES = 64 * 2**20  # splits are fingerprinted by content below this size, by names and sizes of files above
_THREADED_BYTES = 2**15  # of an example. Measured on 2 cores: threads decode larger ones 1.3 to 1.9 times faster


class RecordSource:
    """The Source of a split of a prepared set; see cnn/data/sources.py. Safe to share between threads."""

    notes: Mapping[str, Sequence[str]] = {}

    def __init__(self, builder: Any, split: str, files: Sequence[Any], fields: Sequence[str]):
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        info = builder.info
        self.spec = narrowed(info.name, spec(builder), fields)
        self._described = f'{info.full_name} {json.dumps(info.features.to_json(), sort_keys=True)}'
        self._features = tfds.features.FeaturesDict({field: info.features[field] for field in fields})
        self._drops = len(self._features) < len(info.features)
        self._class_maps = [field for field in fields if _is_class_map(info.features[field])]
        # TFDS decodes pictures of one size; of different sizes, and of whatever mode, they are decoded here.
        self._encoded = [field for field in fields if _is_picture(info.features[field])]
        self._ragged = [field for field in self._encoded if -1 in self.spec.shapes[field]]
        self._split, self._files = split, files
        self._shards = [ArrayRecordDataSource([file]) for file in files]
        self._ends = list(itertools.accumulate(len(shard) for shard in self._shards))

    def __setstate__(self, state: dict[str, Any]) -> None:
        silence()  # in a process that reads for another one
        self.__dict__ |= state

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._example(index, self._ragged, decoding.decode_picture)

    def read(self, index: int, decode: Callable[[bytes], np.ndarray]) -> dict[str, Any]:
        """Example `index` with its pictures decoded by `decode`, from their bytes as stored. Raises Unreadable."""
        return self._example(index, self._encoded, decode)

    def where(self, index: int) -> str:
        """The place of an example, for messages."""
        return f'example {index} of {self._split} in {pathlib.Path(self._files[0].filename).parent}'

    def _example(self, index: int, encoded: Sequence[str], decode: Callable[[bytes], np.ndarray]) -> dict[str, Any]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f'example {index} of {len(self)}')
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        record = self._read(shard, [index - start])[0]
        try:
            return self._decode(record, encoded, decode)
        except Unreadable as error:
            raise Unreadable(f'{self.where(index)}: {error}') from error

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole split, decoded: each field stacked, (examples, ...).

        Raises:
          InputError: examples of different shapes.
          Unreadable: a picture that can't be decoded.
        """
        ragged = [field for field, shape in self.spec.shapes.items() if -1 in shape]
        if ragged:
            raise InputError(f'{", ".join(ragged)}: examples of different shapes cannot be stacked; stream them')
        stacked = {
            field: np.empty((len(self), *shape), self.spec.dtypes[field]) for field, shape in self.spec.shapes.items()
        }
        with concurrent.futures.ThreadPoolExecutor() as pool:
            threaded = sum(array.nbytes for array in stacked.values()) >= _THREADED_BYTES * len(self)
            for index, example in enumerate((pool.map if threaded else map)(self._decode, self._records())):
                for field, value in example.items():
                    stacked[field][index] = value
        return stacked

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal; of the set's description and of all fields of these examples, wherever the files lie."""
        digest = hashlib.sha256(self._described.encode())
        paths = [pathlib.Path(file.filename) for file in self._files]
        if sum(path.stat().st_size for path in paths) < _HASHED_BYTES:
            for record in self._records():
                # Protobuf writes the fields in an order that changes from process to process.
                ordered = _example_proto().FromString(record).SerializeToString(deterministic=True)
                digest.update(hashlib.sha256(ordered).digest())
        else:
            for path, file in zip(paths, self._files, strict=True):
                digest.update(f'{path.name} {path.stat().st_size} {file.skip} {file.take}\n'.encode())
        return digest.hexdigest()

    def _records(self) -> Iterator[bytes]:
        for shard, source in enumerate(self._shards):
            yield from self._read(shard, range(len(source)))

    def _read(self, shard: int, positions: Sequence[int]) -> Sequence[bytes]:
        try:
            return self._shards[shard].__getitems__(positions)
        except RuntimeError as error:  # ArrayRecord keeps a hash of each record
            raise _damaged(self._files[shard].filename, one_line(error)) from error

    def _decode(
        self,
        record: bytes,
        encoded: Sequence[str] = (),
        decode: Callable[[bytes], np.ndarray] = decoding.decode_picture,
    ) -> dict[str, np.ndarray]:
        """An example with the pictures of the fields `encoded` decoded by `decode`, all else by TFDS."""
        import tensorflow_datasets as tfds

        if self._drops:  # TFDS passes over most features that are not asked for, but fails on ragged ones
            stored = _example_proto().FromString(record)
            for key in list(stored.features.feature):
                if key.partition('/')[0] not in self._features:
                    del stored.features.feature[key]
            record = stored.SerializeToString()
        skipped = {field: tfds.decode.SkipDecoding() for field in encoded}
        try:
            example = self._features.deserialize_example_np(record, decoders=skipped)
        except (OSError, SyntaxError) as error:  # of Pillow's, for pictures of one size
            raise Unreadable(one_line(error)) from error
        example |= {field: example[field][..., 0] for field in self._class_maps}
        for field in encoded:
            picture, channels = decode(example[field]), self.spec.shapes[field][-1]
            example[field] = np.repeat(picture, channels, -1) if picture.shape[-1] == 1 else picture
        return {field: np.asarray(example[field]) for field in self.spec.shapes}


def check(files: Sequence[Any]) -> None:
    """Refuses record files that are missing or lost their end: ArrayRecord would give empty records for some."""
    from array_record.python.array_record_module import ArrayRecordReader

    for file in files:
        if not os.path.exists(file.filename):
            raise _damaged(file.filename, 'it is missing')
        reader = ArrayRecordReader(file.filename)
        if reader.num_records() != file.examples_in_shard:
            raise _damaged(file.filename, f'{reader.num_records()} of {file.examples_in_shard} records can be read')
        reader.close()


def _damaged(filename: str, reason: str) -> InputError:
    return InputError(
        f'record file {filename} is damaged ({reason}); delete {os.path.dirname(filename)} and prepare it again '
        '(the data sets of cnn/datasets prepare themselves)'
    )


def one_line(error: Exception) -> str:
    """Its message, for a message of ours."""
    return ' '.join(str(error).split())


def spec(builder: Any) -> Spec:
    """The spec of a set: nested features are left out."""
    import tensorflow_datasets as tfds

    features = {
        name: feature
        for name, feature in builder.info.features.items()
        if isinstance(feature.shape, tuple)
        and not isinstance(getattr(feature, 'feature', None), tfds.features.Sequence)
    }
    labels = {name: getattr(feature, 'feature', feature) for name, feature in features.items()}  # a sequence's element
    shapes = {name: tuple(-1 if n is None else n for n in feature.shape) for name, feature in features.items()}
    return Spec(
        shapes={name: shape[:-1] if _is_class_map(features[name]) else shape for name, shape in shapes.items()},
        dtypes={name: np.dtype(feature.np_dtype).name for name, feature in features.items()},
        class_names={name: tuple(label.names) for name, label in labels.items() if getattr(label, 'num_classes', None)},
        num_examples={split: info.num_examples for split, info in builder.info.splits.items()}
        or getattr(builder, 'NUM_EXAMPLES', {}),
    )


def _example_proto() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def _is_picture(feature: Any) -> bool:
    """Stored as a file of 8 bits, grey or in colour, as cnn/data/decoding.py reads them."""
    import tensorflow_datasets as tfds

    return type(feature) is tfds.features.Image and feature.np_dtype == np.uint8 and feature.shape[-1] in (1, 3)


def _is_class_map(feature: Any) -> bool:
    """A class for every pixel: stored as an image, given without the channel axis."""
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.LabeledImage)


def silence() -> None:
    """TFDS tells through absl each thing that it does; its errors are enough."""
    logging.getLogger('absl').addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or 'tensorflow_datasets' not in record.pathname
