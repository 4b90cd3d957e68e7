"""Weights of residual networks."""

from cnn.pretrained import Naming, pointwise

BLOCKS = (
    (r'^stage(\d)_block(\d+)/', r'layer\1/\2/'),
    (r'/norm(\d)/', r'/bn\1/'),
    (r'/shortcut_conv/', '/downsample/0/'),
    (r'/shortcut_norm/', '/downsample/1/'),
    (r'^head/', 'fc/'),
)
NAMINGS = {
    'torchvision': Naming(  # timm's too
        ((r'^stem_conv/', 'conv1/'), (r'^stem_norm/', 'bn1/'), *BLOCKS), variants='(?!v2_|cifar_wide).*'
    ),
    'timm_deep': Naming(
        (  # a stem of three convolutions and averages before projections
            (r'^stem_conv1/', 'conv1/0/'),
            (r'^stem_norm1/', 'conv1/1/'),
            (r'^stem_conv2/', 'conv1/3/'),
            (r'^stem_norm2/', 'conv1/4/'),
            (r'^stem_conv/', 'conv1/6/'),
            (r'^stem_norm/', 'bn1/'),
            (r'(_block\d+)/shortcut_conv/', r'\1/downsample/1/'),
            (r'(_block\d+)/shortcut_norm/', r'\1/downsample/2/'),
            *BLOCKS,
        ),
        variants='(?!v2_|cifar_wide).*',
    ),
    'timm': Naming(  # with preactivation
        (
            (r'^stem_conv/', 'stem/conv/'),
            (r'^stage(\d)_block(\d+)/', lambda match: f'stages/{int(match[1]) - 1}/blocks/{match[2]}/'),
            (r'/shortcut_conv/', '/downsample/conv/'),
            (r'^head/', 'head/fc/'),
        ),
        layout=pointwise(['head']),
    ),
}
