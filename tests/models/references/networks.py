"""Networks that no package has as one, put together from PyTorch's and torchvision's own parts."""

import functools
import itertools
import os
import re
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import alexnet, densenet, efficientnet, resnet


class PadShortcut(nn.Module):
    """Shortcut A of He et al. 2016: every second position, and zeros for the new channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


class CifarResNet(nn.Module):
    """He et al. 2016, section 4.2: 6 n + 2 layers of 16, 32 and 64 channels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for block in range(depth // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                shortcut = PadShortcut(width, stride) if stride > 1 else None
                blocks.append(resnet.BasicBlock(channels, width, stride, shortcut))
                channels = width
            setattr(self, f'layer{stage}', nn.Sequential(*blocks))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def cifar_resnet18() -> nn.Module:
    """torchvision's ResNet-18 with a 3x3 stem and no pool."""
    network = resnet.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def resnet50_v1() -> nn.Module:
    """torchvision's ResNet-50 with the strides of the paper."""
    network = resnet.resnet50()
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return network


def efficientnet_v2_l() -> nn.Module:
    """torchvision's, with a larger epsilon.

    With its own, values grow so much through 79 blocks of weights by formula that float32 agrees with float64 in no
    digit, in PyTorch either.
    """
    network = efficientnet.efficientnet_v2_l()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1.0
    return network


def plain34() -> nn.Module:
    """torchvision's ResNet-34 without its shortcuts."""

    def forward(block: Any, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(block.bn1(block.conv1(x)))
        return functional.relu(block.bn2(block.conv2(x)))

    network = resnet.resnet34()
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            block.downsample = None
            block.forward = functools.partial(forward, block)
    return network


def alexnet2012() -> nn.Module:
    """torchvision's AlexNet with the widths, groups and normalisation of Krizhevsky et al. 2012."""
    network = alexnet()
    features = network.features
    features[0] = nn.Conv2d(3, 96, 11, stride=4, padding=2)
    features[3] = nn.Conv2d(96, 256, 5, padding=2, groups=2)
    features[6] = nn.Conv2d(256, 384, 3, padding=1)
    features[8] = nn.Conv2d(384, 384, 3, padding=1, groups=2)
    features[10] = nn.Conv2d(384, 256, 3, padding=1, groups=2)
    for pool in (2, 5):
        # PyTorch takes the mean of the squares, the paper their sum.
        features[pool] = nn.Sequential(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), features[pool])
    return network


def densenet_bc100_k12() -> nn.Module:
    """torchvision's DenseNet-BC as for CIFAR in section 4.2 of Huang et al. 2017, whose stem is a convolution alone."""
    network = densenet.DenseNet(12, (16, 16, 16), 24, num_classes=10)
    network.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    for name in ('norm0', 'relu0', 'pool0'):
        delattr(network.features, name)
    return network


class WideBlock(nn.Module):
    """Zagoruyko & Komodakis 2016, figure 1: basic-wide, whose shortcut reads what the first convolution reads."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if inputs != outputs:
            self.downsample = nn.Sequential()
            self.downsample.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        else:
            self.downsample = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        return shortcut + self.conv2(functional.relu(self.norm2(self.conv1(y))))


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016, table 1, with timm's names of networks with preactivation."""

    def __init__(self, depth: int, multiplier: int) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels, self.stages = 16, nn.Sequential()
        for width in (16, 32, 64):
            blocks = nn.Sequential()
            for block in range((depth - 4) // 6):
                stride = 2 if width > 16 and block == 0 else 1
                blocks.append(WideBlock(channels, width * multiplier, stride))
                channels = width * multiplier
            self.stages.append(nn.Sequential())
            self.stages[-1].blocks = blocks
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Sequential()
        self.head.fc = nn.Conv2d(channels, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.stages(self.stem(x))))
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)


def airbench94() -> nn.Module:
    """The network of cifar10-airbench, in single precision. All its parameters count, frozen ones too."""
    from airbench94_muon import CifarNet

    return CifarNet().float().requires_grad_()


class ShuffleUnit(nn.Module):
    """Zhang et al. 2018, figure 2: b, and c where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        inner, outer = outputs // 4, outputs - inputs if stride == 2 else outputs
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=first_groups, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, groups=groups, bias=False)
        self.norm3 = nn.BatchNorm2d(outer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shuffle(functional.relu(self.norm1(self.conv1(x))))
        y = self.norm3(self.conv3(self.norm2(self.conv2(y))))
        joined = x + y if self.downsample is None else torch.cat((self.downsample(x), y), 1)
        return functional.relu(joined)


class ShuffleNetV1(nn.Module):
    """Zhang et al. 2018, table 1, a column of which are `widths`."""

    def __init__(self, groups: int, stem: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        first = ShuffleUnit(stem, widths[0], 2, groups, 1)
        self.stage2 = nn.Sequential(first, *(ShuffleUnit(widths[0], widths[0], 1, groups, groups) for _ in range(3)))
        first = ShuffleUnit(widths[0], widths[1], 2, groups, groups)
        self.stage3 = nn.Sequential(first, *(ShuffleUnit(widths[1], widths[1], 1, groups, groups) for _ in range(7)))
        first = ShuffleUnit(widths[1], widths[2], 2, groups, groups)
        self.stage4 = nn.Sequential(first, *(ShuffleUnit(widths[2], widths[2], 1, groups, groups) for _ in range(3)))
        self.fc = nn.Linear(widths[2], 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(functional.relu(self.norm(self.conv(x))))
        return self.fc(self.stage4(self.stage3(self.stage2(x))).mean((2, 3)))


class KerasMobileNet(nn.Module):
    """Keras's MobileNet, with the names that its published files have."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        os.environ['KERAS_BACKEND'] = 'torch'
        import keras
        from keras.src.backend.common import dtypes

        keras.config.set_floatx('float64')
        dtypes.BIT64_TO_BIT32_DTYPE['float64'] = 'float64'  # or its layers would round to float32 between them
        application = keras.applications.MobileNet
        self.network = application((64, 64, 3), alpha=alpha, weights=None, classifier_activation=None)
        names = (re.sub(r'^(conv_dw_\d+)/kernel', r'\1/depthwise_kernel', item.path) for item in self.network.weights)
        self.variables = dict(zip(names, self.network.weights, strict=True))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: variable.value for name, variable in self.variables.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, variable in self.variables.items():
            variable.assign(state[name])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.permute(0, 2, 3, 1))


def narrow(network: Any, hidden: int) -> nn.Module:
    """torchvision's AlexNet or VGG with so many units in each hidden layer, where most of its weights are."""
    dense = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
    sizes = [dense[0].in_features, hidden, hidden, dense[-1].out_features]
    narrower = iter([nn.Linear(*pair) for pair in itertools.pairwise(sizes)])
    network.classifier = nn.Sequential(
        *(next(narrower) if isinstance(layer, nn.Linear) else layer for layer in network.classifier)
    )
    return network
