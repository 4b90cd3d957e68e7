"""Five digits learnt from a few labels, after the other five or from scratch.

    python -m experiments.transfer.few_labels --experiment=experiments/transfer/digits.py

The network reads 0 to 4 first (arm `pretrain`, all labels). Then it learns 5 to 9 from 1, 5, 10 or 50 labels of each:
`scratch` from its own initialisation, `tuned` from those weights with all of them learning, `probe` with the head alone
learning on features that stay as they are. There is no validation: 300 steps, and the last state is tested. A run took
five seconds on 2 CPU cores beside other work.

Test accuracy over seeds 0 to 5, mean and half of its 95 % interval, and the difference from `scratch` seed by seed:

    labels   scratch        tuned          probe          tuned - scratch    probe - scratch
    1        .650 ± .116    .627 ± .081    .464 ± .056    -.023 ± .046       -.186 ± .124
    5        .900 ± .038    .844 ± .040    .576 ± .070    -.056 ± .033       -.324 ± .051
    10       .950 ± .012    .921 ± .014    .627 ± .063    -.029 ± .010       -.323 ± .062
    50       .979 ± .008    .975 ± .005    .653 ± .066    -.004 ± .010       -.326 ± .070

So nothing is gained: five digits of 8 x 8 pixels teach no features that the others need, and with 5 and 10 labels the
network that had to unlearn them is behind. What 1.2 million pictures teach is another matter: see blood_cells.py.
"""

from cnn.config import Experiment
from experiments import digits

ARMS = ('scratch', 'tuned', 'probe')
PRETRAIN = 'pretrain'


def get_config(arm: str = 'tuned') -> Experiment:
    config = digits.get_config()
    if arm == 'pretrain':
        config.data.classes = ('0', '1', '2', '3', '4')
        return config
    config.data.classes = ('5', '6', '7', '8', '9')
    config.data.validation_split = None
    config.eval.metric = None
    config.train.duration = '300'
    config.checkpoint.every = '0'
    if arm == 'probe':
        config.optimizer.frozen = ('(?!head).*',)
        config.model.batch_norm = 'frozen'
    return config
