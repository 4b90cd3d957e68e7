"""Makes optimizers.json beside this file: what PyTorch's and timm's optimizers, schedules and averages compute.

    pip install torch==2.13.0 timm
    python tests/training/references/make_optimizers.py PATH/airbench94_muon.py

The one argument is that file of github.com/KellerJordan/cifar10-airbench, for its Muon. All is computed in float64:
the orthogonalisation of both Muons too, which they do in bfloat16. Ten steps are made on the parameters of `initial`,
whose gradient at step t is sin(3 p + t), with a learning rate that falls linearly; LARS has a constant one, since timm
keeps the rate out of the momentum.

`optimizers` holds for each case our fields of the optimizer, and the parameters after one step and after ten, in our
layout and in alphabetical order. `schedules` holds our fields and counts of steps, and the factor at every step.
"""

import importlib.metadata
import json
import math
import pathlib
import re
import sys

import numpy as np
import torch

# The wheel for CPUs lacks these two operations, without which torchvision can't be imported.
library = torch.library.Library('torchvision', 'DEF')
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

import timm.optim  # noqa: E402
import timm.utils  # noqa: E402

SHAPES = {
    'block/bias': (3,),
    'block/kernel': (2, 1, 2, 3),
    'head/bias': (3,),
    'head/kernel': (2, 3),
    'norm/scale': (2,),
    'point/kernel': (1, 1, 2, 4),
}
DECAYING = [name for name in SHAPES if name.endswith('kernel')]
FILTERS = ['block/kernel', 'point/kernel']
RATE, STEPS = 0.1, 10


def initial(name):
    """Parameters that anyone can write down."""
    shape = SHAPES[name]
    return np.sin(np.arange(math.prod(shape)) + 0.7 * list(SHAPES).index(name)).reshape(shape)


def theirs(array, flat):
    """Outputs first; filters as matrices where `flat`."""
    array = np.moveaxis(array, -1, 0)
    return array.reshape(len(array), -1) if flat and array.ndim > 2 else np.moveaxis(array, -1, 1).copy()


def ours(tensor, name):
    array = tensor.detach().numpy()
    shape = SHAPES[name]
    if array.ndim == 2 and len(shape) > 2:
        return np.moveaxis(array.reshape(shape[-1], *shape[:-1]), 0, -1)
    return np.moveaxis(np.moveaxis(array, 1, -1) if array.ndim > 1 else array, 0, -1)


def trajectory(build, *, constant=False, flat=False, clip=lambda params: None):
    params = {}
    for name in SHAPES:
        array = initial(name)
        params[name] = torch.tensor(theirs(array, flat) if array.ndim > 1 else array, requires_grad=True)
    optimizers = build(params)
    kept = {}
    for step in range(STEPS):
        for param in params.values():
            param.grad = torch.sin(3 * param.detach() + step)
        clip(params)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group.setdefault('full', group['lr'])
                group['lr'] = group['full'] * (1 if constant else 1 - step / STEPS)
            optimizer.step()
        if step + 1 in (1, STEPS):
            flattened = np.concatenate([ours(param, name).ravel() for name, param in params.items()])
            kept[str(step + 1)] = [float(f'{value:.9g}') for value in flattened]
    return kept


def grouped(optimizer, decay, **settings):
    """Decay for kernels alone."""

    def build(params):
        groups = [
            {'params': [params[name] for name in DECAYING], 'weight_decay': decay},
            {'params': [params[name] for name in SHAPES if name not in DECAYING], 'weight_decay': 0.0},
        ]
        return [optimizer(groups, lr=RATE, **settings)]

    return build


def muon(filters, rest):
    """Two optimizers: one for filters, one for the others, with decay for the head's kernel alone."""

    def build(params):
        others = [
            {'params': [params['head/kernel']], 'weight_decay': 0.1},
            {'params': [params[name] for name in ('block/bias', 'head/bias', 'norm/scale')], 'weight_decay': 0.0},
        ]
        return [filters([params[name] for name in FILTERS]), rest(others)]

    return build


