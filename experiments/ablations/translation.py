"""Pictures that are moved by 1 to 3 pixels: how much accuracy is lost where training never saw it?

    python launch.py ablate --study=experiments/ablations/translation.py

Textbooks say that convolutions move with the picture and that pools make them forget small moves (Goodfellow et al.
2016, sections 9.2 and 9.3); Zhang 2019 (section 3) that strides and max pools break this by aliasing, and that a blur
before the stride mends most. 8x8 digits in the middle of 16x16 pixels; one hidden layer, or three convolutions (8, 16,
32 channels) with a pool between them, whose last map is flattened or (`mean`) averaged over positions; 202 steps of 128
with AdamW, in which no picture moves, and no validation. Accuracy after a move by n pixels is the mean over up, down,
left and right. Learning rates of .003, .01, .03 and .1 (for `max pool`, `stride` and `max pool, mean` .3 as well) were
compared by the loss on the validation split, pictures in their place, two seeds: .03 is best for `dense` and `no pool`,
.1 for `max pool`, `stride` and both of `mean`. The other pools have .1, too.

93 seconds on 2 CPU cores. Test accuracy over seeds 0 to 8; the difference is from max pool, moved by 1:

| arm            |  in place |      by 1 |  95 % interval | difference |  95 % interval | p (Holm) | by 2 | by 3 |
| -------------- | --------: | --------: | -------------: | ---------: | -------------: | -------: | ---: | ---: |
| max pool       |     .9571 |      .674 |   .660 to .687 |            |                |          | .420 | .240 |
| average pool   |     .9583 |      .701 |   .678 to .723 |      +.027 | +.003 to +.051 |     .043 | .399 | .202 |
| blur pool      |     .9670 |      .885 |   .863 to .907 |      +.212 | +.192 to +.231 |     .027 | .715 | .494 |
| stride         |     .9336 |      .478 |   .461 to .495 |      -.196 | -.222 to -.170 |     .027 | .103 | .079 |
| no pool        |     .9488 |      .539 |   .512 to .566 |      -.135 | -.168 to -.101 |     .027 | .105 | .096 |
| dense          |     .9136 |      .458 |   .453 to .463 |      -.216 | -.228 to -.203 |     .027 | .103 | .104 |
| max pool, mean |     .9571 |      .770 |   .743 to .797 |      +.096 | +.060 to +.132 |     .027 | .822 | .672 |
| no pool, mean  |     .9664 |      .967 |   .961 to .972 |      +.293 | +.278 to +.307 |     .027 | .967 | .965 |

Convolutions and strided ones before a flattened map lose nearly what the dense network loses: they move with the
picture, but the head reads places. As Zhang says, a blur before the stride mends most, and costs nothing in place. The
mean over the positions of a map without pools loses nothing. With pools before it, whose strides make 4, 2 pixels cost
less than 1 or 3. Against the textbook a max pool alone is little protection: one pixel costs 28 points.
"""

from collections.abc import Iterator
from typing import Any

from cnn.studies import Arm, Study

SETTINGS: dict[str, Any] = {
    'task.options.shifts': 3,
    'data.name': 'framed_digits',
    'data.batch_size': 128,
    'augment.shift': 0,
    'train.duration': '20ep',
    'data.validation_split': None,
    'checkpoint.every': '0',
    'log.every': '20',
}


def dense(learning_rate: float) -> dict[str, Any]:
    """One hidden layer."""
    return {
        **SETTINGS,
        'model.name': 'mlp',
        'model.options.widths': (128,),
        'optimizer.learning_rate': learning_rate,
    }


def convolutions(pool: str, summary: str, learning_rate: float) -> dict[str, Any]:
    """Three layers with that pool between them, and that summary of the last map before the head."""
    return {
        **SETTINGS,
        'model.name': 'plain',
        'model.options.widths': (8, 16, 32),
        'model.options.pool': pool,
        'model.options.summary': summary,
        'optimizer.learning_rate': learning_rate,
    }


def arms() -> Iterator[Arm]:
    yield Arm('max pool', convolutions('max', 'flatten', 0.1))
    yield Arm('average pool', convolutions('average', 'flatten', 0.1))
    yield Arm('blur pool', convolutions('blur', 'flatten', 0.1))
    yield Arm('stride', convolutions('stride', 'flatten', 0.1))
    yield Arm('no pool', convolutions('none', 'flatten', 0.03))
    yield Arm('dense', dense(0.03))
    yield Arm('max pool, mean', convolutions('max', 'mean', 0.1))
    yield Arm('no pool, mean', convolutions('none', 'mean', 0.1))


def get_study() -> Study:
    return Study(
        question='How much accuracy is lost where pictures are moved by a few pixels, which training never saw?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='max pool',
        seeds=9,
        metric='accuracy_shift1',
        also=('accuracy', 'accuracy_shift2', 'accuracy_shift3'),
        effect=0.02,
    )
