"""Networks that no package has as one, put together from PyTorch's and torchvision's own parts."""

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import resnet


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
