import io
import struct
import wave
import zlib

import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image, ImageOps

from cnn.data import decoding
from cnn.data.decoding import Unreadable

GENERATOR = np.random.default_rng(0)
COLOUR = GENERATOR.integers(0, 256, (5, 7, 3), np.uint8)
GREY = COLOUR[..., 0]


def encoded(image, kind='png', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def over_white(colour, alpha):
    return np.rint(colour * (alpha / 255.0) + 255 * (1 - alpha / 255.0))


def huge_png(side):
    """The header of a picture of side x side grey pixels, and none of them."""
    body = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
    end = b'IEND'
    chunks = [struct.pack('>I', len(part) - 4) + part + struct.pack('>I', zlib.crc32(part)) for part in (body, end)]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def reason(decode, data):
    with pytest.raises(Unreadable) as caught:
        decode(data)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_colour_and_grey_keep_their_pixels():
    for kind in ('png', 'bmp', 'tiff'):
        np.testing.assert_array_equal(decoding.decode_picture(encoded(Image.fromarray(COLOUR), kind)), COLOUR)
        np.testing.assert_array_equal(decoding.decode_picture(encoded(Image.fromarray(GREY), kind)), GREY[..., None])
    jpeg = encoded(Image.fromarray(COLOUR), 'jpeg')
    np.testing.assert_array_equal(decoding.decode_picture(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))


def test_bits_become_black_and_white():
    bits = GREY > 100
    np.testing.assert_array_equal(decoding.decode_picture(encoded(Image.fromarray(bits)))[..., 0], bits * 255)


def test_sixteen_bits_keep_their_high_byte():
    deep = GENERATOR.integers(0, 2**16, (5, 7), np.uint16)
    decoded = decoding.decode_picture(encoded(Image.fromarray(deep)))
    np.testing.assert_array_equal(decoded, (deep // 256)[..., None])
    assert decoded.dtype == np.uint8
    wide = Image.fromarray(deep.astype(np.int32) * 3)
    assert 'more than 16 bits' in reason(decoding.decode_picture, encoded(wide, 'tiff'))
    numbers = Image.fromarray(deep.astype(np.float32))
    assert 'floating-point' in reason(decoding.decode_picture, encoded(numbers, 'tiff'))


def test_cmyk_becomes_colour():
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:, 4:, 0] = 255  # cyan beside white
    decoded = decoding.decode_picture(encoded(Image.fromarray(inks, 'CMYK'), 'jpeg', quality=100)).astype(int)
    np.testing.assert_allclose(decoded[:, :4], 255, atol=3)
    np.testing.assert_allclose(decoded[:, 4:], np.broadcast_to([0, 255, 255], (8, 4, 3)), atol=3)


def test_palettes_become_their_colours():
    indices = Image.fromarray(GREY % 3)
    colours = [[10, 20, 30], [200, 100, 0], [5, 250, 128]]
    indices.putpalette([value for colour in colours for value in colour])
    np.testing.assert_array_equal(decoding.decode_picture(encoded(indices)), np.array(colours)[GREY % 3])
    transparent = decoding.decode_picture(encoded(indices, transparency=1))
    expected = np.array([colours[0], [255, 255, 255], colours[2]])
    np.testing.assert_array_equal(transparent, expected[GREY % 3])


def test_transparency_lies_over_white():
    alpha = GENERATOR.integers(0, 256, (5, 7), np.uint8)
    decoded = decoding.decode_picture(encoded(Image.fromarray(np.dstack([COLOUR, alpha]), 'RGBA')))
    np.testing.assert_allclose(decoded, over_white(COLOUR, alpha[..., None]), atol=1)
    grey = decoding.decode_picture(encoded(Image.fromarray(np.dstack([GREY, alpha]), 'LA')))
    assert grey.shape == (5, 7, 1)
    np.testing.assert_allclose(grey[..., 0], over_white(GREY, alpha), atol=1)
    key = tuple(COLOUR[2, 3].tolist())  # one colour of an opaque picture counts as transparent
    keyed = decoding.decode_picture(encoded(Image.fromarray(COLOUR), transparency=key))
    assert keyed[2, 3].tolist() == [255, 255, 255]
    assert keyed[0, 0].tolist() == COLOUR[0, 0].tolist()


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['jpeg', 'png'])
def test_pictures_are_turned_upright(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(COLOUR), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decoding.decode_picture(data), expected)
    assert decoding.picture_header(io.BytesIO(data)).shape == expected.shape


def test_damaged_exif_does_no_harm():
    exif = Image.Exif()
    exif[0x0112] = 99
    picture = Image.fromarray(GREY)
    for data in (encoded(picture, exif=exif), encoded(picture, exif=b'Exif\0\0II*\0\xff\xff\xff\xff')):
        np.testing.assert_array_equal(decoding.decode_picture(data)[..., 0], GREY)


def test_what_is_no_picture_is_unreadable():
    assert reason(decoding.decode_picture, b'') == 'is empty'
    assert reason(decoding.decode_picture, b'hello') == 'is no picture in a known format'
    large = Image.fromarray(GENERATOR.integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ('png', 'jpeg'):
        data = encoded(large, kind)
        assert 'truncated' in reason(decoding.decode_picture, data[: len(data) // 2])
    png = bytearray(encoded(large))
    png[60] ^= 255  # in the compressed pixels
    assert reason(decoding.decode_picture, bytes(png))


def test_absurdly_large_pictures_are_refused_before_they_fill_the_memory():
    for side in (100_000, 13_380):
        data = huge_png(side)
        assert f'({side * side} pixels) exceeds limit of {decoding.LARGEST}' in reason(decoding.decode_picture, data)
        with pytest.raises(Unreadable):
            decoding.picture_header(io.BytesIO(data))


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_large_pictures_are_read():
    assert decoding.picture_header(io.BytesIO(huge_png(13_377))).shape == (13_377, 13_377, 1)


def test_headers_tell_what_decoding_gives():
    palette = Image.fromarray(GREY).convert('P')
    pictures = [Image.fromarray(COLOUR), Image.fromarray(GREY), Image.fromarray(GREY > 9), palette]
    pictures += [Image.fromarray(np.dstack([GREY, GREY]), 'LA'), Image.fromarray(GREY.astype(np.uint16))]
    for picture in pictures:
        data = encoded(picture)
        assert decoding.picture_header(io.BytesIO(data)).shape == decoding.decode_picture(data).shape


def test_masks_keep_their_classes():
    palette = Image.fromarray(GREY % 5)
    palette.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9, 1, 2, 3, 7, 7, 7])
    np.testing.assert_array_equal(decoding.decode_mask(encoded(palette)), GREY % 5)
    np.testing.assert_array_equal(decoding.decode_mask(encoded(Image.fromarray(GREY))), GREY)
    np.testing.assert_array_equal(decoding.decode_mask(encoded(Image.fromarray(GREY > 9))), GREY > 9)
    assert 'mode RGB' in reason(decoding.decode_mask, encoded(Image.fromarray(COLOUR)))
    whole = encoded(Image.fromarray(GENERATOR.integers(0, 256, (64, 64), np.uint8)))
    assert 'truncated' in reason(decoding.decode_mask, whole[: len(whole) // 2])


def wav(samples, rate=8000):
    buffer = io.BytesIO()
    scipy.io.wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def pcm(samples, bits, channels=1, rate=8000):
    """A WAV file by the standard library, of integers of that many bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, 'wb') as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        numbers = (int(number) + (128 if bits == 8 else 0) for number in np.ravel(samples))
        file.writeframes(b''.join(number.to_bytes(bits // 8, 'little', signed=bits > 8) for number in numbers))
    return buffer.getvalue()


@pytest.mark.parametrize('bits', [8, 16, 24, 32])
def test_pcm_is_scaled_to_one(bits):
    most = 2 ** (bits - 1)
    numbers = [-most, most - 1, 0, 1, -1, most // 2]
    samples, rate = decoding.decode_sound(pcm(numbers, bits))
    assert (rate, samples.dtype) == (8000, np.float32)
    np.testing.assert_array_equal(samples, (np.array(numbers, float) / most).astype(np.float32))


@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_recordings_are_as_scipy_reads_them(dtype):
    floats = GENERATOR.uniform(-1, 1, (50, 2))
    samples = floats if dtype in (np.float32, np.float64) else floats * 100 + (128 if dtype is np.uint8 else 0)
    data = wav(samples.astype(dtype), 11_025)
    rate, expected = scipy.io.wavfile.read(io.BytesIO(data))
    if dtype is np.uint8:
        expected = expected - 128.0
    scale = {np.uint8: 2**7, np.int16: 2**15, np.int32: 2**31}.get(dtype, 1)
    decoded, found = decoding.decode_sound(data)
    assert found == rate
    np.testing.assert_allclose(decoded, expected.mean(1) / scale, atol=1e-7)
    assert decoding.sound_header(io.BytesIO(data)) == decoding.Header('signal', (50, 1), 11_025)


def test_other_chunks_are_passed_over_and_extended_formats_understood():
    plain = pcm([1, -2, 3], 16)
    odd = b'LIST' + struct.pack('<I', 3) + b'abc\0'  # padded to an even length
    data = plain[:12] + odd + plain[12:]
    expected = decoding.decode_sound(plain)[0]
    np.testing.assert_array_equal(decoding.decode_sound(data)[0], expected)
    form = struct.pack('<HHIIHH', 0xFFFE, 1, 8000, 16000, 2, 16) + struct.pack('<HHI', 22, 16, 4) + b'\1\0' + bytes(14)
    extended = plain[:12] + b'fmt ' + struct.pack('<I', len(form)) + form + plain[36:]
    np.testing.assert_array_equal(decoding.decode_sound(extended)[0], expected)
    piped = plain[:40] + b'\xff\xff\xff\xff' + plain[44:]  # written before its length was known
    np.testing.assert_array_equal(decoding.decode_sound(piped)[0], expected)


def test_what_is_no_recording_is_unreadable():
    data = pcm(range(100), 16)
    assert reason(decoding.decode_sound, b'') == 'is empty'
    assert reason(decoding.decode_sound, b'hello, hello') == 'is no WAV file'
    assert reason(decoding.decode_sound, data[:-5]) == 'is truncated: 195 of 200 bytes of samples are there'
    assert (
        reason(decoding.decode_sound, data[:40] + b'\x63' + data[41:]) == 'its 99 bytes of samples are no multiple of 2'
    )
    assert reason(decoding.decode_sound, data[:40]) == 'is truncated: it has no samples'
    assert reason(decoding.decode_sound, data[:25]) == 'is truncated'
    assert reason(decoding.decode_sound, pcm([], 16)) == 'holds no samples'
    assert reason(decoding.decode_sound, data[:12] + data[36:]) == 'does not tell its format before its samples'
    coded = data[:20] + struct.pack('<H', 17) + data[22:]
    assert 'format 17, 16 bits' in reason(decoding.decode_sound, coded)
    silent = data[:22] + struct.pack('<H', 0) + data[24:]
    assert '0 channels' in reason(decoding.decode_sound, silent)
    assert 'not finite' in reason(decoding.decode_sound, wav(np.array([0, np.nan], np.float32)))


def test_resampling_keeps_a_tone():
    rate, wanted, tone = 8000, 11_025, 440
    old, new = (np.arange(frequency) / frequency for frequency in (rate, wanted))
    signal = np.sin(2 * np.pi * tone * old)[:, None].astype(np.float32)
    resampled = decoding.resample(signal, rate, wanted)
    assert (resampled.shape, resampled.dtype) == ((wanted, 1), np.float32)
    middle = slice(500, -500)
    np.testing.assert_allclose(resampled[middle, 0], np.sin(2 * np.pi * tone * new)[middle], atol=2e-3)
    assert decoding.resample(signal, rate, rate) is signal
    assert len(decoding.resample(signal[:7], 8000, 3000)) == 3  # ceil(7 * 3 / 8)


def test_lengths_are_fitted():
    signal = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(decoding.fit_length(signal, 2), signal[:2])
    np.testing.assert_array_equal(decoding.fit_length(signal, 5), [*signal.tolist(), [0, 0], [0, 0]])
    assert decoding.fit_length(signal, 5).dtype == np.float32


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('array', 'field', 'shape'),
    [
        (np.zeros((4, 6), np.uint8), 'image', (4, 6, 1)),
        (np.zeros((4, 6, 3), np.uint8), 'image', (4, 6, 3)),
        (np.zeros((2, 4, 6, 3), np.uint8), 'video', (2, 4, 6, 3)),
        (np.zeros(9), 'signal', (9, 1)),
        (np.zeros((9, 2), np.float16), 'signal', (9, 2)),
    ],
)
def test_arrays_are_what_their_shape_says(array, field, shape):
    header = decoding.array_header(io.BytesIO(npy(array)))
    assert (header.field, header.shape) == (field, shape)
    decoded = decoding.decode_array(npy(array))
    assert decoded.shape == shape
    assert decoded.dtype == (np.float32 if field == 'signal' else np.uint8)


def test_other_arrays_are_unreadable():
    for array in (np.zeros((4, 6, 4), np.uint8), np.zeros((2, 3, 4)), np.zeros(3, np.int32), np.zeros((), np.uint8)):
        assert f'{array.dtype} {list(array.shape)} is no image' in reason(decoding.decode_array, npy(array))
    assert 'Python objects' in reason(decoding.decode_array, npy(np.array([{}, 1])))
    assert reason(decoding.decode_array, b'') == 'is empty'
    assert reason(decoding.decode_array, b'hello')
    assert reason(decoding.decode_array, npy(np.zeros(100))[:-9])
    assert 'not finite' in reason(decoding.decode_array, npy(np.array([1, np.inf])))
