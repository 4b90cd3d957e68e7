"""How a command ends that can't go on: each in one line, with an exit code."""

import difflib
import errno
from collections.abc import Iterable


class InputError(ValueError):
    """The user's mistake: one line that names the input and the remedy."""

    exit_code = 2


class RunFailed(Exception):
    """What ends a run that was asked for rightly, in one line: divergence, a damaged checkpoint, a full disk."""

    exit_code = 1


class RunStopped(Exception):
    """SIGTERM came; the state is saved and the same command resumes."""

    exit_code = 75


def nearest(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the nearest one that does."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    hint = f'did you mean {close[0]!r}?' if close else f'there are: {", ".join(choices) or "none"}'
    return InputError(f'unknown {kind} {name!r}; {hint}')


def of_disk(error: Exception) -> RunFailed | None:
    """What to say of a disk that is full, read-only or broken; None where the error is another."""
    disk = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    if isinstance(error, OSError) and error.errno in disk:
        return RunFailed(f'{error}; make room, and the same command resumes')
    return None
