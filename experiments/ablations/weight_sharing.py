"""Convolutions against layers with weights of their own at each position and dense layers: does sharing weights help?

    python launch.py ablate --study=experiments/ablations/weight_sharing.py

LeCun 1989 (Generalization and Network Design Strategies, Net-2, 3 and 5) reads 160 digits after training on 320, each
drawing in four positions: 87.0 % with a dense hidden layer, 88.5 % with local weights, 98.4 % with shared ones. LeCun
et al. 1998 (section II) hold that a dense network needs many more examples, since it learns a shape anew wherever it
may lie. Here three layers with batch normalisation and pools between them and a flat head learn 8x8 digits in 300 steps
of 128: as wide as the convolutional network (16, 32, 64 channels; local layers have 159,466 and dense ones 232,170
parameters to its 25,978), or narrow, with as many parameters within 1 %. They learn from all 1,293 images, from 200,
which are the same for all seeds, and from all without the base's random shifts by a pixel. Learning rates of .002,
.006, .02, and .05 for convolutions and narrow networks, were compared by the loss on the validation split, two seeds,
over both numbers of images, with shifts: .006 is best for the wide local and dense ones, .02 for convolutions, .05 for
the narrow ones.

186 seconds on 2 CPU cores. Test accuracy over seeds 0 to 11; differences are from the convolution with the same data:

| arm                          | accuracy |  95 % interval | difference |    95 % interval | p (Holm) |
| ---------------------------- | -------: | -------------: | ---------: | ---------------: | -------: |
| convolution, all images      |    .9722 | .9668 to .9776 |            |                  |          |
| local, all images            |    .9632 | .9583 to .9681 |     -.0090 | -.0161 to -.0019 |     .025 |
| dense, all images            |    .9426 | .9361 to .9491 |     -.0296 | -.0373 to -.0219 |     .006 |
| narrow local, all images     |    .9558 | .9496 to .9620 |     -.0164 | -.0261 to -.0068 |     .018 |
| narrow dense, all images     |    .9319 | .9214 to .9425 |     -.0403 | -.0507 to -.0298 |     .006 |
| convolution, 200 images      |    .9470 | .9396 to .9544 |            |                  |          |
| local, 200 images            |    .9294 | .9221 to .9367 |     -.0176 | -.0274 to -.0077 |     .018 |
| dense, 200 images            |    .8975 | .8880 to .9069 |     -.0495 | -.0607 to -.0384 |     .006 |
| narrow local, 200 images     |    .9162 | .9061 to .9263 |     -.0308 | -.0426 to -.0190 |     .006 |
| narrow dense, 200 images     |    .8813 | .8703 to .8922 |     -.0657 | -.0802 to -.0513 |     .006 |
| convolution, all, unshifted  |    .9565 | .9529 to .9600 |            |                  |          |
| local, all, unshifted        |    .9440 | .9388 to .9491 |     -.0125 | -.0196 to -.0054 |     .018 |
| dense, all, unshifted        |    .9354 | .9313 to .9395 |     -.0211 | -.0251 to -.0171 |     .006 |
| narrow local, all, unshifted |    .9384 | .9311 to .9458 |     -.0181 | -.0250 to -.0111 |     .006 |
| narrow dense, all, unshifted |    .9326 | .9278 to .9375 |     -.0238 | -.0292 to -.0184 |     .006 |

Seeds 9 to 11 were added when nine had left local against convolution open, as wide and each with p = .129. As the
papers say, convolutions beat both, as wide and with as many parameters, and lose less with fewer images: 2.5 points
from 1,293 to 200, dense layers 4.5. But where sharing brought LeCun 10 points and locality 1.5, here in wide networks
locality brings 2.1 and sharing .9 (from 200 images 3.2 and 1.8), by the means. And the shifts in training do not stand
in for sharing: they bring convolutions 1.6 points, dense layers .7.
"""

from collections.abc import Iterator

from cnn.studies import Arm, Study

NETWORKS = {  # kind of layer, widths, learning rate
    'convolution': ('conv', (16, 32, 64), 2e-2),
    'local': ('local', (16, 32, 64), 6e-3),
    'dense': ('dense', (16, 32, 64), 6e-3),
    'narrow local': ('local', (6, 12, 25), 5e-2),
    'narrow dense': ('dense', (4, 7, 15), 5e-2),
}
DATA = {
    'all images': {},
    '200 images': {'data.examples_per_class': 20},
    'all, unshifted': {'augment.shift': 0},
}


def arms() -> Iterator[Arm]:
    for data, fields in DATA.items():
        for network, (kind, widths, learning_rate) in NETWORKS.items():
            options = {
                'model.name': 'plain',
                'model.options.layers': (kind,) * 3,
                'model.options.widths': widths,
                'model.options.summary': 'flatten',  # a mean over positions would share what the layers do not
                'optimizer.learning_rate': learning_rate,
                'data.batch_size': 128,
                'train.duration': '300',
                'eval.every': '50',
                'checkpoint.every': '300',
                'log.every': '20',
            }
            yield Arm(f'{network}, {data}', options | fields, against=f'convolution, {data}')


def get_study() -> Study:
    return Study(
        question='Does it help that all positions share their weights?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='convolution, all images',
        seeds=12,
        metric='accuracy',
        effect=0.01,
    )