def airbench(path):
    """Its class Muon, out of the part of the file before the data."""
    compile_, torch.compile = torch.compile, lambda function: function
    source = pathlib.Path(path).read_text()
    begin, end = (
        source.index('@torch.compile'),
        source.index('#############################################\n#                DataLoader'),
    )
    space = {'torch': torch}
    exec(source[begin:end], space)
    torch.compile = compile_
    return space['Muon']


def optimizers(path):
    torch.Tensor.bfloat16 = torch.Tensor.double
    decay = {'weight_decay': 0.1}
    adam = {'momentum': 0.8, 'second_momentum': 0.95, 'epsilon': 1e-3}
    betas = {'betas': (0.8, 0.95)}
    sgd, clip = torch.optim.SGD, timm.utils.adaptive_clip_grad
    settings = {'newton_schulz': 3, 'unit_filters': True, 'other_momentum': 0.85, 'nesterov': True, 'momentum': 0.6}
    cases = {
        'torch SGD': (
            {'name': 'sgd', 'momentum': 0.8, **decay},
            {'build': grouped(sgd, 0.1, momentum=0.8)},
        ),
        'torch SGD, Nesterov': (
            {'name': 'sgd', 'momentum': 0.8, 'nesterov': True, **decay},
            {'build': grouped(sgd, 0.1, momentum=0.8, nesterov=True)},
        ),
        'torch Adam': (
            {'name': 'adam', **adam, **decay},
            {'build': grouped(torch.optim.Adam, 0.1, eps=1e-3, **betas)},
        ),
        'torch AdamW': (
            {'name': 'adamw', **adam, **decay},
            {'build': grouped(torch.optim.AdamW, 0.1, eps=1e-3, **betas)},
        ),
        'timm Lamb': (
            {'name': 'lamb', **adam, **decay, 'clip_norm': 1.0},
            {'build': grouped(timm.optim.Lamb, 0.1, eps=1e-3, max_grad_norm=1.0, **betas)},
        ),
        'timm Lars': (
            {'name': 'lars', 'momentum': 0.8, 'trust_coefficient': 0.1, 'epsilon': 1e-3, **decay},
            {'build': grouped(timm.optim.Lars, 0.1, momentum=0.8, trust_coeff=0.1, eps=1e-3), 'constant': True},
        ),
        'timm Lars, Nesterov': (
            {'name': 'lars', 'momentum': 0.8, 'nesterov': True, 'trust_coefficient': 0.1, 'epsilon': 1e-3, **decay},
            {
                'build': grouped(timm.optim.Lars, 0.1, momentum=0.8, nesterov=True, trust_coeff=0.1, eps=1e-3),
                'constant': True,
            },
        ),
        'timm RMSpropTF': (
            {'name': 'rmsprop', 'momentum': 0.8, 'second_momentum': 0.9, 'epsilon': 1e-2, **decay},
            {'build': grouped(timm.optim.RMSpropTF, 0.1, alpha=0.9, eps=1e-2, momentum=0.8)},
        ),
        'timm Lion': (
            {'name': 'lion', 'momentum': 0.8, 'second_momentum': 0.95, **decay},
            {'build': grouped(timm.optim.Lion, 0.1, **betas)},
        ),
        'timm adaptive_clip_grad': (
            {'name': 'sgd', 'momentum': 0.0, 'clip_adaptive': 0.3},
            {
                'build': grouped(sgd, 0.0),
                'clip': lambda params: clip([params[name] for name in params if name[:4] != 'head'], 0.3),
            },
        ),
        'torch Muon': (
            {'name': 'muon', 'momentum': 0.8, 'other': 'adamw', 'other_momentum': 0.7, 'second_momentum': 0.95}
            | {'epsilon': 1e-3, 'nesterov': True, **decay},
            {
                'build': muon(
                    lambda params: torch.optim.Muon(params, lr=RATE, weight_decay=0.1, momentum=0.8, nesterov=True),
                    lambda params: torch.optim.AdamW(params, lr=RATE, betas=(0.7, 0.95), eps=1e-3),
                ),
                'flat': True,
            },
        ),
        'airbench Muon': (
            {'name': 'muon', **settings, **decay},
            {
                'build': muon(
                    lambda params: airbench(path)(params, lr=RATE, momentum=0.6, nesterov=True),
                    lambda params: sgd(params, lr=RATE, momentum=0.85, nesterov=True),
                ),
            },
        ),
    }
    return {name: {'ours': {'learning_rate': RATE, **fields}, 'constant': 'constant' in run, **trajectory(**run)}
            for name, (fields, run) in cases.items()}  # fmt: skip


