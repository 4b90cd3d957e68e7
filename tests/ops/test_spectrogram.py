import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from cnn.errors import InputError
from cnn.ops import spectrogram

LIBROSA = pathlib.Path(__file__).parent / 'references' / 'mel.json'  # made by make_mel.py there


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape)


def chirp(samples):
    """At 8 kHz a tone that rises through the band, with a quieter one at a third of its frequency."""
    time = np.arange(samples) / 8000
    phase = 2 * np.pi * (200 + 3000 * time) * time
    return np.sin(phase) + 0.1 * np.sin(phase / 3)


def exact(function, signal, *arguments, **settings):
    with jax.enable_x64(True):
        return np.asarray(function(jnp.asarray(signal), *arguments, **settings))


@pytest.mark.parametrize(('window', 'hop', 'length'), [(256, 128, 1500), (64, 20, 333), (25, 10, 100), (8, 8, 8)])
def test_stft_is_that_of_scipy(window, hop, length):
    signal = noise(2, length)
    *_, expected = scipy.signal.stft(
        signal, window='hann', nperseg=window, noverlap=window - hop, boundary=None, padded=False
    )
    expected = np.swapaxes(expected, 1, 2) * scipy.signal.get_window('hann', window).sum()
    found = exact(spectrogram.stft, signal, window, hop)
    assert found.shape == (2, 1 + (length - window) // hop, window // 2 + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())


def test_float32_loses_little():
    signal = noise(3, 2000)
    found = np.asarray(spectrogram.power_spectrogram(jnp.asarray(signal, jnp.float32), 256, 100))
    assert found.dtype == np.float32
    expected = exact(spectrogram.power_spectrogram, signal, 256, 100)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_parseval():
    signal = noise(640)
    power = exact(spectrogram.power_spectrogram, signal, 64, 64)
    mirrored = power[:, 1:-1].sum(-1)  # the coefficients of negative frequencies
    weighted = signal.reshape(10, 64) * scipy.signal.get_window('hann', 64)
    np.testing.assert_allclose((power.sum(-1) + mirrored) / 64, (weighted**2).sum(-1), rtol=1e-12)


def test_a_tone_is_loudest_in_the_band_around_its_frequency():
    edges = 1000 * np.exp(np.log(6.4) / 27 * np.arange(-15, 30))  # above 1 kHz the scale is logarithmic
    edges = edges[(edges >= 1000) & (edges <= 4000)]
    settings = {'bands': len(edges) - 2, 'window': 1024, 'hop': 512, 'low': edges[0], 'high': edges[-1], 'floor': 0.0}
    time = np.arange(2048) / 8000
    tones = np.stack([np.sin(2 * np.pi * hertz * time) for hertz in edges[1:-1]])
    log_mel = exact(spectrogram.log_mel, tones, 8000, **settings)
    for band, frames in enumerate(log_mel):
        assert (frames.argmax(-1) == band).all()


def test_mel_filters_are_those_of_librosa():
    banks = json.loads(LIBROSA.read_text())['banks']
    assert len(banks) == 3
    for bank in banks:
        filters = spectrogram.mel_filters(*bank['arguments'])
        np.testing.assert_allclose(filters.sum(0), bank['sums'], rtol=1e-6)
        np.testing.assert_allclose(filters[bank['peaks'], range(filters.shape[1])], bank['at_peaks'], rtol=1e-6)
        assert (filters > 0).sum() == bank['nonzero']


def test_log_mel_is_that_of_librosa():
    expected = json.loads(LIBROSA.read_text())['spectrogram']['log_mel']
    settings = {'bands': 16, 'window': 256, 'hop': 200, 'low': 20.0, 'high': None, 'floor': 1e-6}
    found = exact(spectrogram.log_mel, chirp(2000), 8000, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_silence_is_the_logarithm_of_the_floor():
    settings = {'bands': 4, 'window': 64, 'hop': 32, 'low': 0.0, 'high': None, 'floor': 1e-5}
    found = spectrogram.log_mel(jnp.zeros((1, 128)), 8000, **settings)
    np.testing.assert_allclose(found, np.full((1, 3, 4), np.log(1e-5)), rtol=1e-6)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match=r'window=256: longer than the signals, which have 255 samples'):
        spectrogram.num_frames(255, 256, 128)
    with pytest.raises(InputError, match=r'low < high <= 4000 Hz, half of the sample rate of 8000'):
        spectrogram.mel_filters(8000, 256, 32, 20.0, 4001.0)
    with pytest.raises(InputError, match=r'low < high'):
        spectrogram.mel_filters(8000, 256, 32, 500.0, 500.0)
    with pytest.raises(InputError, match=r'bands=128: band 0 \(20 to 56 Hz\) holds no multiple of 125 Hz; take fewer'):
        spectrogram.mel_filters(8000, 64, 128, 20.0, None)


def test_a_batch_on_several_devices_stays_there():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    compute = jax.jit(lambda signal: spectrogram.power_spectrogram(signal, 64, 32), in_shardings=divided)
    text = compute.lower(jax.ShapeDtypeStruct((8, 256), jnp.float32)).compile().as_text()
    assert 'all-gather' not in text
    assert 'f32[1,' in text  # one example a device
