"""Makes mel.json beside this file: filter banks and a log-mel spectrogram by librosa.

    pip install librosa==0.11.0
    python -m tests.ops.references.make_mel

A filter bank is stored as the sums of its bands and its weights at the frequencies where each is largest; the
spectrogram whole. The signal is a formula: chirp in the test.
"""

import json
import pathlib

import librosa
import numpy as np

from tests.ops.test_spectrogram import chirp

BANKS = [(8000, 256, 32, 20.0, 4000.0), (16000, 400, 40, 0.0, 8000.0), (22050, 1024, 64, 50.0, 11025.0)]


def bank(rate: int, window: int, bands: int, low: float, high: float) -> dict:
    filters = librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands, fmin=low, fmax=high, dtype=np.float64)
    peaks = filters.argmax(1)
    return {
        'arguments': [rate, window, bands, low, high],
        'sums': filters.sum(1).tolist(),
        'peaks': peaks.tolist(),
        'at_peaks': filters[np.arange(bands), peaks].tolist(),
        'nonzero': int((filters > 0).sum()),
    }


def spectrogram() -> dict:
    power = librosa.feature.melspectrogram(
        y=chirp(2000), sr=8000, n_fft=256, hop_length=200, n_mels=16, fmin=20, fmax=4000, center=False, dtype=np.float64
    )
    return {'samples': 2000, 'log_mel': np.log(power.T + 1e-6).tolist()}


if __name__ == '__main__':
    fixture = {'librosa': librosa.__version__, 'banks': [bank(*case) for case in BANKS], 'spectrogram': spectrogram()}
    path = pathlib.Path(__file__).with_name('mel.json')
    rounded = json.loads(json.dumps(fixture), parse_float=lambda text: float(f'{float(text):.12g}'))
    path.write_text(json.dumps(rounded) + '\n')
