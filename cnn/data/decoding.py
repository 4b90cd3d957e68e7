"""Bytes of files -> arrays: pictures by Pillow, WAV recordings, NumPy arrays; or `Unreadable`."""

import dataclasses
import io
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

LARGEST = 178_956_970  # pixels; Pillow refuses larger pictures as decompression bombs
_GREY = ('1', 'L', 'LA', 'La', 'I', 'I;16', 'I;16B', 'I;16L', 'I;16N')  # modes of Pillow
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # wFormatTag of RIFF
_TO_THE_END = 0xFFFFFFFF  # the size of a chunk that was written to a pipe


class Unreadable(Exception):
    """A file that holds no example; sources put its path before the reason: 'PATH: reason'."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of its array before it is decoded."""

    field: str  # image, signal, video
    shape: tuple[int, ...]  # of the decoded array; a recording's is (samples, 1)
    rate: int = 0  # Hz, of recordings


def picture_header(file: BinaryIO) -> Header:
    """The size that `decode_picture` gives, from the first bytes. Raises Unreadable."""
    with picture(file) as image:
        width, height = image.size if exif_orientation(image) < 5 else image.size[::-1]
        return Header('image', (height, width, 1 if image.mode in _GREY else 3))


def decode_picture(data: bytes) -> np.ndarray:
    """A picture file as uint8 [H, W, 1 or 3], upright, whatever its mode.

    Turned as its EXIF orientation says; CMYK and palettes become RGB, 16 bits keep their high byte, transparency is
    laid over white; grey stays one channel.

    Raises:
      Unreadable: empty, truncated or corrupt data, floating-point pixels, more than LARGEST pixels.
    """
    with picture(io.BytesIO(data)) as image:
        orientation = exif_orientation(image)
        try:
            array = np.asarray(_opaque(image))
        except Exception as error:  # Pillow's readers raise what their parsing runs into
            raise Unreadable(_reason(error)) from error
    return upright(array if array.ndim == 3 else array[..., None], orientation)


def picture(file: BinaryIO) -> Any:
    """Pillow's image of a file, its pixels not decoded yet. Raises Unreadable."""
    from PIL import Image

    try:
        image = Image.open(file)
    except Image.UnidentifiedImageError:
        size = file.seek(0, io.SEEK_END)
        raise Unreadable('is no picture in a known format' if size else 'is empty') from None
    except Exception as error:
        raise Unreadable(_reason(error)) from error
    return image


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


def exif_orientation(image: Any) -> int:
    """How a picture is stored (1 to 8: Exif 2.32, tag 274); 1, upright, where it does not tell."""
    from PIL import Image

    try:  # the PNG reader's own getexif would decode the pixels, to look behind them
        orientation = Image.Image.getexif(image).get(0x0112, 1)
    except Exception:  # the picture does not suffer from damaged EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def _opaque(image: Any) -> Any:
    """In mode L or RGB; loads the pixels."""
    from PIL import Image

    if image.mode in ('L', 'RGB') and 'transparency' not in image.info:
        return image
    if image.mode == 'F':
        raise Unreadable('its pixels are floating-point numbers of an unknown range')
    if image.mode.startswith('I'):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise Unreadable('its pixels have more than 16 bits')
        return Image.fromarray((deep >> 8).astype(np.uint8))
    opaque = 'L' if image.mode in _GREY else 'RGB'
    if 'transparency' not in image.info and image.mode not in ('LA', 'La', 'PA', 'RGBA', 'RGBa'):
        return image.convert(opaque)
    if image.mode in ('La', 'RGBa'):  # colours multiplied by alpha already
        image = image.convert({'La': 'LA', 'RGBa': 'RGBA'}[image.mode])
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(white, image).convert(opaque)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation (1 to 8: Exif 2.32, tag 274)."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def decode_mask(data: bytes) -> np.ndarray:
    """A picture of classes as uint8 [H, W]: grey values or palette indices. Raises Unreadable."""
    with picture(io.BytesIO(data)) as image:
        if image.mode not in ('1', 'L', 'P'):
            raise Unreadable(f'a mask has one class, 0 to 255, for each pixel, and this has mode {image.mode}')
        try:
            return np.array(image, np.uint8)
        except Exception as error:
            raise Unreadable(_reason(error)) from error


