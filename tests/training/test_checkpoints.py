import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cnn.errors import InputError, RunFailed
from cnn.training.checkpoints import Checkpoints, DamagedCheckpoint, checksums


def state_of(step):
    return {
        'step': jnp.asarray(step, jnp.int32),
        'kernel': jnp.arange(4096, dtype=jnp.float32).reshape(64, 64) + step,
        'half': jnp.full((3, 5), step, jnp.bfloat16),
        'seed': jnp.asarray(7, jnp.uint32),
    }


ABSTRACT = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), jax.eval_shape(state_of, 0)
)


def saved(folder, scores, keep=2):
    checkpoints = Checkpoints(folder, keep)
    for step, score in scores.items():
        checkpoints.save(step, state_of(step), score, {'best': step / 2})
    checkpoints.close()
    return Checkpoints(folder, keep)


def steps_on_disk(folder):
    return {int(path.name) for path in (folder / 'checkpoints').iterdir() if path.name.isdigit()}


def test_the_last_state_comes_back_bit_for_bit_with_its_notes(tmp_path):
    state, notes = saved(tmp_path, {1: None, 3: 0.5}).last(ABSTRACT)
    for name, leaf in state_of(3).items():
        assert state[name].dtype == leaf.dtype
        np.testing.assert_array_equal(state[name], leaf)
    assert notes == {'best': 1.5}


def test_an_empty_folder_has_no_last_state(tmp_path):
    assert Checkpoints(tmp_path).last(ABSTRACT) is None
    with pytest.raises(InputError, match='no checkpoint'):
        Checkpoints(tmp_path).best_step()


def test_best_and_last_are_kept_and_of_equal_scores_the_earliest(tmp_path):
    checkpoints = saved(tmp_path, {1: 0.1, 2: 0.9, 3: 0.9, 4: 0.2, 5: None, 6: 0.3}, keep=2)
    assert checkpoints.best_step() == 2
    assert steps_on_disk(tmp_path) == {2, 5, 6}


def test_without_scores_the_last_is_the_best(tmp_path):
    assert saved(tmp_path, {1: None, 2: None, 3: None}).best_step() == 3


def test_a_truncated_file_sends_back_to_the_checkpoint_before(tmp_path):
    saved(tmp_path, {1: 0.1, 2: 0.2}).close()
    largest = max((tmp_path / 'checkpoints' / '2' / 'state').rglob('*'), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    checkpoints = Checkpoints(tmp_path, 2)
    with pytest.raises(DamagedCheckpoint, match='checkpoints/2'):
        checkpoints.restore(2, ABSTRACT)
    state, _ = checkpoints.last(ABSTRACT)
    assert state['step'] == 1
    assert steps_on_disk(tmp_path) == {1}


def test_a_checkpoint_with_other_bits_than_were_saved_is_refused(tmp_path, monkeypatch):
    # A bit that flips on the disk reaches `restore` as an array that differs from the one that was saved.
    checkpoints = Checkpoints(tmp_path)
    true_checksums = checksums(state_of(2))
    monkeypatch.setattr('cnn.training.checkpoints.checksums', lambda state: true_checksums)
    flipped = state_of(2)
    bits = np.asarray(flipped['kernel']).view(np.uint32).copy()
    bits[17, 3] ^= 1
    checkpoints.save(2, {**flipped, 'kernel': jnp.asarray(bits.view(np.float32))}, 0.5, {})
    monkeypatch.undo()
    with pytest.raises(DamagedCheckpoint, match='kernel'):
        checkpoints.restore(2, ABSTRACT)
    with pytest.raises(DamagedCheckpoint, match=r'\[2\]'):
        checkpoints.last(ABSTRACT)


def test_a_disk_that_is_full_is_named_and_what_was_saved_before_stays_sound(tmp_path):
    script = f"""
import jax, resource, signal
from cnn.errors import RunFailed
from cnn.training.checkpoints import Checkpoints
checkpoints = Checkpoints({str(tmp_path)!r})
state = lambda step: {{'step': step, 'noise': jax.random.normal(jax.random.key(step), (500, 500))}}
checkpoints.save(1, state(1), 0.1, {{}})
checkpoints.best_step()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # what a full disk does to a file
try:
    checkpoints.save(2, state(2), 0.2, {{}})
    checkpoints.best_step()
except RunFailed as error:
    print(error)
"""
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
    assert 'cannot be written' in result.stdout, result.stderr
    assert 'File too large' in result.stdout
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_step() == 1
    abstract = {'step': 0, 'noise': jax.ShapeDtypeStruct((500, 500), jnp.float32, sharding=ABSTRACT['step'].sharding)}
    state, _ = checkpoints.last(abstract)
    assert state['step'] == 1


def test_the_reason_is_named_before_the_notes_of_tensorstore(tmp_path, monkeypatch):
    specification = '{"driver":"zarr","metadata":{"chunks":[16],"shape":[16]},"path":"' + 300 * 'a' + '"}'
    message = (  # as it came from about one save in a hundred with many small arrays
        'OUT_OF_RANGE: Error opening "zarr" driver: Error writing "a/.zarray" in OCDBT database at local file "a": '
        "Failed to write 158789 bytes to file 11: File too large [os_error_code='27'; "
        f"tensorstore_spec='{specification}']"
    )

    def refuse(*_, **__):
        raise ValueError(message)

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(ocp.CheckpointManager, 'save', refuse)
    with pytest.raises(
        RunFailed, match=r'bytes to file 11: File too large\); make room, and the same command resumes$'
    ):
        checkpoints.save(1, {'step': 1}, 0.1, {})


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int32', 'uint8', 'bool'])
def test_the_checksum_shows_any_single_bit(dtype):
    array = np.asarray(jnp.arange(12).astype(dtype)).reshape(3, 4)
    before = checksums({'a': jnp.asarray(array)})
    width = array.dtype.itemsize
    for position in range(12):
        for bit in range(1 if dtype == 'bool' else 8 * width):
            flipped = array.copy().reshape(-1).view(f'uint{8 * width}')
            flipped[position] ^= 1 << bit
            assert checksums({'a': jnp.asarray(flipped.view(array.dtype).reshape(3, 4))}) != before


def test_the_checksum_shows_two_elements_that_changed_places():
    assert checksums({'a': jnp.array([1.0, 2.0])}) != checksums({'a': jnp.array([2.0, 1.0])})
