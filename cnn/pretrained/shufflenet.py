"""Weights of ShuffleNets."""

from cnn.pretrained import Naming

NAMINGS = {
    'torchvision': Naming(
        (
            (r'^stem_conv/', 'conv1/0/'),
            (r'^stem_norm/', 'conv1/1/'),
            (r'^last_conv/', 'conv5/0/'),
            (r'^last_norm/', 'conv5/1/'),
            (r'^stage(\d)_unit(\d+)/', r'stage\1/\2/'),
            (r'/shortcut_conv1/', '/branch1/0/'),
            (r'/shortcut_norm1/', '/branch1/1/'),
            (r'/shortcut_conv2/', '/branch1/2/'),
            (r'/shortcut_norm2/', '/branch1/3/'),
            (r'(stage\d/\d+)/conv1/', r'\1/branch2/0/'),
            (r'(stage\d/\d+)/norm1/', r'\1/branch2/1/'),
            (r'(stage\d/\d+)/conv2/', r'\1/branch2/3/'),
            (r'(stage\d/\d+)/norm2/', r'\1/branch2/4/'),
            (r'(stage\d/\d+)/conv3/', r'\1/branch2/5/'),
            (r'(stage\d/\d+)/norm3/', r'\1/branch2/6/'),
            (r'^head/', 'fc/'),
        ),
        variants='v2.*',
    ),
    'reference': Naming(  # v1, whose authors' files have their shuffle the other way round
        (
            (r'^stem_(conv|norm)/', r'\1/'),
            (r'^stage(\d)_unit(\d+)/', r'stage\1/\2/'),
            (r'^head/', 'fc/'),
        ),
        variants='v1.*',
    ),
}
