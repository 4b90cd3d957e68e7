import errno

import pytest

from cnn.errors import RunFailed, nearest, of_disk


@pytest.mark.parametrize(
    ('name', 'hint'),
    [('trian', "did you mean 'train'?"), ('', 'there are: data, train'), ('zzz', 'there are: data, train')],
)
def test_the_nearest_name_is_suggested_or_all_are_listed(name, hint):
    assert str(nearest('verb', name, ['train', 'data'])) == f'unknown verb {name!r}; {hint}'


def test_what_a_disk_refuses_ends_a_run_with_the_remedy():
    full = of_disk(OSError(errno.ENOSPC, 'No space left on device', 'runs/a'))
    assert isinstance(full, RunFailed)
    assert str(full).endswith("No space left on device: 'runs/a'; make room, and the same command resumes")
    assert of_disk(FileNotFoundError(errno.ENOENT, 'No such file', 'runs/a')) is None
    assert of_disk(ValueError('no')) is None
