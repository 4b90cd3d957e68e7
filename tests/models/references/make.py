"""Makes the fixtures beside this file: outputs and gradients of networks by other people, with weights of formula.py.

    pip install torch==2.13.0 keras==3.15.1
    pip install --no-deps torchvision==0.28.0 timm huggingface_hub safetensors pyyaml
    python -m tests.models.references.make [FAMILY ...]

airbench needs airbench94_muon.py of github.com/KellerJordan/cifar10-airbench, at f1c599c, in a folder of PYTHONPATH.

A fixture FAMILY.json holds, for each network of ours, which network of whom computed it, whose names its weights have
in cnn/pretrained, the shape of the input, a fingerprint of those names and shapes, and samples of the outputs and of
the gradient by the input of their product with a formula. All is computed in float64. With 'train' the network is in
training mode, and the fixture holds samples of its running statistics afterwards too: for each layer of batch
normalisation the mean, the variance, and over how many positions they were taken.
"""

import collections
import functools
import importlib.metadata
import json
import pathlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

# The wheel for CPUs lacks these two operations, without which torchvision can't be imported.
library = torch.library.Library('torchvision', 'DEF')
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

import timm  # noqa: E402
import torchvision  # noqa: E402

from tests.models.references import networks  # noqa: E402
from tests.models.references.formula import fingerprint, samples, uniform, weight  # noqa: E402


class Reference(NamedTuple):
    """A network of theirs that computes what one of ours does."""

    source: str  # a package, or where the network is written
    build: Callable[[], torch.nn.Module]
    options: dict[str, Any] = {}  # of ours
    shape: tuple[int, ...] = (2, 64, 64, 3)
    outputs: int = 1000
    naming: str = 'torchvision'
    train: bool = False
    kernel_outputs: int = 0  # the axis of their kernels that counts outputs


NO_ARGUMENTS: Mapping[str, Any] = types.MappingProxyType({})


def vision(
    name: str, *, naming: str = 'torchvision', arguments: Mapping[str, Any] = NO_ARGUMENTS, **fields: Any
) -> Reference:
    """A network of torchvision."""
    build = functools.partial(getattr(torchvision.models, name), weights=None, **arguments)
    return Reference(f'torchvision {name}', build, naming=naming, **fields)


def image_models(
    name: str, *, naming: str = 'timm', arguments: Mapping[str, Any] = NO_ARGUMENTS, **fields: Any
) -> Reference:
    """A network of timm."""
    return Reference(f'timm {name}', functools.partial(timm.create_model, name, **arguments), naming=naming, **fields)


def keras_mobilenet(alpha: float) -> Reference:
    """Keras's MobileNet, the first version."""
    build = functools.partial(networks.KerasMobileNet, alpha)
    return Reference('keras MobileNet', build, naming='keras', kernel_outputs=-1)


def ours(name: str, build: Callable[[], torch.nn.Module], **fields: Any) -> Reference:
    """A network put together in networks.py."""
    return Reference(f'tests/models/references/networks.py {name}', build, **fields)