def schedule(build, steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = build(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(float(f'{optimizer.param_groups[0]["lr"]:.9g}'))
        optimizer.step()
        scheduler.step()
    return factors


def warmed(after, warmup=4, start=0.1):
    """Linear from `start`, so that the last step of the warm-up has the full rate; then `after`."""
    schedulers = torch.optim.lr_scheduler

    def build(optimizer):
        first = start + (1 - start) / warmup
        rise = schedulers.LinearLR(optimizer, first, total_iters=warmup - 1)
        return schedulers.SequentialLR(optimizer, [rise, after(optimizer)], [warmup])

    return build


def schedules():
    s = torch.optim.lr_scheduler
    warm, total = {'warmup': 4, 'total': 12}, 13
    cases = {
        'constant': ({'start': 0.1}, warm, warmed(lambda o: s.ConstantLR(o, 1.0))),
        'cosine': ({'start': 0.1, 'final': 0.2}, warm, warmed(lambda o: s.CosineAnnealingLR(o, 8, 0.2))),
        'linear': ({'start': 0.1, 'final': 0.2}, warm, warmed(lambda o: s.LinearLR(o, 1.0, 0.2, 8))),
        'polynomial': ({'start': 0.1, 'power': 2.0}, warm, warmed(lambda o: s.PolynomialLR(o, 8, 2.0))),
        'step': ({'factor': 0.3}, {'boundaries': [3, 7], 'total': 12}, lambda o: s.MultiStepLR(o, [3, 7], 0.3)),
        'exponential': ({'factor': 0.9}, {'every': 3, 'total': 12}, lambda o: s.StepLR(o, 3, 0.9)),
        'one_cycle': (
            {'final': 0.004},
            {'warmup': 4, 'total': 12},
            lambda o: s.OneCycleLR(o, 1.0, 13, pct_start=5 / 13, final_div_factor=10, cycle_momentum=False),
        ),
    }
    return {
        name: {'ours': ours_, 'steps': steps, 'factors': schedule(build, total)}
        for name, (ours_, steps, build) in cases.items()
    }


def average():
    """ModelEmaV3 with (1 + n) / (10 + n): a number that follows the squares, updated at every third of 12 steps."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(0.0)
    ema = timm.utils.ModelEmaV3(model, decay=0.28, use_warmup=True, warmup_gamma=9, warmup_power=1, foreach=False)
    values = []
    for step in range(1, 13):
        model.weight.data.fill_(float(step**2))
        if step % 3 == 0:
            ema.update(model, step=step // 3 + 1)  # its first two steps copy
        values.append(float(f'{ema.module.weight.item():.9g}'))
    return {'decay': 0.28, 'every': 3, 'values': values}


if __name__ == '__main__':
    contents = {
        'source': {name: importlib.metadata.version(name) for name in ('torch', 'timm')},
        'optimizers': optimizers(sys.argv[1]),
        'schedules': schedules(),
        'average': average(),
    }
    text = json.dumps(contents, indent=1)
    text = re.sub(r'\[[^\]]*\]', lambda match: re.sub(r'\s+', ' ', match[0]), text)  # a list is a line
    pathlib.Path(__file__).with_name('optimizers.json').write_text(text + '\n')
