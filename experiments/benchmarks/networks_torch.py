"""The networks of networks.py in PyTorch, with the same names of modules, and their training step.

Only the process that runs PyTorch imports this.
"""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarks.sidebyside import Options, Run, Side, milliseconds


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [N, C, H, W] -> [N, width, H / stride, W / stride]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.projected = stride != 1 or channels != width
        if self.projected:
            self.projection = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.projection_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.projected:
            x = self.projection_norm(self.projection(x))
        return functional.relu(x + y, inplace=True)


class GroupedBlock(nn.Module):
    """1x1, 3x3 in 32 groups, 1x1 to twice the width, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=32, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(2 * width)
        self.projected = stride != 1 or channels != 2 * width
        if self.projected:
            self.projection = nn.Conv2d(channels, 2 * width, 1, stride, bias=False)
            self.projection_norm = nn.BatchNorm2d(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = functional.relu(self.norm2(self.conv2(y)), inplace=True)
        y = self.norm3(self.conv3(y))
        if self.projected:
            x = self.projection_norm(self.projection(x))
        return functional.relu(x + y, inplace=True)


class SeparableBlock(nn.Module):
    """3x3 depthwise and 1x1, each normalised and rectified."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        x = functional.relu(self.norm1(self.depthwise(x)), inplace=True)
        return functional.relu(self.norm2(self.pointwise(x)), inplace=True)


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation of the channels of [N, C, H, W], as torchvision does it."""

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise, layer norm, 1x1 to four times the width, GELU, 1x1, shortcut, as torchvision does it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.reduce(functional.gelu(self.expand(y))).permute(0, 3, 1, 2)


class GlobalAveragePool(nn.Module):
    """[N, C, H, W] -> [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        return x.mean((2, 3))


def resnet18(num_outputs: int) -> nn.Module:
    """The ResNet-18 of CIFAR."""
    layers = _stem(64, 1)
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (1, 2):
            layers[f'stage{stage}_block{block}'] = BasicBlock(channels, width, 2 if stage > 1 and block == 1 else 1)
            channels = width
    return _classifier(layers, channels, num_outputs)


def resnext(num_outputs: int) -> nn.Module:
    """The first three stages of ResNeXt-50, two blocks each."""
    layers = _stem(64, 2)
    channels = 64
    for stage, width in enumerate((128, 256, 512), start=1):
        for block in (1, 2):
            layers[f'stage{stage}_block{block}'] = GroupedBlock(channels, width, 2 if stage > 1 and block == 1 else 1)
            channels = 2 * width
    return _classifier(layers, channels, num_outputs)


def mobilenet(num_outputs: int) -> nn.Module:
    """A shorter MobileNetV1."""
    layers = _stem(32, 2)
    channels = 32
    blocks = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1))
    for index, (width, stride) in enumerate(blocks, start=1):
        layers[f'block{index}'] = SeparableBlock(channels, width, stride)
        channels = width
    return _classifier(layers, channels, num_outputs)


def convnext(num_outputs: int) -> nn.Module:
    """The first two stages of ConvNeXt-T without layer scale."""
    layers = {'stem': nn.Conv2d(3, 96, 4, 4), 'stem_norm': LayerNorm2d(96, eps=1e-6)}
    layers |= {f'stage1_block{block}': ConvNeXtBlock(96) for block in (1, 2, 3)}
    layers |= {'down_norm': LayerNorm2d(96, eps=1e-6), 'down': nn.Conv2d(96, 192, 2, 2)}
    layers |= {f'stage2_block{block}': ConvNeXtBlock(192) for block in (1, 2, 3)}
    layers |= {'pool': GlobalAveragePool(), 'head_norm': nn.LayerNorm(192, eps=1e-6)}
    layers['head'] = nn.Linear(192, num_outputs)
    return nn.Sequential(OrderedDict(layers))


def _stem(width: int, stride: int) -> dict[str, nn.Module]:
    conv = nn.Conv2d(3, width, 3, stride, 1, bias=False)
    return {'stem': conv, 'stem_norm': nn.BatchNorm2d(width), 'stem_relu': nn.ReLU(inplace=True)}


def _classifier(layers: dict[str, nn.Module], channels: int, num_outputs: int) -> nn.Module:
    layers |= {'pool': GlobalAveragePool(), 'head': nn.Linear(channels, num_outputs)}
    return nn.Sequential(OrderedDict(layers))


class SimpleCNN(nn.Module):
    """cnn/models/simple_cnn.py."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.dense = nn.Linear(2048, 256)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(256, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        x = functional.max_pool2d(functional.relu(self.conv1(x), inplace=True), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x), inplace=True), 2)
        x = functional.adaptive_avg_pool2d(functional.relu(self.conv3(x), inplace=True), 4)
        return self.head(self.dropout(functional.relu(self.dense(x.flatten(1)), inplace=True)))


class UNetBlock(nn.Module):
    """Two 3x3 convolutions, each normalised and rectified."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        x = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.norm2(self.conv2(x)), inplace=True)


