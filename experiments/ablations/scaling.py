"""Depth, width, resolution or all of them together: what should grow when a network may cost more?

    python launch.py ablate --study=experiments/ablations/scaling.py

Tan & Le 2019 (EfficientNet, section 3) find that each of the three helps, and less and less; and that at equal cost all
together help more: 81.1 % on ImageNet against 78.9 to 79.1 % for one alone, at 4.5 times the cost of 77.3 % (table 7).

Here one stage of residual blocks reads digits that are shrunk, so that pixels up to the native 8x8 are information.
Costs are multiply-adds. The compound form with four times the cost has 1.5 times the blocks, 1.25 times the channels
and 1.25 times the side, near to the paper's 1.4, 1.2 and 1.3. All train for 202 steps of 128, at a learning rate
between the .02 and .05 that did equally well on the validation split, over the base and the forms x4; .002 and .006 do
no better.

177 seconds on 2 CPU cores. Test accuracy over seeds 0 to 8:

| arm           | multiply-adds | accuracy |  95 % interval | against     | difference |  95 % interval | p (Holm) |
| ------------- | ------------: | -------: | -------------: | ----------- | ---------: | -------------: | -------: |
| base          |        74,960 |    .8966 | .8873 to .9060 |             |            |                |          |
| depth x2      |       148,688 |    .8951 | .8868 to .9033 | compound x2 |      -.027 | -.036 to -.018 |     .031 |
| width x2      |       141,086 |    .9111 | .8993 to .9230 | compound x2 |      -.011 | -.025 to +.003 |     .195 |
| resolution x2 |       140,480 |    .9336 | .9220 to .9453 | compound x2 |      +.012 | -.003 to +.026 |     .195 |
| compound x2   |       147,510 |    .9219 | .9143 to .9295 | base        |      +.025 | +.013 to +.037 |     .039 |
| depth x4      |       296,144 |    .8985 | .8908 to .9062 | compound x4 |      -.042 | -.056 to -.027 |     .031 |
| width x4      |       297,376 |    .9127 | .9071 to .9182 | compound x4 |      -.027 | -.039 to -.016 |     .031 |
| resolution x4 |       299,600 |    .9614 | .9506 to .9722 | compound x4 |      +.021 | +.004 to +.039 |     .141 |
| compound x4   |       272,350 |    .9401 | .9288 to .9515 | compound x2 |      +.018 | +.006 to +.030 |     .094 |

As in the paper, compound scaling is better than depth and, at x4, than width, whose gain is spent at x2. Against it,
depth gains nothing at all, and resolution alone is better than the compound in the mean, though that is not shown: at
4x4 pixels there is more to win from what the network sees than from what it computes.
"""

from collections.abc import Iterator

from cnn.studies import Arm, Study

# Blocks, channels, pixels a side (multiply-adds grow as blocks * channels ** 2 * height * width); compared with.
FORMS = {
    'base': (4, 8, (4, 4), 'base'),
    'depth x2': (8, 8, (4, 4), 'compound x2'),
    'width x2': (4, 11, (4, 4), 'compound x2'),
    'resolution x2': (4, 8, (6, 5), 'compound x2'),
    'compound x2': (5, 9, (5, 4), 'base'),
    'depth x4': (16, 8, (4, 4), 'compound x4'),
    'width x4': (4, 16, (4, 4), 'compound x4'),
    'resolution x4': (4, 8, (8, 8), 'compound x4'),
    'compound x4': (6, 10, (5, 5), 'compound x2'),
}


def arms() -> Iterator[Arm]:
    for name, (blocks, width, size, against) in FORMS.items():
        options = {
            'model.name': 'resnet/cifar20',
            'model.options.depths': (blocks,),
            'model.options.width': width,
            'data.image_size': size,
            'data.batch_size': 128,
            'augment.shift': 0,
            'optimizer.learning_rate': 3e-2,
            'train.duration': '20ep',
            'eval.every': '10ep',
            'checkpoint.every': '0',
            'log.every': '20',
        }
        yield Arm(name, options, against)


def get_study() -> Study:
    return Study(
        question='At equal cost, do depth, width and resolution help more together than each alone?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='base',
        seeds=9,
        effect=0.01,
    )