CIFAR = {'shape': (2, 32, 32, 3), 'outputs': 10}
REFERENCES: dict[str, dict[str, Reference]] = {
    'resnet': {
        **{f'resnet/{depth}': vision(f'resnet{depth}') for depth in (18, 34, 50, 101, 152)},
        'resnet/18 train': vision('resnet18', train=True),
        'resnet/wide50_2': vision('wide_resnet50_2'),
        'resnet/wide101_2': vision('wide_resnet101_2'),
        'resnet/resnext50_32x4d': vision('resnext50_32x4d'),
        'resnet/resnext101_32x8d': vision('resnext101_32x8d'),
        'resnet/resnext101_64x4d': vision('resnext101_64x4d'),
        'resnet/v2_50': image_models('resnetv2_50'),
        'resnet/v2_101': image_models('resnetv2_101'),
        'resnet/cifar18': ours('cifar_resnet18', networks.cifar_resnet18, **CIFAR),
        **{
            f'resnet/cifar{depth}': ours('CifarResNet', functools.partial(networks.CifarResNet, depth), **CIFAR)
            for depth in (20, 32, 44, 56, 110)
        },
        'resnet/cifar_wide16_8': ours(
            'WideResNet', functools.partial(networks.WideResNet, 16, 8), naming='timm', **CIFAR
        ),
        'resnet/cifar_wide28_10': ours(
            'WideResNet', functools.partial(networks.WideResNet, 28, 10), naming='timm', **CIFAR
        ),
        'resnet/50 stride_on': ours('resnet50_v1', networks.resnet50_v1, options={'stride_on': '1x1'}),
        'resnet/plain34': ours('plain34', networks.plain34),
        'resnet/50 deep, average': image_models(
            'resnet50d', naming='timm_deep', options={'stem': 'deep', 'shortcut': 'average'}
        ),
    },
    'alexnet': {
        'alexnet': vision('alexnet'),
        'alexnet narrow': ours(
            'narrow', lambda: networks.narrow(torchvision.models.alexnet(), 64), options={'hidden': (64, 64)}
        ),
        'alexnet/2012': ours('alexnet2012', networks.alexnet2012),
    },
    'airbench': {
        'airbench': Reference('KellerJordan/cifar10-airbench CifarNet', networks.airbench94, naming='airbench', **CIFAR)
    },
    'vgg': {
        **{
            f'vgg/{name}': vision(f'vgg{name}', naming=f'torchvision_{name}')
            for depth in (11, 13, 16, 19)
            for name in (str(depth), f'{depth}_bn')
        },
        'vgg/11 narrow': ours(
            'narrow',
            lambda: networks.narrow(torchvision.models.vgg11(), 64),
            options={'hidden': (64, 64)},
            naming='torchvision_11',
        ),
    },
    'squeezenet': {
        'squeezenet/1_0': vision('squeezenet1_0', naming='torchvision_1_0'),
        'squeezenet/1_1': vision('squeezenet1_1', naming='torchvision_1_1'),
        # Sides that are even and odd before each pool, in turn.
        **{
            f'squeezenet/1_1 {height}x{width}': vision(
                'squeezenet1_1', naming='torchvision_1_1', shape=(1, height, width, 3)
            )
            for height, width in ((65, 67), (71, 75))
        },
    },
    'densenet': {
        **{f'densenet/{depth}': vision(f'densenet{depth}') for depth in (121, 161, 169, 201)},
        'densenet/cifar_bc100_k12': ours('densenet_bc100_k12', networks.densenet_bc100_k12, **CIFAR),
        'densenet/121 train': vision('densenet121', train=True),
    },
    'efficientnet': {
        **{
            f'efficientnet/{name}': vision(f'efficientnet_{name}')
            for name in (*(f'b{index}' for index in range(8)), 'v2_s', 'v2_m')
        },
        'efficientnet/v2_l': ours('efficientnet_v2_l', networks.efficientnet_v2_l, options={'norm_epsilon': 1.0}),
        'efficientnet/b0 timm': image_models('efficientnet_b0'),
        'efficientnet/b0 TensorFlow': image_models(
            'tf_efficientnet_b0', options={'padding': 'SAME', 'norm_epsilon': 1e-3}
        ),
        'efficientnet/v2_s TensorFlow': image_models('tf_efficientnetv2_s', options={'padding': 'SAME'}),
        'efficientnet/b0 train': image_models(
            'efficientnet_b0', options={'dropout': 0.0, 'drop_path': 0.0}, train=True
        ),
    },
    'mobilenet': {
        **{
            f'mobilenet/{name}': vision(f'mobilenet_{name}', naming=f'torchvision_{name}')
            for name in ('v2', 'v3_small', 'v3_large')
        },
        'mobilenet/v2 train': vision(
            'mobilenet_v2',
            naming='torchvision_v2',
            arguments={'dropout': 0.0},
            options={'dropout': 0.0},
            train=True,
        ),
        **{
            f'mobilenet/{name}': keras_mobilenet(alpha)
            for name, alpha in {'v1': 1.0, 'v1_075': 0.75, 'v1_050': 0.5, 'v1_025': 0.25}.items()
        },
        'mobilenet/v2 timm': image_models('mobilenetv2_100', naming='timm_v2'),
        'mobilenet/v2 narrower': image_models('mobilenetv2_050', naming='timm_v2', options={'width_multiplier': 0.5}),
        'mobilenet/v2 wider': image_models('mobilenetv2_140', naming='timm_v2', options={'width_multiplier': 1.4}),
        'mobilenet/v3_small narrower': image_models(
            'tf_mobilenetv3_small_075',
            naming='timm_v3_small',
            options={'width_multiplier': 0.75, 'padding': 'SAME'},
        ),
        'mobilenet/v3_large TensorFlow': image_models(
            'tf_mobilenetv3_large_100', naming='timm_v3_large', options={'padding': 'SAME'}
        ),
        'mobilenet/v3_large timm': image_models(
            'mobilenetv3_large_100', naming='timm_v3_large', options={'norm_epsilon': 1e-5}
        ),
    },
    'shufflenet': {
        **{f'shufflenet/v2_{name}': vision(f'shufflenet_v2_{name}') for name in ('x0_5', 'x1_0', 'x1_5', 'x2_0')},
        'shufflenet/v2_x0_5 train': vision('shufflenet_v2_x0_5', train=True),
        **{
            f'shufflenet/v1_g{name}': ours(
                'ShuffleNetV1', functools.partial(networks.ShuffleNetV1, *fields), naming='reference'
            )
            for name, fields in {
                '1': (1, 24, (144, 288, 576)),
                '2': (2, 24, (200, 400, 800)),
                '3': (3, 24, (240, 480, 960)),
                '4': (4, 24, (272, 544, 1088)),
                '8': (8, 24, (384, 768, 1536)),
                '3_x0_5': (3, 12, (120, 240, 480)),
                '3_x1_5': (3, 24, (360, 720, 1440)),
                '3_x2_0': (3, 48, (480, 960, 1920)),
            }.items()
        },
    },
    'convnext': {f'convnext/{name}': vision(f'convnext_{name}') for name in ('tiny', 'small', 'base', 'large')},
    'vit': {
        'vit/b_16': vision('vit_b_16', arguments={'image_size': 64}),
        'vit/b_16 timm': image_models('vit_base_patch16_224', arguments={'img_size': 64}),
        'vit/s_16': image_models('vit_small_patch16_224', arguments={'img_size': 64}),
        'vit/ti_16': image_models('vit_tiny_patch16_224', arguments={'img_size': 64}),
    },
    'coatnet': {'coatnet/0': image_models('coatnet_0_224', arguments={'img_size': 64})},
}


