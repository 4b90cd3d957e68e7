"""Labelled images in the binary version of the CIFAR archives: records of labels and planes of red, green and blue."""

import pathlib
import tarfile
from collections.abc import Sequence

import numpy as np

from cnn.errors import InputError

SHAPE = (32, 32, 3)


def read(archive: pathlib.Path, members: Sequence[str], classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The records of some members of an archive, one after the other. Nothing is unpacked to the disk.

    Args:
      classes: how many there are, for each label of a record.

    Returns:
      Images uint8 (n, 32, 32, 3) and labels uint8 (n, len(classes)).

    Raises:
      InputError: names the archive, and the member that lacks or has another form.
    """
    contents = _members(archive, members)
    height, width, channels = SHAPE
    width_of_record = len(classes) + height * width * channels
    for member, content in contents.items():
        if len(content) % width_of_record:
            raise InputError(f'{archive}: {member} has {len(content)} bytes, no multiple of {width_of_record}')
    records = np.frombuffer(b''.join(contents[member] for member in members), np.uint8).reshape(-1, width_of_record)
    labels, pixels = records[:, : len(classes)], records[:, len(classes) :]
    if np.any(labels >= np.array(classes)):
        raise InputError(f'{archive}: labels up to {labels.max(0)} in a set of {classes} classes')
    return pixels.reshape(-1, channels, height, width).transpose(0, 2, 3, 1), labels


def _members(archive: pathlib.Path, names: Sequence[str]) -> dict[str, bytes]:
    """The content of regular files in an archive, by name."""
    found = {}
    try:
        with tarfile.open(archive, 'r|gz') as tar:  # a stream: gzip cannot seek
            for member in tar:
                content = tar.extractfile(member) if member.isfile() and member.name in names else None
                if content:
                    found[member.name] = content.read()
    except tarfile.TarError as error:
        raise InputError(f'{archive}: no gzipped tar file, or a damaged one ({error})') from error
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f'{archive}: holds no file {", ".join(missing)}')
    return found
