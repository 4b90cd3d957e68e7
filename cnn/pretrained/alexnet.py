"""Weights of AlexNet."""

from cnn.pretrained import Naming, flattened

CONVOLUTIONS = (0, 3, 6, 8, 10)
DENSE = (1, 4)


NAMINGS = {
    'torchvision': Naming(
        (
            (r'^conv(\d)/', lambda match: f'features/{CONVOLUTIONS[int(match[1]) - 1]}/'),
            (r'^dense_(\d)/', lambda match: f'classifier/{DENSE[int(match[1])]}/'),
            (r'^head/', 'classifier/6/'),
        ),
        flattened({'dense_0': 36}),  # of 6 x 6
    ),
}
