"""Makes the fixtures beside this file.

    pip install torch==2.13.0
    pip install --no-deps torchvision==0.28.0
    TORCHDYNAMO_DISABLE=1 python -m tests.experiments.make_references

schedules.json: the learning rate in each of some epochs of published recipes, by PyTorch's schedulers. They step once
an epoch, as torchvision's training code has them do, with the arguments of its commands.

airbench.json: the losses of some steps of cifar10-airbench, by its own network and Muon, on batches and from weights
by formula, in double precision and without augmentation. It needs airbench94_muon.py of
github.com/KellerJordan/cifar10-airbench, at f1c599c, in a folder of PYTHONPATH. As in `main` there, but that a batch is
smaller, its losses weighted so that they add up to as much, and that the bias of the whitening learns like all others.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.optim import lr_scheduler

from tests.models.references import formula

# The wheel for CPUs lacks these two operations, without which torchvision can't be imported.
library = torch.library.Library('torchvision', 'DEF')
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

EPOCHS = (0, 1, 2, 3, 5, 6, 10, 29, 30, 31, 45, 59, 60, 61, 89, 99, 119, 120, 150, 160, 199, 299, 450, 599)


def warm_cosine(optimizer: torch.optim.Optimizer, epochs: int, warmup: int, start: float) -> lr_scheduler.LRScheduler:
    """torchvision's --lr-scheduler cosineannealinglr --lr-warmup-method linear --lr-warmup-decay."""
    rise = lr_scheduler.LinearLR(optimizer, start_factor=start, total_iters=warmup)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warmup])


SCHEDULES = {
    'imagenet:resnet50_classic': (0.1, 90, lambda optimizer: lr_scheduler.StepLR(optimizer, 30, 0.1)),
    'imagenet:resnet50_v2': (0.5, 600, lambda optimizer: warm_cosine(optimizer, 600, 5, 0.01)),
    'imagenet:shufflenet_v2_x1_5': (0.5, 600, lambda optimizer: warm_cosine(optimizer, 600, 5, 0.01)),
    'imagenet:shufflenet_v2_x2_0': (0.5, 600, lambda optimizer: warm_cosine(optimizer, 600, 5, 0.01)),
    'imagenet:resnet50_a1': (5e-3, 600, lambda optimizer: warm_cosine(optimizer, 600, 5, 1e-9)),
    'imagenet:resnet50_a2': (5e-3, 300, lambda optimizer: warm_cosine(optimizer, 300, 5, 1e-9)),
    'imagenet:resnet50_a3': (8e-3, 100, lambda optimizer: warm_cosine(optimizer, 100, 5, 1e-9)),
    'imagenet:mobilenet_v3_large': (0.064, 600, lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.973)),
    'imagenet:mobilenet_v3_small': (0.064, 600, lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.973)),
    'cifar10_resnet:18': (0.1, 200, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 200)),
    **{
        f'cifar10_resnet:{name}': (
            0.1,
            200,
            lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [60, 120, 160], 0.2),
        )
        for name in ('wide16_8', 'wide28_10')
    },
}


def rates(rate: float, epochs: int, schedule: Callable[..., Any]) -> dict[str, float]:
    """The learning rate of each of EPOCHS that the run has."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler, found = schedule(optimizer), {}
    for epoch in range(epochs):
        if epoch in EPOCHS:
            found[str(epoch)] = optimizer.param_groups[0]['lr']
        optimizer.step()
        scheduler.step()
    return found


def airbench(steps: int = 5, examples: int = 16) -> dict[str, list[float]]:
    """The losses of the first steps of 200, each before its step."""
    torch.Tensor.bfloat16 = torch.Tensor.clone  # Muon would round its iterations
    import airbench94_muon

    network = airbench94_muon.CifarNet().double()
    state = network.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if value.dtype.is_floating_point}
    weights = {name: torch.from_numpy(formula.weight(name, shape)) for name, shape in shapes.items()}
    network.load_state_dict(state | weights)
    images = torch.from_numpy(formula.uniform('images', (steps, examples, 32, 32, 3))).double().permute(0, 1, 4, 2, 3)
    rates, decay = {'bias': 0.053, 'head': 0.67}, 2e-6 * 2000
    learning = {name: value for name, value in network.named_parameters() if value.requires_grad}
    filters = [value for value in learning.values() if value.ndim == 4]
    others = {
        'bias': [value for name, value in learning.items() if name.endswith('bias')],
        'head': [learning['head.weight']],
    }
    groups = [{'params': others[kind], 'lr': rate, 'weight_decay': decay / rate} for kind, rate in rates.items()]
    optimizers = [
        torch.optim.SGD(groups, momentum=0.85, nesterov=True),
        airbench94_muon.Muon(filters, lr=0.24, momentum=0.6, nesterov=True),
    ]
    schedulers = [lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 200) for optimizer in optimizers]
    losses = []
    for batch in images:
        labels = torch.arange(examples) % 10
        loss = functional.cross_entropy(network(batch), labels, label_smoothing=0.2)
        losses.append(loss.item())
        network.zero_grad()
        (2000 * loss).backward()
        for part in (*optimizers, *schedulers):
            part.step()
    return {'losses': losses}


if __name__ == '__main__':
    folder = pathlib.Path(__file__).parent
    rows = (f'{json.dumps(name)}: {json.dumps(rates(*schedule))}' for name, schedule in SCHEDULES.items())
    (folder / 'schedules.json').write_text('{\n' + ',\n'.join(rows) + '\n}\n')
    (folder / 'airbench.json').write_text(json.dumps(airbench()) + '\n')
