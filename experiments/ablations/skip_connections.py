"""Plain against residual networks of growing depth: do skip connections help?

    python launch.py ablate --study=experiments/ablations/skip_connections.py

He et al. 2016 (section 4.2, figure 6) find that plain networks get worse with depth, in training too, and residual ones
better. These are their networks for small images with 6 n + 2 layers and half of their width, on 8x8 digits.

Measured: not yet.
"""

from collections.abc import Iterator

from cnn.studies import Arm, Study

DEPTHS = 8, 20, 32, 56


def arms() -> Iterator[Arm]:
    for depth in DEPTHS:
        for residual in (True, False):
            options = {
                'model.name': 'resnet/cifar20',
                'model.options.depths': (depth // 6,) * 3,
                'model.options.width': 8,
                'model.options.residual': residual,
                'model.options.shortcut': 'identity' if residual else 'projection',  # a plain network has neither
                'augment.shift': 0,
                'data.batch_size': 128,
                'train.duration': '15ep',
                'eval.every': '5ep',
            }
            yield Arm(f'{"residual" if residual else "plain"} {depth}', options, against=f'residual {depth}')


def get_study() -> Study:
    return Study(
        question='Do skip connections help at every depth?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='residual 8',
        seeds=8,
        metric='accuracy',
        effect=0.01,
    )
