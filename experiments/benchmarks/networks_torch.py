"""The networks that are compared in PyTorch, and their training step: torchvision's, and those that it lacks.

These have the names of modules that ours have. Only the process that runs PyTorch imports this.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarks.sidebyside import Options, Run, Side, milliseconds


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


NETWORKS: dict[str, Callable[[int], nn.Module]] = {'simple_cnn': SimpleCNN, 'unet': UNet, 'wavenet': WaveNet}
TORCHVISION = {
    'resnet/cifar18': 'resnet18',
    'resnet/18': 'resnet18',
    'resnet/resnext50_32x4d': 'resnext50_32x4d',
    'mobilenet/v2': 'mobilenet_v2',
    'shufflenet/v2_x1_0': 'shufflenet_v2_x1_0',
    'efficientnet/b0': 'efficientnet_b0',
    'convnext/tiny': 'convnext_tiny',
    'vgg/11': 'vgg11',
}


def build(name: str, num_outputs: int) -> nn.Module:
    """The network of that name, with random weights. Raises ImportError where torchvision is needed and missing."""
    if name in NETWORKS:
        return NETWORKS[name](num_outputs)
    network = torchvision().models.get_model(TORCHVISION[name], num_classes=num_outputs)
    if name == 'resnet/cifar18':  # a 3x3 stem and no pool
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network


@functools.cache
def torchvision() -> Any:
    """The package. Without the two operations that its wheel for CPUs lacks it can't be imported."""
    if not hasattr(torch.ops.torchvision, 'nms'):
        library = torch.library.Library('torchvision', 'DEF')
        library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    import torchvision

    return torchvision


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
        self.network = build(name, num_outputs).to(device)
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
            if type(module).__name__ in ('Dropout', 'StochasticDepth'):
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
