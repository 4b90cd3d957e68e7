"""Depthwise-separable against full convolutions, at equal width and at equal multiply-adds: what do they cost?

    python launch.py ablate --study=experiments/ablations/separable.py

Howard et al. 2017 (section 3.1) divide a 3x3 convolution into a depthwise and a pointwise one, for 8 to 9 times fewer
multiply-adds; their network loses 1.1 points of ImageNet by it (table 4: 71.7 to 70.6 %).

Here three layers read digits enlarged from 8x8 to 16x16 pixels, by interpolation; the first is full, as in MobileNet.
'Full, thin' has the multiply-adds of 'separable, equal width'. The learning rate is common: of .005, .01 and .02 over
two seeds, .01 had a much lower validation loss than .005 in the two networks of equal width, and .02 one lower by less
than .003; the two others took it as it was.

Measured: test accuracy, 8 seeds, with what a training step of 128 digits takes in CPU milliseconds by itself.

    arm                              multiply-adds   parameters   ms   accuracy   95 % interval
    full                                 1,383,360       53,362   18      .9806   .9763 - .9849
    separable, equal width                 224,448        8,074   14      .9663   .9608 - .9718
    separable, equal multiply-adds       1,355,552       52,146   40      .9788   .9747 - .9829
    full, thin                             226,192        9,258   10      .9653   .9554 - .9751

    arm                              against                  difference   95 % interval    p (Holm)
    separable, equal width           full                         -.0142   -.0227 - -.0058      .023
    separable, equal multiply-adds   full                         -.0017   -.0073 - +.0038         1
    full, thin                       separable, equal width       -.0010   -.0126 - +.0105         1

100 seconds on 2 CPU cores.

So at equal width the loss is much like the paper's, 1.4 points against 1.1, for 6.2 times fewer multiply-adds (8 to 9
times need more channels). But a thin network of full convolutions, which the paper does not compare, has as few, and no
difference between them is shown. Nor are multiply-adds time: 6.2 times fewer save a quarter of it on this CPU, and with
equally many separable convolutions take 2.2 times as long.
"""

from collections.abc import Iterator

from cnn.studies import Arm, Study

FULL, SEPARABLE = ('conv', 'conv', 'conv'), ('conv', 'separable', 'separable')  # as MobileNet, with a full first layer


def arm(name: str, against: str, layers: tuple[str, ...], widths: tuple[int, ...]) -> Arm:
    """Three layers on maps of 16, 8 and 4 pixels a side."""
    options = {
        'model.name': 'plain',
        'model.options.layers': layers,
        'model.options.widths': widths,
        'data.image_size': (16, 16),
        'data.batch_size': 128,
        'optimizer.learning_rate': 1e-2,
        'train.duration': '30ep',
        'eval.every': '10ep',
        'checkpoint.every': '0',
        'log.every': '20',
    }
    return Arm(name, options, against)


def arms() -> Iterator[Arm]:
    yield arm('full', 'full', FULL, (24, 48, 96))
    yield arm('separable, equal width', 'full', SEPARABLE, (24, 48, 96))
    yield arm('separable, equal multiply-adds', 'full', SEPARABLE, (64, 136, 272))
    yield arm('full, thin', 'separable, equal width', FULL, (8, 20, 40))


def get_study() -> Study:
    return Study(
        question='Are depthwise-separable convolutions as good as full ones, for fewer multiply-adds?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='full',
        seeds=8,
        effect=0.01,
    )
