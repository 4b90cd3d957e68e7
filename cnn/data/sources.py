"""Name -> random-access source of examples.

A name is a data set of cnn/datasets (`digits`, `digit_scenes/128`), which prepares itself on first use, or any TFDS set
that lies prepared as ArrayRecord in the data directory (`mnist`, `my_set:1.0.0`, `my_set/config`): $TFDS_DATA_DIR, else
~/tensorflow_datasets. Prepared sets are read from their files alone; neither their code nor TensorFlow is imported.
TFDS itself is imported when data is asked for, and not before: machines without it can do everything else.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import logging
import operator
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cnn import datasets
from cnn.config import InputError, Spec, nearest

_NAME = re.compile(r'(?P<base>\w+)(/(?P<config>[^/:]+))?(:(?P<version>\d+\.\d+\.\d+))?')
_HASHED_BYTES = 64 * 2**20  # splits are fingerprinted by content below this size, by names and sizes of files above
_THREADED_BYTES = 2**15  # of an example. Measured on 2 cores: threads decode larger ones 1.3 to 1.9 times faster


def data_dir() -> pathlib.Path:
    """Where prepared data sets lie."""
    return pathlib.Path(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def names() -> dict[str, pathlib.Path]:
    """The data sets that `load` knows, and the file that makes each, or the directory of its latest version."""
    known = datasets.files()
    prepared = [*data_dir().glob('*/*/dataset_info.json'), *data_dir().glob('*/*/*/dataset_info.json')]
    for directory in sorted(filter(_version, (info.parent for info in prepared)), key=_version, reverse=True):
        known.setdefault(directory.parent.relative_to(data_dir()).as_posix(), directory)
    return known


def spec(name: str) -> Spec:
    """The spec of a data set: nothing is prepared. A dimension of -1 differs between examples.

    Raises:
      InputError: unknown name.
    """
    with _packages():
        return _spec(_builder(name))


def load(name: str, split: str, fields: Sequence[str]) -> 'Source':
    """The examples of a split, with just these fields.

    Args:
      split: a TFDS split expression: 'train', 'train[:90%]', 'train[100:200]', 'train+test'.
      fields: nested features are not offered.

    Raises:
      InputError: unknown name, split or field; damaged or missing files; a data directory that cannot be written to.
    """
    with _packages():
        builder = _builder(name)
        if not builder.info.splits:
            datasets.prepare(builder)
            builder = _builder(name)
        whole = _spec(builder)
        for field in fields:
            if field not in whole.shapes:
                raise InputError(f'data set {name!r} has no field {field!r}; its fields are {", ".join(whole.shapes)}')
        try:
            files = builder.info.splits[split].file_instructions
        except (KeyError, ValueError, AssertionError) as error:
            raise InputError(
                f'data set {name!r} has no split {split!r}; its splits are {", ".join(builder.info.splits)}, '
                "and slices of them such as 'train[:90%]'"
            ) from error
        if not files:
            raise InputError(f'split {split!r} of data set {name!r} holds no example')
        _check(files)
        return Source(builder, files, fields)


class Source:
    """Random access to the examples of a split: `source[i]` is a dict of arrays. Safe to share between threads.

    Attributes:
      spec: the Spec, of the asked fields only.
    """

    def __init__(self, builder: Any, files: Sequence[Any], fields: Sequence[str]):
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        info, whole = builder.info, _spec(builder)
        self.spec = dataclasses.replace(
            whole,
            shapes={field: whole.shapes[field] for field in fields},
            dtypes={field: whole.dtypes[field] for field in fields},
            class_names={field: whole.class_names[field] for field in fields if field in whole.class_names},
        )
        self._described = f'{info.full_name} {json.dumps(info.features.to_json(), sort_keys=True)}'
        self._features = tfds.features.FeaturesDict({field: info.features[field] for field in fields})
        self._drops = len(self._features) < len(info.features)
        self._class_maps = [field for field in fields if _is_class_map(info.features[field])]
        self._files = files
        self._shards = [ArrayRecordDataSource([file]) for file in files]
        self._ends = list(itertools.accumulate(len(shard) for shard in self._shards))

    def __setstate__(self, state: dict[str, Any]) -> None:
        _silence()  # in a process that reads for another one
        self.__dict__ |= state

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f'example {index} of {len(self)}')
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        return self._decode(self._read(shard, [index - start])[0])

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole split, decoded: each field stacked, (examples, ...).

        Raises:
          InputError: examples of different shapes.
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
            raise _damaged(self._files[shard].filename, _line(error)) from error

    def _decode(self, record: bytes) -> dict[str, np.ndarray]:
        if self._drops:  # TFDS passes over most features that are not asked for, but fails on ragged ones
            stored = _example_proto().FromString(record)
            for key in list(stored.features.feature):
                if key.partition('/')[0] not in self._features:
                    del stored.features.feature[key]
            record = stored.SerializeToString()
        example = self._features.deserialize_example_np(record)
        example |= {field: example[field][..., 0] for field in self._class_maps}
        return {field: np.asarray(example[field]) for field in self.spec.shapes}


def _builder(name: str) -> Any:
    """The TFDS builder of a name: of the data set's own code where it is embedded, else restored from its files."""
    import google.protobuf.json_format
    import tensorflow_datasets as tfds

    parts = _NAME.fullmatch(name)
    if not parts:
        raise InputError(
            f'{name!r} is not the name of a data set, such as digits, digit_scenes/128, mnist:3.0.1 or my_set/config'
        )
    base, config, version = parts['base'], parts['config'], parts['version']
    embedded = None
    if base in datasets.files():
        embedded = importlib.import_module(f'cnn.datasets.{base}').Builder
        if config and config not in embedded.builder_configs:
            raise nearest('data set', name, [f'{base}/{known}' for known in embedded.builder_configs] or [base])
    try:
        if embedded and version in (None, str(embedded.VERSION)):
            return embedded(config=config, data_dir=data_dir(), file_format='array_record')
        directory = _directory(base, config, version)
        if directory:
            return tfds.builder_from_directory(directory, file_format='array_record')
    except (OSError, ValueError, google.protobuf.json_format.ParseError) as error:
        raise InputError(
            f'data set {name!r} in {data_dir()} cannot be read ({_line(error)}); delete it there and prepare it again, '
            "with file_format='array_record'"
        ) from error
    raise InputError(
        f'{nearest("data set", name, names())} (looked in cnn/datasets and in {data_dir()}; TFDS_DATA_DIR names '
        "another directory, and TFDS sets are to be prepared there beforehand, with file_format='array_record')"
    )


