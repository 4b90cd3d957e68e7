"""Files of Python in place of configuration: what a function of one returns, with mistakes named by their line."""

import pathlib
import runpy
import traceback
from typing import TypeVar

from cnn.errors import InputError, nearest

T = TypeVar('T')
ROOT = pathlib.Path(__file__).resolve().parents[1]


def load(path: str, function: str, kind: type[T], folder: str = 'experiments') -> T:
    """What `function` of the file FILE[:ARG] returns, called with ARG where there is one.

    Args:
      kind: what it must return; its name, in lower case, is what a message calls the file.
      folder: under the checkout, where the nearest name of a file that does not exist is looked for.

    Raises InputError naming the line where the file goes wrong.
    """
    file, *argument = path.split(':', 1)
    if not pathlib.Path(file).is_file():
        known = [str(known.relative_to(ROOT)) for known in (ROOT / folder).rglob('*.py')]
        raise nearest(f'{kind.__name__.lower()} file', file, known)
    try:
        module = runpy.run_path(file)
        if function not in module:
            raise InputError(f'{file}:1: has no function {function}')
        made = module[function](*argument)
    except InputError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [1])[-1]
        raise InputError(f'{file}:{line}: {type(error).__name__}: {error}'.splitlines()[0]) from error
    if not isinstance(made, kind):
        article = 'an' if kind.__name__[0] in 'AEIOU' else 'a'
        raise InputError(f'{file}: {function} returns {type(made).__name__}, not {article} {kind.__name__}')
    return made
