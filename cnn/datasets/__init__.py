"""Data sets that prepare themselves, without TensorFlow; `x.py` holds data set `x`.

`digits`, `framed_digits`, `permuted_digits` and `digit_scenes` are made here; the others come from their official
archives, which are downloaded or lie in a directory. Each module has a `Builder`, a TFDS builder named like the file
that says its NUM_EXAMPLES by split.
"""

import contextlib
import fcntl
import io
import logging
import pathlib
import shutil
from typing import Any

from cnn.errors import InputError


def files() -> dict[str, pathlib.Path]:
    """The file of each data set."""
    return {file.stem: file for file in sorted(pathlib.Path(__file__).parent.glob('[!_]*.py'))}


def prepare(builder: Any, archives: str | None = None) -> None:
    """Writes the records of a data set; where several processes want it at once, one does and the others wait.

    Args:
      archives: a directory with the official archives, in place of the network.

    Raises:
      InputError: a full disk, a data directory that cannot be written to, archives that cannot be had.
    """
    import tensorflow_datasets as tfds

    root, directory = pathlib.Path(builder.data_dir_root), pathlib.Path(builder.data_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / f'.{builder.name}.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
            if (directory / 'dataset_info.json').exists():
                return
            if directory.exists():  # TFDS names it only when it is whole
                raise InputError(f'{directory} lacks its dataset_info.json; delete it, and it is prepared again')
            for left in directory.parent.glob('incomplete.*'):  # by a process that was killed
                shutil.rmtree(left)
            logging.getLogger(__name__).info('preparing %s in %s', builder.info.full_name, directory)
            builder.archives = archives
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # ArrayRecord says RuntimeError where the disk is full
        raise InputError(
            f'cannot prepare data set {builder.name!r} in {root} ({" ".join(str(error).split())}); '
            'set TFDS_DATA_DIR to a directory with free space that you may write to'
        ) from error
