"""The part of a picture file that is wanted, at the wanted size.

A JPEG file is decoded no further down than the part reaches, and at a half, quarter or eighth of its size where the
part is that much larger than what is asked for. Other files are decoded whole.
"""

import io
import math
from typing import NamedTuple

import numpy as np

from cnn.data import decoding
from cnn.data.crops import Choose, Window, resample


def decode(data: bytes, size: tuple[int, int], choose: Choose) -> np.ndarray:
    """The chosen window of a picture file, upright, resized: uint8 [*size, 1 or 3]. Raises Unreadable."""
    header = read_header(data)
    if header:
        height, width = (header.height, header.width)[:: -1 if header.orientation >= 5 else 1]
        window = choose(height, width)
        part = _decode_jpeg(data, header, _as_stored(window, height, width, header.orientation), size)
        if part is not None:
            return part
        return resample(decoding.decode_picture(data), window, size)
    whole = decoding.decode_picture(data)
    return resample(whole, choose(*whole.shape[:2]), size)


class Header(NamedTuple):
    """Of a JPEG file that can be decoded in part."""

    height: int  # as stored
    width: int
    components: int
    rows: int  # of pixels that are coded together
    place: int  # of the two bytes that tell the height
    orientation: int  # EXIF's, 1 to 8


def read_header(data: bytes) -> Header | None:
    """Of a grey or colour JPEG file of 8 bits, sequential or progressive, with its end; None for any other file."""
    if data[:2] != b'\xff\xd8':
        return None
    place, described = 2, False
    try:
        while data[place] == 0xFF:
            marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], 'big')
            if marker in (0xC0, 0xC1, 0xC2):  # SOF0 to 2 of ITU-T T.81
                break
            if marker == 0xFF:  # fill
                place += 1
                continue
            if marker == 0xDA:  # SOS
                return None
            described = described or marker == 0xE1
            place += 2 + length
        else:
            return None
        precision, components = data[place + 4], data[place + 9]
        height, width = (int.from_bytes(data[start : start + 2], 'big') for start in (place + 5, place + 7))
        rows = 8 * max(data[place + 11 + 3 * component] & 15 for component in range(components))
    except (IndexError, ValueError):
        return None
    complete = data.rfind(b'\xff\xd9', place) > 0
    if precision != 8 or components not in (1, 3) or not complete or not 0 < height * width <= decoding.LARGEST:
        return None
    return Header(height, width, components, rows, place + 5, _orientation(data) if described else 1)


def _orientation(data: bytes) -> int:
    with decoding.picture(io.BytesIO(data)) as image:
        return decoding.exif_orientation(image)


def _as_stored(window: Window, height: int, width: int, orientation: int) -> Window:
    """Where a window of the upright picture lies in the stored one."""
    top, left, tall, wide, inside = window
    if orientation in (3, 4, 7, 8):
        top = height - top - tall
    if orientation in (2, 3, 6, 7):
        left = width - left - wide
    return Window(left, top, wide, tall, inside) if orientation >= 5 else Window(top, left, tall, wide, inside)


def _decode_jpeg(data: bytes, header: Header, window: Window, size: tuple[int, int]) -> np.ndarray | None:
    """The upright, resized window; None where the fast decoder refuses the file."""
    import simplejpeg

    turned = header.orientation >= 5
    size = size[::-1] if turned else size
    shrink = max(
        by for by in (1, 2, 4, 8) if by == 1 or (window.height >= by * size[0] and window.width >= by * size[1])
    )
    # A lower height in the header ends the decoding early; a pixel more, since chroma is interpolated between two rows.
    reach = 0 if window.inside else window.height / size[0] + 1
    needed = math.ceil(window.top + window.height + reach) + shrink
    height = min(header.height, -(-needed // header.rows) * header.rows)
    part = bytearray(data)
    part[header.place : header.place + 2] = height.to_bytes(2, 'big')
    shape = tuple(-(-side // shrink) for side in (height, header.width))
    try:
        pixels = simplejpeg.decode_jpeg(
            part,
            'GRAY' if header.components == 1 else 'RGB',
            min_height=shape[0],
            min_width=shape[1],
            min_factor=shrink,
            strict=False,
        )
    except ValueError:
        return None
    if pixels.shape[:2] != shape:
        return None
    top, left, tall, wide = (value / shrink for value in window[:4])
    scaled = Window(top, left, tall, wide, window.inside)
    return decoding.upright(resample(pixels, scaled, size), header.orientation)
