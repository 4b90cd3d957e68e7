"""Pooling against strided convolutions: does a network need pools?

    python launch.py ablate --study=experiments/ablations/pooling.py

Springenberg et al. 2015 (table 3, CIFAR-10 without augmentation) find that a network whose layers before the pools have
their stride is somewhat worse (model C: error 10.19 % against 9.74 %), and one with a further, strided convolution in
place of each pool better (9.08 %), which a further layer before the pool makes too (9.31 %). Here: 3x3 convolutions,
16-16, 32-32, 64-64 channels, batch normalisation, 2x2 pools and the mean over positions, on 8x8 digits that training
moves by a pixel; 202 steps of 128 with AdamW and no validation. Learning rates of .003, .01, .03, .1 and .3 were
compared by the loss on the validation split, three seeds: .1 is best for max pool and the further layers; for the layer
before .03, .1 and .3 are alike. The others have .1, too.

84 seconds on 2 CPU cores. Test accuracy over seeds 0 to 15; differences are from max pool, with p = 1 (Holm) for each:

| arm                   | accuracy |  95 % interval | difference |    95 % interval | parameters | multiply-adds |
| --------------------- | -------: | -------------: | ---------: | ---------------: | ---------: | ------------: |
| max pool              |    .9743 | .9689 to .9797 |            |                  |     72,666 |       599,680 |
| average pool          |    .9760 | .9738 to .9783 |     +.0017 | -.0045 to +.0080 |     72,666 |       599,680 |
| blur pool             |    .9769 | .9739 to .9800 |     +.0026 | -.0034 to +.0086 |     72,666 |       599,680 |
| strided layer         |    .9708 | .9667 to .9750 |     -.0035 | -.0101 to +.0031 |     72,666 |       378,496 |
| further strided layer |    .9712 | .9684 to .9740 |     -.0031 | -.0092 to +.0029 |     84,282 |       673,408 |

The paper's loss of half a point with the stride in the layer before, which saves 37 % of the multiply-adds, is neither
shown nor excluded. Its gain of more than half a point from further strided layers, which have more parameters, is
not there: the interval ends at +.0029.
"""

from collections.abc import Iterator

from cnn.studies import Arm, Study

POOLS = {
    'max pool': 'max',
    'average pool': 'average',
    'blur pool': 'blur',
    'strided layer': 'stride',
    'further strided layer': 'conv',
}


def arms() -> Iterator[Arm]:
    for name, pool in POOLS.items():
        options = {
            'model.name': 'plain',
            'model.options.widths': (16, 32, 64),
            'model.options.depth': 2,
            'model.options.pool': pool,
            'data.batch_size': 128,
            'optimizer.learning_rate': 0.1,
            'train.duration': '20ep',
            'data.validation_split': None,
            'checkpoint.every': '0',
            'log.every': '20',
        }
        yield Arm(name, options)


def get_study() -> Study:
    return Study(
        question='Does a network for digits need pools, or do strided convolutions do as well?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='max pool',
        seeds=16,
        metric='accuracy',
        effect=0.005,
    )
