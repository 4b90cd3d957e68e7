"""Five digits learnt from a few labels, after the other five or from scratch.

    python -m experiments.transfer.few_labels --experiment=experiments/transfer/digits.py

The network reads 0 to 4 first (arm `pretrain`, all labels). Then it learns 5 to 9 from 1, 5, 10 or 50 labels of each:
`scratch` from its own initialisation, `tuned` from those weights with all of them learning, `probe` with the head alone
learning on features that stay as they are. There is no validation: 300 steps, and the last state is tested.
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
