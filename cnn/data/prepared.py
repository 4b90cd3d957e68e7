"""Data sets as TFDS prepares them: records in ArrayRecord files.

A name is a data set of cnn/datasets (`digits`, `digit_scenes/128`), which prepares itself on first use, or any TFDS set
that lies prepared as ArrayRecord in the data directory (`my_set:1.0.0`, `my_set/config`): $TFDS_DATA_DIR, else
~/tensorflow_datasets. Prepared sets are read from their files alone; neither their code nor TensorFlow is imported.
The sets of TFDS's own catalogue that do not lie there are prepared on first use where TensorFlow is installed.
TFDS itself is imported when data is asked for, and not before: machines without it can do everything else.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from cnn import datasets
from cnn.config import Spec
from cnn.data import records
from cnn.data.files import narrowed
from cnn.data.records import RecordSource
from cnn.errors import InputError, nearest

_NAME = re.compile(r'(?P<base>\w+)(/(?P<config>[^/:]+))?(:(?P<version>\d+\.\d+\.\d+))?')


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
      InputError: unknown name; a set that only TensorFlow prepares, where there is none.
    """
    with _packages():
        return records.spec(_builder(name))


def load(name: str, split: str, fields: Sequence[str], archives: str | None = None) -> RecordSource:
    """The examples of a split, with just these fields; the set is prepared where it is not.

    Args:
      split: a TFDS split expression: 'train', 'train[:90%]', 'train[100:200]', 'train+test'.
      fields: nested features are not offered.
      archives: a directory with official archives, in place of the network.

    Raises:
      InputError: unknown name, split or field; damaged or missing files; a data directory that cannot be written to.
    """
    with _packages():
        builder = _builder(name)
        if not builder.info.splits:
            _prepare(name, builder, archives)
            builder = _builder(name)
        narrowed(name, records.spec(builder), fields)
        try:
            files = builder.info.splits[split].file_instructions
        except (KeyError, ValueError, AssertionError) as error:
            raise InputError(
                f'data set {name!r} has no split {split!r}; its splits are {", ".join(builder.info.splits)}, '
                "and slices of them such as 'train[:90%]'"
            ) from error
        if not files:
            raise InputError(f'split {split!r} of data set {name!r} holds no example')
        records.check(files)
        return RecordSource(builder, split, files, fields)


def _prepare(name: str, builder: Any, archives: str | None) -> None:
    try:
        datasets.prepare(builder, archives)
    except InputError:
        raise
    except Exception as error:
        if builder.name in datasets.files():
            raise
        # TFDS's own code asks for files that must be fetched by hand, or finds that a site has changed.
        raise InputError(f'TFDS can not prepare data set {name!r}: {records.one_line(error)}') from error


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
            f'data set {name!r} in {data_dir()} cannot be read ({records.one_line(error)}); '
            "delete it there and prepare it again, with file_format='array_record'"
        ) from error
    if not embedded and base in tfds.list_builders(with_community_datasets=False):
        return _catalogued(name)
    raise InputError(
        f'{nearest("data set", name, names())} (looked in cnn/datasets and in {data_dir()}; TFDS_DATA_DIR names '
        "another directory, and sets of your own are to be prepared there, with file_format='array_record')"
    )


def _catalogued(name: str) -> Any:
    """The builder of a set of TFDS's catalogue that is yet to be prepared."""
    import tensorflow_datasets as tfds

    if not importlib.util.find_spec('tensorflow'):
        raise InputError(
            f'data set {name!r} is not in {data_dir()}, and preparing it needs TensorFlow, once: '
            f'pip install tensorflow, then python launch.py data --config.data.name={name}; '
            'it is read without TensorFlow ever after'
        )
    try:
        return tfds.builder(name, data_dir=data_dir(), file_format='array_record')
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(f'unknown data set {name!r} ({records.one_line(error)})') from error


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


@contextlib.contextmanager
def _packages() -> Iterator[None]:
    """A missing package is the user's to install."""
    try:
        import array_record.python.array_record_module  # noqa: F401
        import tensorflow_datasets  # noqa: F401

        records.silence()
        yield
    except ImportError as error:
        raise InputError(f'reading data needs a package ({error}); pip install -r requirements.txt') from error