def _directory(base: str, config: str | None, version: str | None) -> pathlib.Path | None:
    """Where a prepared set lies: its default config and its latest version where they are not given."""
    default = data_dir() / base / '.config' / 'metadata.json'  # written by TFDS for sets that have configs
    if not config and default.exists():
        config = json.loads(default.read_text())['default_config_name']
    found = (data_dir() / base / (config or '')).glob(f'{version or "*"}/dataset_info.json')
    return max(filter(_version, (info.parent for info in found)), key=_version, default=None)


def _version(directory: pathlib.Path) -> tuple[int, ...]:
    """For ordering; empty where the directory is not a prepared version."""
    return tuple(map(int, directory.name.split('.'))) if re.fullmatch(r'\d+\.\d+\.\d+', directory.name) else ()


def _check(files: Sequence[Any]) -> None:
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


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())


def _spec(builder: Any) -> Spec:
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


def _is_class_map(feature: Any) -> bool:
    """A class for every pixel: stored as an image, given without the channel axis."""
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.LabeledImage)


@contextlib.contextmanager
def _packages() -> Iterator[None]:
    """A missing package is the user's to install."""
    try:
        import array_record.python.array_record_module  # noqa: F401
        import tensorflow_datasets  # noqa: F401

        _silence()
        yield
    except ImportError as error:
        raise InputError(f'reading data needs a package ({error}); pip install -r requirements.txt') from error


def _silence() -> None:
    """TFDS tells through absl each thing that it does; its errors are enough."""
    logging.getLogger('absl').addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or 'tensorflow_datasets' not in record.pathname
