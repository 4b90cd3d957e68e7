"""Weights of cifar10-airbench's network."""

from cnn.pretrained import Naming

NAMINGS = {'airbench': Naming(((r'^group(\d)/', r'layers/\1/'),))}