def sound_header(file: BinaryIO) -> Header:
    """Samples and rate of a WAV file, without its samples. Raises Unreadable."""
    _, bits, channels, rate, size = _sound(file)
    return Header('signal', (size // (channels * bits // 8), 1), rate)


def decode_sound(data: bytes) -> tuple[np.ndarray, int]:
    """A WAV file as float32 [T] and its rate in Hz: PCM of 8, 16, 24 or 32 bits in -1..1, or float; channels averaged.

    Raises:
      Unreadable: empty, truncated or corrupt data, another coding.
    """
    file = io.BytesIO(data)
    kind, bits, channels, rate, size = _sound(file)
    raw = file.read(size)
    if kind == _FLOAT:
        samples = np.frombuffer(raw, f'<f{bits // 8}')
        if not np.isfinite(samples).all():
            raise Unreadable('holds samples that are not finite')
    elif bits == 8:
        samples = (np.frombuffer(raw, np.uint8) - 128.0) / 128
    else:  # as the high bytes of 32 bits
        wide = np.zeros((len(raw) // (bits // 8), 4), np.uint8)
        wide[:, 4 - bits // 8 :] = np.frombuffer(raw, np.uint8).reshape(len(wide), -1)
        samples = wide.view('<i4')[:, 0] / 2**31
    return samples.reshape(-1, channels).mean(1, dtype=np.float64).astype(np.float32), rate


def _sound(file: BinaryIO) -> tuple[int, int, int, int, int]:
    """Format, bits, channels, rate and bytes of samples; `file` stands where they begin then."""
    start = file.read(12)
    if not start:
        raise Unreadable('is empty')
    if start[:4] != b'RIFF' or start[8:] != b'WAVE':
        raise Unreadable('is no WAV file')
    form = None
    for name, size, left in _chunks(file):
        if name == b'fmt ':
            content = file.read(size)
            if len(content) < 16:
                raise Unreadable('is truncated')
            kind, channels, rate, _, _, bits = struct.unpack('<HHIIHH', content[:16])
            if kind == _EXTENSIBLE and len(content) >= 26:
                (kind,) = struct.unpack('<H', content[24:26])
            if (kind, bits) not in [*((_PCM, bits) for bits in (8, 16, 24, 32)), (_FLOAT, 32), (_FLOAT, 64)]:
                raise Unreadable(f'its coding (format {kind}, {bits} bits) is not PCM of 8, 16, 24 or 32 bits or float')
            if not channels or not rate:
                raise Unreadable(f'has {channels} channels and {rate} samples a second')
            form = kind, bits, channels, rate
        elif name == b'data':
            if form is None:
                raise Unreadable('does not tell its format before its samples')
            frame = form[2] * form[1] // 8
            size = left // frame * frame if size == _TO_THE_END else size
            if size > left:
                raise Unreadable(f'is truncated: {left} of {size} bytes of samples are there')
            if size % frame:
                raise Unreadable(f'its {size} bytes of samples are no multiple of {frame}')
            if not size:
                raise Unreadable('holds no samples')
            return *form, size
    raise Unreadable('is truncated: it has no samples')


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, size and bytes left in the file of each chunk of RIFF, where its content begins."""
    place = file.tell()
    end = file.seek(0, io.SEEK_END)
    while place + 8 <= end:
        file.seek(place)
        name, size = struct.unpack('<4sI', file.read(8))
        yield name, size, end - place - 8
        place += 8 + size + size % 2


def fit_length(signal: np.ndarray, length: int) -> np.ndarray:
    """[T, ...] as [length, ...]: the first samples, with zeros after the last."""
    fitted = np.zeros((length, *signal.shape[1:]), signal.dtype)
    fitted[: len(signal)] = signal[:length]
    return fitted


def resample(signal: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """[T, C] float32 at `rate` Hz as ceil(T * wanted / rate) samples at `wanted` Hz, by SciPy's polyphase filter."""
    if rate == wanted:
        return signal
    import scipy.signal

    common = np.gcd(rate, wanted)
    return scipy.signal.resample_poly(signal, wanted // common, rate // common).astype(np.float32)


def array_header(file: BinaryIO) -> Header:
    """Field and shape of what `decode_array` gives, from the first bytes. Raises Unreadable."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # the header is parsed as Python
        raise Unreadable(_reason(error) if file.seek(0, io.SEEK_END) else 'is empty') from error
    if dtype.hasobject:
        raise Unreadable('holds Python objects, which are not loaded; save numbers')
    return example_header(shape, dtype)


def example_header(shape: tuple[int, ...], dtype: np.dtype) -> Header:
    """What one example is of that shape, with or without an axis of channels. Raises Unreadable where it is nothing."""
    kind, rank, channels = dtype.kind if dtype.kind == 'f' else dtype.name, len(shape), shape[-1:]
    if kind == 'uint8' and rank in (2, 3, 4) and (channels in ((1,), (3,)) or rank == 2):
        return Header('video' if rank == 4 else 'image', shape if rank > 2 else (*shape, 1))
    if kind == 'f' and rank in (1, 2):
        return Header('signal', shape if rank == 2 else (*shape, 1))
    raise Unreadable(
        f'{dtype.name} {list(shape)} is no image (uint8 [H, W], [H, W, 1 or 3]), video (uint8 [T, H, W, 1 or 3]) '
        'or signal (float [T], [T, C])'
    )


def decode_array(data: bytes) -> np.ndarray:
    """A .npy file as an image or video, uint8 [..., H, W, C], or a signal, float32 [T, C]; never Python objects.

    Raises:
      Unreadable: empty, truncated or corrupt data, numbers that are not finite, another shape or type.
    """
    header = array_header(io.BytesIO(data))
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise Unreadable(_reason(error)) from error
    if not np.isfinite(array).all():
        raise Unreadable('holds numbers that are not finite')
    return array.reshape(header.shape).astype(np.float32 if header.field == 'signal' else np.uint8)
