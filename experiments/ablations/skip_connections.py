"""Plain against residual networks of growing depth: do skip connections help?

    python launch.py ablate --study=experiments/ablations/skip_connections.py

He et al. 2016 (section 4.2, figure 6) find that plain networks get worse with depth, in training too, so that it is not
overfitting, and that residual ones get better. These are their networks for small images, with 6 n + 2 layers, batch
normalisation and half of their width, on 8x8 digits, trained by SGD as theirs, but for 303 steps of 64. Of learning
rates .03, .1 and .3 the validation split prefers .1 for residual 20, plain 20 (both at a batch of 128) and residual 56;
none trains plain 56, whose validation accuracy stays below .48, nor does AdamW (.001 to .01); four times as many steps
bring it to .68 (seed 101).

204 seconds on 2 CPU cores. Test accuracy over seeds 0 to 7, and the training loss at the end:

| arm         | accuracy |   95 % interval | against     | difference |    95 % interval | p (Holm) | training loss |
| ----------- | -------: | --------------: | ----------- | ---------: | ---------------: | -------: | ------------: |
| residual 8  |    .9510 |  .9421 to .9600 |             |            |                  |          |         .0014 |
| plain 8     |    .9472 |  .9417 to .9528 | residual 8  |      -.004 |   -.015 to +.008 |     .969 |         .0022 |
| residual 20 |    .9503 |  .9409 to .9598 | residual 8  |      -.001 |   -.013 to +.012 |     .969 |         .0007 |
| plain 20    |    .9382 |  .9283 to .9481 | residual 20 |      -.012 |   -.020 to -.005 |     .125 |         .0105 |
| residual 56 |    .9389 |  .9312 to .9465 | residual 20 |      -.011 |   -.023 to +.000 |     .188 |         .0015 |
| plain 56    |    .4229 |  .3814 to .4644 | residual 56 |      -.516 |   -.557 to -.475 |     .039 |        1.3925 |

As in the paper, the plain network of 56 layers can't be trained to what the one of 20 layers reaches in the same time,
and the residual one can; at 8 layers no difference is shown. Against the paper, the residual networks are no better for
their depth: these digits are learned by heart with 8 layers.
"""

from collections.abc import Iterator

from cnn.studies import Arm, Study

SHALLOWER = {8: 8, 20: 8, 56: 20}  # by depth, that of the residual network which the residual one is compared with


def arms() -> Iterator[Arm]:
    for depth, shallower in SHALLOWER.items():
        for residual in (True, False):
            options = {
                'model.name': 'resnet/cifar20',
                'model.options.depths': (depth // 6,) * 3,
                'model.options.width': 8,
                'model.options.residual': residual,
                'model.options.shortcut': 'identity' if residual else 'projection',  # a plain network has neither
                'augment.shift': 0,
                'optimizer.name': 'sgd',
                'optimizer.learning_rate': 0.1,
                'optimizer.weight_decay': 1e-4,
                'train.duration': '15ep',
                'eval.every': '5ep',
                'checkpoint.every': '0',
            }
            kind, against = ('residual', shallower) if residual else ('plain', depth)
            yield Arm(f'{kind} {depth}', options, against=f'residual {against}')


def get_study() -> Study:
    return Study(
        question='Do skip connections help at every depth, and does depth then help?',
        base='experiments/digits.py',
        arms=arms(),
        baseline='residual 8',
        seeds=8,
        metric='accuracy',
        effect=0.01,
    )
