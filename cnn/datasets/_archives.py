"""Official archives of data sets: downloaded once, or taken from a directory; always checked against their SHA-256."""

import contextlib
import dataclasses
import hashlib
import http.client
import logging
import os
import pathlib
import urllib.request
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from cnn.errors import InputError

_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 2**18  # bytes


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file as its makers published it: its name, size in bytes and SHA-256, and the directories that serve it."""

    name: str
    size: int
    sha256: str
    mirrors: tuple[str, ...]  # URLs that end with a slash, in the order in which they are tried


class _Unusable(Exception):
    """Why a mirror is of no use, in a few words."""


def collect(
    archives: Sequence[Archive], data_set: str, directory: str | None, root: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """The files of some archives, each with the content that it is to have.

    Args:
      directory: holds the files, itself or in a directory named like the data set; None: they are downloaded.
      root: of prepared data sets; downloads lie in downloads/DATA_SET there, and one that broke off is continued.

    Raises:
      InputError: a file that is missing or has another content; mirrors that cannot be used.
    """
    if directory is None:
        cache = pathlib.Path(root) / 'downloads' / data_set
        return [_download(archive, cache) for archive in archives]
    try:
        return _find(archives, data_set, pathlib.Path(directory).expanduser())
    except (InputError, OSError) as error:
        raise InputError(f'config.data.archives={directory!r}: {error}') from error


def _find(archives: Sequence[Archive], data_set: str, directory: pathlib.Path) -> list[pathlib.Path]:
    if not directory.is_dir():
        raise InputError('there is no such directory')
    found, missing = [], []
    for archive in archives:
        # MNIST's and Fashion-MNIST's files have the same names.
        places = [directory / data_set / archive.name, directory / archive.name]
        file = next(filter(pathlib.Path.is_file, places), None)
        if not file:
            missing.append(archive.name)
        elif difference := _difference(file, archive):
            raise InputError(f'{file} is not the official file ({difference})')
        else:
            found.append(file)
    if missing:
        raise InputError(
            f'data set {data_set!r} needs {", ".join(missing)} there; the source is {archives[0].mirrors[0]}'
        )
    return found


def _download(archive: Archive, cache: pathlib.Path) -> pathlib.Path:
    """The file in the cache: it has its own name only once its content is known to be right."""
    path, partial = cache / archive.name, cache / f'{archive.name}.part'
    if path.exists() and not _difference(path, archive):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    failures = []
    for mirror in archive.mirrors:
        url = mirror + archive.name
        logging.getLogger(__name__).info('downloading %s', url)
        try:
            _complete(url, partial, archive)
            return partial.rename(path)
        except _Unusable as error:
            failures.append(f'{url}: {error}')
    raise InputError(
        f'cannot download {archive.name} ({"; ".join(failures)}); '
        'where there is no network, config.data.archives=DIR takes a directory with the official files'
    )


def _complete(url: str, partial: pathlib.Path, archive: Archive) -> None:
    """Downloads the rest of a partial file, and where that breaks off the rest again, as long as it grows."""
    began = _size(partial)
    size, reason = -1, ''
    while size < _size(partial) < archive.size:
        size, reason = _size(partial), ''
        try:
            _append(url, partial, archive)
        except _Unusable as error:
            reason = str(error)
    if _size(partial) < archive.size:
        raise _Unusable(reason or f'ended after {_size(partial)} of {archive.size} bytes')
    difference = _difference(partial, archive)
    if not difference:
        return
    partial.unlink()
    if not began:
        raise _Unusable(f'sent another file, now deleted, of {difference}')
    _complete(url, partial, archive)  # what was there before may have been at fault


def _append(url: str, partial: pathlib.Path, archive: Archive) -> None:
    start = _size(partial)
    request = urllib.request.Request(url, headers={'Range': f'bytes={start}-'} if start else {})
    with _network():
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT  # other servers begin again
    with response, partial.open('ab' if resumed else 'wb') as file, _bar(archive, file.tell()) as bar:
        while file.tell() <= archive.size:
            with _network():
                chunk = response.read1(_CHUNK)  # what has come, so that none is lost with the connection
            if not chunk:
                return
            bar.update(file.write(chunk))


def _bar(archive: Archive, start: int) -> tqdm:
    """Bytes, rate and time left; only on a terminal."""
    return tqdm(
        desc=archive.name,
        total=archive.size,
        initial=start,
        unit='B',
        unit_scale=True,
        disable=None,
        dynamic_ncols=True,
    )


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Tells a server's failures from those of the disk, which are OSError too."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        reason = str(error).removeprefix('<urlopen error ').removesuffix('>') or type(error).__name__
        raise _Unusable(' '.join(reason.split())) from error


def _size(file: pathlib.Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _difference(file: pathlib.Path, archive: Archive) -> str:
    """What a file is instead of the archive; empty where it is the archive."""
    if _size(file) != archive.size:
        return f'{_size(file)} bytes instead of {archive.size}'
    with file.open('rb') as content:
        digest = hashlib.file_digest(content, 'sha256').hexdigest()
    return '' if digest == archive.sha256 else f'SHA-256 {digest} instead of {archive.sha256}'