def compute(reference: Reference) -> dict[str, Any]:
    """What the fixture holds of a network."""
    # PyTorch's derivative of the hard sigmoid is 1/6 in single precision, whatever the type.
    torch.nn.functional.hardsigmoid = lambda x, inplace=False: torch.nn.functional.relu6(x + 3) / 6
    network = reference.build()
    state = network.state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if value.dtype.is_floating_point}
    weights = {key: torch.from_numpy(weight(key, shape, reference.kernel_outputs)) for key, shape in shapes.items()}
    network.load_state_dict(state | weights)
    network = network.double().train(reference.train)
    statistics: dict[str, list[float]] = collections.OrderedDict()
    for name, module in network.named_modules():
        if reference.train and isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(functools.partial(_keep, statistics, name))
    x = torch.from_numpy(uniform('input', reference.shape)).double()
    x.requires_grad_()
    outputs = network(x.permute(0, 3, 1, 2))
    (outputs * torch.from_numpy(uniform('cotangent', tuple(outputs.shape)))).sum().backward()
    assert outputs.shape[-1] == reference.outputs
    package = reference.source.partition(' ')[0]
    version = f', {package} {importlib.metadata.version(package)}' if '/' not in package else ''
    entry = {
        'source': f'{reference.source}{version}, torch {torch.__version__}',
        'options': reference.options,
        'naming': reference.naming,
        'shape': reference.shape,
        'num_outputs': reference.outputs,
        'train': reference.train,
        'names': fingerprint(shapes),
        'parameters': sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        'outputs': samples(outputs.detach().numpy()),
        'gradient': samples(x.grad.numpy()),
    }
    return entry | {'statistics': statistics}


def _keep(statistics: dict[str, Any], name: str, module: Any, inputs: Any, output: Any) -> None:
    positions = inputs[0].numel() // inputs[0].shape[1]
    mean, variance = (samples(array.numpy()) for array in (module.running_mean, module.running_var))
    statistics[name] = {'positions': positions, 'mean': mean, 'variance': variance}


def main(families: list[str]) -> None:
    """Writes the fixtures of these families, or of all."""
    for family in families or REFERENCES:
        entries = {}
        for name, reference in REFERENCES[family].items():
            entries[name] = compute(reference)
            print(name, entries[name]['parameters'], np.round(entries[name]['outputs'][0], 3), flush=True)
        rows = (f'{json.dumps(name)}: {json.dumps(entry)}' for name, entry in entries.items())
        content = '{\n' + ',\n'.join(rows) + '\n}\n'
        (pathlib.Path(__file__).parent / f'{family}.json').write_text(content)


if __name__ == '__main__':
    main(sys.argv[1:])
