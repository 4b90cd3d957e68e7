import numpy as np
import pytest
import scipy.io.wavfile

import launch
from cnn.config import Spectrogram
from cnn.data import sources
from cnn.data.batches import train_indices
from cnn.training import evaluation, program, sharding
from cnn.training.state import TRAIN, stream

FILE = str(launch.ROOT / 'experiments' / 'spoken_digits.py')


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
    """Tones of 300 and 900 Hz in the layout of the data set, .2 to .6 seconds long."""
    root, generator = tmp_path_factory.mktemp('recordings'), np.random.default_rng(0)
    for split, count in (('train', 20), ('test', 4)):
        for label, hertz in enumerate((300, 900)):
            (root / split / str(label)).mkdir(parents=True)
            for index in range(count):
                time = np.arange(generator.integers(1600, 4800)) / 8000
                tone = np.sin(2 * np.pi * hertz * time) + 0.01 * generator.normal(size=time.shape)
                scaled = (tone * 8000).astype(np.int16)
                scipy.io.wavfile.write(root / split / str(label) / f'{label}_someone_{index}.wav', 8000, scaled)
    return root


def small(recordings):
    config = launch.load_experiment(f'{FILE}:{recordings}')
    config.model.options |= {'widths': (4, 4, 4), 'hidden': 8, 'dropout': 0.0}
    config.data.batch_size = 12
    config.optimizer.learning_rate = 0.02
    config.schedule.name = 'constant'
    config.mesh.data = 1
    return config


def test_the_folder_is_an_argument():
    assert launch.load_experiment(FILE).data.name == 'folder:data/spoken_digits'
    assert launch.load_experiment(f'{FILE}:/some/where').data.name == 'folder:/some/where'


def test_recordings_become_spectrograms_and_are_learned_from(recordings):
    config = small(recordings)
    spec = sources.spec(config.data)
    config = program.resolve(config, spec)
    mesh = sharding.make_mesh(config)
    batches = evaluation.open_split(config, spec, 'train', mesh)
    built, numbers = program.build(config, spec, batches.num_examples, mesh)
    assert batches.num_examples == 36  # a tenth validates
    assert built.spec.shapes['image'] == (31, 40, 1)
    assert built.spec.normalized
    state, key, losses = built.init(numbers), stream(config.seed, TRAIN), []
    for batch in batches(train_indices(batches.num_examples, 12, seed=0), 0, 12):
        assert batch['signal'].shape == (12, 6400, 1)
        state, row = built.train_step(state, batch, key, numbers)
        losses.append(float(row['loss']))
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_programs_of_other_spectrograms_are_others(recordings):
    config = small(recordings)
    spec = sources.spec(config.data)
    config = program.resolve(config, spec)
    mesh = sharding.make_mesh(config)
    first, _ = program.build(config, spec, 36, mesh)
    assert program.build(config, spec, 36, mesh)[0] is first
    config.spectrogram = Spectrogram(bands=20, hop=400)
    other, _ = program.build(config, spec, 36, mesh)
    assert other.spec.shapes['image'] == (16, 20, 1)
