"""Weights of VGG, numbered by torchvision through all layers, so that each form has other numbers."""

from cnn.models import vgg
from cnn.pretrained import Naming, Rules, flattened

LAYOUT = flattened({'dense_0': 49})  # of 7 x 7


def rules(depths: tuple[int, ...], normalized: bool) -> Rules:
    """Names of the layers of stages of so many convolutions."""
    numbered, position = [], 0
    for stage, depth in enumerate(depths, start=1):
        for index in range(1, depth + 1):
            numbered.append((rf'^stage{stage}_conv{index}/', f'features/{position}/'))
            numbered.append((rf'^stage{stage}_norm{index}/', f'features/{position + 1}/'))
            position += 3 if normalized else 2  # with its activation
        position += 1  # the pool
    return (*numbered, (r'^dense_0/', 'classifier/0/'), (r'^dense_1/', 'classifier/3/'), (r'^head/', 'classifier/6/'))


NAMINGS = {
    f'torchvision_{name}': Naming(rules(variant.fields['depths'], 'norm' in variant.fields), LAYOUT, variants=name)
    for name, variant in vgg.VARIANTS.items()
}
