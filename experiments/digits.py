"""Handwritten digits, 8x8, read by the textbook network: the default experiment.

    python launch.py --config=experiments/digits.py

16 seconds on 2 CPU cores. Test accuracy over seeds 0 to 5: .9773, standard deviation .0054.
"""

from cnn.config import Experiment


def get_config() -> Experiment:
    config = Experiment()
    config.model.name = 'simple_cnn'
    config.model.options = {'norm': 'batch'}
    config.data.name = 'digits'
    config.data.batch_size = 64
    config.augment.shift = 1
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.schedule.name = 'one_cycle'
    config.schedule.warmup = '30%'
    config.train.duration = '40ep'
    config.eval.every = '2ep'
    config.eval.metric = 'loss'  # accuracy on 144 images is often 1, and then says nothing
    config.checkpoint.every = '10ep'
    return config
