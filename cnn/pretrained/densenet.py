"""Weights of densely connected networks."""

from cnn.pretrained import Naming

NAMINGS = {
    'torchvision': Naming(
        (
            (r'^stem_(conv|norm)/', r'features/\g<1>0/'),
            (r'^block(\d)_layer(\d+)/', r'features/denseblock\1/denselayer\2/'),
            (r'^transition(\d)_', r'features/transition\1/'),
            (r'^norm/', 'features/norm5/'),
            (r'^head/', 'classifier/'),
        ),
        # Published files were written when names of modules could hold dots.
        older=((r'(denselayer\d+\.(?:norm|conv))\.([12])\.', r'\1\2.'),),
    ),
}
