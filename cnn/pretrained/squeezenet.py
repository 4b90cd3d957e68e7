"""Weights of SqueezeNet, numbered by torchvision through all layers, so that each form has other numbers."""

from cnn.pretrained import Naming, Rules


def rules(fires: tuple[int, ...]) -> Rules:
    """Names of the layers, given the numbers of the fire modules."""
    return (
        (r'^conv1/', 'features/0/'),
        (r'^fire(\d)/', lambda match: f'features/{fires[int(match[1]) - 2]}/'),
        (r'^head/', 'classifier/1/'),
    )


NAMINGS = {
    'torchvision_1_0': Naming(rules((3, 4, 5, 7, 8, 9, 10, 12)), variants='1_0'),
    'torchvision_1_1': Naming(rules((3, 4, 6, 7, 9, 10, 11, 12)), variants='1_1'),
}
