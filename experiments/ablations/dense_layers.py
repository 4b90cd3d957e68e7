"""A dense layer first, in the middle, last or nowhere in a convolutional network: where does it belong?

    python launch.py ablate --study=experiments/ablations/dense_layers.py

The textbooks' networks, from LeCun et al. 1998 (section II) on, have convolutions first and dense layers last: small
features are looked for everywhere, and what was found where is put together at the end. Springenberg et al. 2015 do
without dense layers. Here one of three layers, before the first pool, between the two or after both, is dense, from
its whole map to a whole map; the others are 3x3 convolutions, all with batch normalisation, the head is flat. They
learn 8x8 digits, moved by a pixel, in 300 steps of 128 with AdamW. The network that is dense last has 16, 32 and 64
channels and 40,314 parameters; the others are as wide (nowhere 25,978, middle 152,442, first 91,370), or narrower or
wider, with as many parameters within 1 %. Learning rates of .002, .006 and .02 were compared by the loss on the
validation split, two seeds, over both widths: .006 is best for dense first, .02 for the others.

112 seconds on 2 CPU cores. Test accuracy over seeds 0 to 11; differences are from dense last:

| arm                    | accuracy |  95 % interval | difference |    95 % interval | p (Holm) |
| ---------------------- | -------: | -------------: | ---------: | ---------------: | -------: |
| dense last             |    .9720 | .9654 to .9786 |            |                  |          |
| dense nowhere          |    .9722 | .9668 to .9776 |     +.0002 | -.0086 to +.0091 |        1 |
| dense middle           |    .9708 | .9657 to .9760 |     -.0012 | -.0090 to +.0067 |        1 |
| dense first            |    .9387 | .9312 to .9461 |     -.0333 | -.0436 to -.0231 |     .003 |
| dense nowhere, wider   |    .9674 | .9628 to .9719 |     -.0046 | -.0119 to +.0026 |     .650 |
| dense middle, narrower |    .9595 | .9537 to .9652 |     -.0125 | -.0228 to -.0022 |     .115 |
| dense first, narrower  |    .9271 | .9182 to .9359 |     -.0449 | -.0570 to -.0328 |     .003 |

As the textbooks say, a dense layer must not come first: that costs 3 to 5 points. But last is no better than in the
middle or nowhere: at equal width both are within a point of it. With as many parameters neither is shown to be worse,
nor is more than a point excluded, and more channels gain the convolutions nothing. Seeds 8 to 11 were added after the
first eight, which showed the same, for narrower intervals.
"""

from collections.abc import Iterator

from cnn.studies import Arm, Study

WIDTHS = 16, 32, 64
FIRST, MIDDLE, LAST, NOWHERE = (
    tuple('dense' if stage == at else 'conv' for stage in range(3)) for at in (0, 1, 2, None)
)
NETWORKS = {  # layers, widths, learning rate
    'dense last': (LAST, WIDTHS, 2e-2),
    'dense nowhere': (NOWHERE, WIDTHS, 2e-2),
    'dense middle': (MIDDLE, WIDTHS, 2e-2),
    'dense first': (FIRST, WIDTHS, 6e-3),
    'dense nowhere, wider': (NOWHERE, (20, 40, 81), 2e-2),
    'dense middle, narrower': (MIDDLE, (9, 15, 31), 2e-2),
    'dense first, narrower': (FIRST, (8, 16, 34), 6e-3),
}


def arms() -> Iterator[Arm]:
    for name, (layers, widths, learning_rate) in NETWORKS.items():
        options = {
            'model.name': 'plain',
            'model.options.layers': layers,
            'model.options.widths': widths,
            'model.options.summary': 'flatten',
            'optimizer.learning_rate': learning_rate,
            'data.batch_size': 128,
            'train.duration': '300',
            'eval.every': '50',
            'checkpoint.every': '300',
            'log.every': '20',
        }
        yield Arm(name, options)


def get_study() -> Study:
    return Study(
        question='Does a dense layer belong at the end of a convolutional network?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='dense last',
        seeds=12,
        metric='accuracy',
        effect=0.01,
    )
