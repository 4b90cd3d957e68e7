"""Weights of ConvNeXt."""

from cnn.pretrained import Layout, Naming, torch_layout


def layout(path: str, shape: tuple[int, ...]) -> Layout:
    """Convolutions of size 1 are dense layers, and scales have axes for the positions."""
    if path.endswith(('/expand/kernel', '/project/kernel')):
        return torch_layout(path, shape[2:])
    if path.endswith('/layer_scale'):
        return Layout(shape, (0,), (*shape, 1, 1))
    return torch_layout(path, shape)


NAMINGS = {
    'torchvision': Naming(
        (
            (r'^stem_conv/', 'features/0/0/'),
            (r'^stem_norm/', 'features/0/1/'),
            (r'^stage(\d)_norm/', lambda match: f'features/{2 * int(match[1]) - 2}/0/'),
            (r'^stage(\d)_conv/', lambda match: f'features/{2 * int(match[1]) - 2}/1/'),
            (r'^stage(\d)_block(\d+)/', lambda match: f'features/{2 * int(match[1]) - 1}/{match[2]}/'),
            (r'/depthwise/', '/block/0/'),
            (r'/norm/', '/block/2/'),
            (r'/expand/', '/block/3/'),
            (r'/project/', '/block/5/'),
            (r'^norm/', 'classifier/0/'),
            (r'^head/', 'classifier/2/'),
        ),
        layout=layout,
    ),
}