class UNet(nn.Module):
    """cnn/models/unet.py with width 16 and depth 3."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        for level, (channels, width) in enumerate(itertools.pairwise((1, *widths))):
            self.add_module(f'encoder{level}', UNetBlock(channels, width))
        for level, (width, below) in enumerate(itertools.pairwise(widths)):
            self.add_module(f'up{level}', nn.ConvTranspose2d(below, width, 2, 2))
            self.add_module(f'decoder{level}', UNetBlock(2 * width, width))
        self.head = nn.Conv2d(16, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        skips = []
        for level in range(4):
            x = getattr(self, f'encoder{level}')(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for level in (2, 1, 0):
            x = getattr(self, f'up{level}')(x)
            x = getattr(self, f'decoder{level}')(torch.cat([skips[level], x], 1))
        return self.head(x)


class ResidualLayer(nn.Module):
    """Gated activation unit with residual and skip connections: [N, C, T] -> (x + residual, skip)."""

    def __init__(self, dilation: int, last: bool) -> None:
        super().__init__()
        self.dilation, self.last = dilation, last
        self.gates = nn.Conv1d(32, 64, 2, dilation=dilation)
        self.skip = nn.Conv1d(32, 64, 1)
        if not last:
            self.residual = nn.Conv1d(32, 32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output."""
        filtered, gate = self.gates(functional.pad(x, (self.dilation, 0))).chunk(2, 1)
        y = torch.tanh(filtered) * torch.sigmoid(gate)
        return (x if self.last else x + self.residual(y)), self.skip(y)


class WaveNet(nn.Module):
    """cnn/models/wavenet.py as in experiments/digit_sequences.py: tokens [N, T] -> [N, num_outputs, T]."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.levels = num_outputs
        self.input = nn.Conv1d(num_outputs, 32, 1)
        for index in range(6):
            self.add_module(f'stack1_layer{index + 1}', ResidualLayer(2**index, index == 5))
        self.hidden = nn.Conv1d(64, 64, 1)
        self.head = nn.Conv1d(64, num_outputs, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """The output."""
        x = self.input(functional.one_hot(tokens, self.levels).mT.to(self.input.weight.dtype))
        total: Any = 0
        for index in range(6):
            x, skip = getattr(self, f'stack1_layer{index + 1}')(x)
            total = total + skip
        return self.head(functional.relu(self.hidden(functional.relu(total))))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    'simple_cnn': SimpleCNN,
    'resnet18': resnet18,
    'resnext': resnext,
    'mobilenet': mobilenet,
    'convnext': convnext,
    'unet': UNet,
    'wavenet': WaveNet,
}


class Trainer:
    """A network in one memory format, its optimizer and one batch, on the device.

    x is [N, H, W, C] floats or [N, T] tokens; labels are [N], [N, H, W] or [N, T].
    """

    def __init__(
        self,
        name: str,
        num_outputs: int,
        x: np.ndarray,
        labels: np.ndarray,
        learning_rate: float,
        *,
        weights: dict[str, Tensor] | None = None,
        channels_last: bool = False,
        dtype: str = 'float32',
        device: str = 'cpu',
    ) -> None:
        self.device, self.dtype = device, getattr(torch, dtype)
        self.network = NETWORKS[name](num_outputs).to(device)
        if weights is not None:
            self.network.load_state_dict(weights)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(device)
        if np.issubdtype(x.dtype, np.integer):
            self.x = torch.from_numpy(x.astype(np.int64)).to(device)
        else:
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            self.x = torch.from_numpy(x).permute(0, 3, 1, 2).to(device).contiguous(memory_format=memory_format)
            for parameter in self.network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=memory_format)
        self.optimizer = torch.optim.SGD(self.network.parameters(), learning_rate, momentum=0.9)
        self._forward: Callable[[Tensor], Tensor] = self.network

    def compile(self) -> None:
        """Compiles the network, and thereby its gradient, on the next step."""
        self._forward = torch.compile(self.network)

    def step(self) -> None:
        """One step of training, finished when it returns."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            outputs = self._forward(self.x)
        functional.cross_entropy(outputs.float(), self.labels).backward()
        self.optimizer.step()
        if self.device == 'cuda':
            torch.cuda.synchronize()

    def values(self) -> dict[str, Any]:
        """The weights, their number; without dropout in float64 loss, outputs [N, ..., classes], norm of the gradient.

        The trainer is of no use for training afterwards.
        """
        weights = {name: weight.detach().clone().cpu().numpy() for name, weight in self.network.state_dict().items()}
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        # In float32 the norm of ResNet-18's gradient is 2e-3 off, JAX's 4e-6.
        self.network.double()
        if self.x.is_floating_point():
            self.x = self.x.double()
        outputs = self.network(self.x)
        loss = functional.cross_entropy(outputs, self.labels)
        gradients = torch.autograd.grad(loss, list(self.network.parameters()))
        return {
            'weights': weights,
            'parameters': sum(parameter.numel() for parameter in self.network.parameters()),
            'loss': loss.item(),
            'outputs': outputs.detach().movedim(1, -1).float().numpy(),
            'gradient_norm': torch.cat([gradient.flatten() for gradient in gradients]).norm().item(),
        }


def training_side(
    name: str,
    num_outputs: int,
    x: np.ndarray,
    labels: np.ndarray,
    learning_rate: float,
    checked: int,
    options: Options,
) -> Side:
    """Training steps, eager in NCHW and NHWC and compiled in the faster of these; the values of `checked` examples."""
    torch.manual_seed(0)
    first = Trainer(name, num_outputs, x[:checked], labels[:checked], learning_rate)
    weights = {key: weight.clone() for key, weight in first.network.state_dict().items()}
    values = first.values()
    build = functools.partial(
        Trainer,
        name,
        num_outputs,
        x,
        labels,
        learning_rate,
        weights=weights,
        dtype=options.dtype,
        device=options.device,
    )
    formats = {'NCHW': False, 'NHWC': True} if x.ndim == 4 else {'NCW': False}
    runs: dict[str, Run] = {f'eager {label}': build(channels_last=last).step for label, last in formats.items()}
    taken = {variant: min(milliseconds(run, 4)) for variant, run in runs.items()}
    fastest = min(taken, key=lambda variant: taken[variant]).removeprefix('eager ')
    compiled = build(channels_last=formats[fastest])
    compiled.compile()
    return Side(runs | {f'compiled {fastest}': compiled.step}, values)
