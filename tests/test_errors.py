import pytest

from cnn.errors import nearest


@pytest.mark.parametrize(
    ('name', 'hint'),
    [('trian', "did you mean 'train'?"), ('', 'there are: data, train'), ('zzz', 'there are: data, train')],
)
def test_the_nearest_name_is_suggested_or_all_are_listed(name, hint):
    assert str(nearest('verb', name, ['train', 'data'])) == f'unknown verb {name!r}; {hint}'
