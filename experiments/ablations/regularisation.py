"""Batch normalisation, dropout and augmentation, each on and off, with 200 labels: which of them help, and together?

    python launch.py ablate --study=experiments/ablations/regularisation.py

Ioffe & Szegedy 2015 (sections 3.4 and 4.2.1) find that batch normalisation regularises, so that dropout can go. Li et
al. 2019 (Understanding the Disharmony between Dropout and Batch Normalization) find that the two together do worse,
unless dropout comes after the last normalisation, as it does here. Shifted copies of images are LeCun et al.'s (1998).

The default network at half its width, 20 digits of each class, 320 steps of 50; nothing stops early. .003 is among the
best learning rates of .001, .003 and .01 on the validation split for none, dropout + shift and all three; batch norm
alone has a lower loss at .001, of the same accuracy. One choice of 200 digits: seeds vary initialisation and order.

105 seconds on 2 CPU cores. Test accuracy over seeds 0 to 15, the last seven added after a look at the first nine:

| arm                          | accuracy |  95 % interval | against | difference |    95 % interval | p (Holm) |
| ---------------------------- | -------: | -------------: | ------- | ---------: | ---------------: | -------: |
| none                         |    .8780 | .8677 to .8882 |         |            |                  |          |
| shift                        |    .9227 | .9155 to .9300 | none    |     +.0448 |   .0354 to .0542 |   < .001 |
| dropout                      |    .8931 | .8831 to .9030 | none    |     +.0151 |   .0085 to .0217 |     .001 |
| batch norm                   |    .8856 | .8780 to .8932 | none    |     +.0076 |  -.0016 to .0169 |     .106 |
| batch norm + dropout + shift |    .9448 | .9399 to .9497 | none    |     +.0668 |   .0553 to .0784 |   < .001 |
| dropout + shift              |    .9290 | .9182 to .9398 | all     |     -.0158 | -.0279 to -.0037 |     .053 |
| batch norm + shift           |    .9359 | .9282 to .9437 | all     |     -.0089 | -.0162 to -.0015 |     .053 |
| batch norm + dropout         |    .9054 | .8979 to .9128 | all     |     -.0394 | -.0488 to -.0300 |   < .001 |

A shift by one pixel is worth more than the other two together, and what the three add alone, .0675, they add together.
Batch normalisation is no substitute for dropout here, against Ioffe & Szegedy: alone it is not shown to help, and
dropout brings .020 beside it (.014 to .026; not one of the comparisons above), and .015 without it.
"""

import itertools
from collections.abc import Iterator

from cnn.studies import Arm, Study

# What each sets when it is off and when it is on.
SWITCHES = {
    'batch norm': ('model.options.norm', 'none', 'batch'),
    'dropout': ('model.options.dropout', 0.0, 0.5),
    'shift': ('augment.shift', 0, 1),
}
ALL = ' + '.join(SWITCHES)


def arms() -> Iterator[Arm]:
    for on in itertools.product((False, True), repeat=len(SWITCHES)):
        options = {
            'model.options.widths': (16, 32, 64),
            'model.options.hidden': 128,
            'data.examples_per_class': 20,
            'data.batch_size': 50,
            'optimizer.learning_rate': 3e-3,
            'train.duration': '320',
            'eval.every': '320',  # at the end only, so that nothing stops early
            'checkpoint.every': '0',
            'log.every': '20',
        }
        options |= {field: values[chosen] for (field, *values), chosen in zip(SWITCHES.values(), on, strict=True)}
        name = ' + '.join(itertools.compress(SWITCHES, on)) or 'none'
        yield Arm(name, options, against=ALL if sum(on) == 2 else 'none')


def get_study() -> Study:
    return Study(
        question='With few labels, what do batch normalisation, dropout and augmentation add, alone and to each other?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='none',
        seeds=16,
        effect=0.01,
    )
