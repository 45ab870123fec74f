"""TIFF files whose samples Pillow can unpack but mistakes: it is told how they lie before it decodes them."""

import numpy as np
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    FILLORDER,
    OPEN_INFO,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    TiffImageFile,
)

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_INTERLEAVE = "channels in separate planes; save it with interleaved channels"
_NATIVE = {
    f"{samples}{order}{ending}": f"{samples}N{ending}"
    for samples, ending in (("F;32", "F"), ("F;64", "F"), ("I;16", "S"), ("I;32", "S"), ("I;32", ""))
    for order in ("", "B")
}
"""Pillow's names of samples in the order of the file, to those in the order of the machine."""

# Pillow unpacks these, but does not know that a TIFF may hold them. A version of it that does is left alone.
OPEN_INFO.setdefault((b"II", 1, (_FLOAT,), 1, (64,), ()), ("F", "F;64F"))
OPEN_INFO.setdefault((b"MM", 1, (_FLOAT,), 1, (64,), ()), ("F", "F;64BF"))
OPEN_INFO.setdefault((b"MM", 1, (_UNSIGNED,), 1, (32,), ()), ("I", "I;32B"))
OPEN_INFO.setdefault((b"II", 1, (_FLOAT,), 1, (16,), ()), ("I;16", "I;16"))  # halves, by `stored_dtype`
OPEN_INFO.setdefault((b"MM", 1, (_FLOAT,), 1, (16,), ()), ("I;16", "I;16B"))


def correct_unpacking(image: TiffImageFile) -> None:
    """Correct how Pillow is going to unpack a TIFF that it has opened but not decoded.

    libtiff, which unpacks what is compressed, gives samples in the order of the machine; Pillow would swap those of
    big-endian files once more. From planes that are not compressed, it would take 8 bits a sample, whatever they are.

    Raises:
        ValueError: planes that Pillow cannot put together.
    """
    planar = image.tag_v2.get(PLANAR_CONFIGURATION) == 2
    if planar and image.mode in ("LA", "La", "PA"):
        raise ValueError(_INTERLEAVE)
    tiles = []
    for tile in image.tile:
        codec, extents, offset, settings = tile
        if not isinstance(settings, tuple):  # a codec without any
            raise ValueError("unknown packing")
        packing, *rest = settings
        if codec == "libtiff":
            packing = _NATIVE.get(packing, packing)
        elif planar:
            packing = _plane(image, packing)
        tiles.append(type(tile)(codec, extents, offset, (packing, *rest)))
    image.tile = tiles


def stored_dtype(image: object) -> type[np.number] | None:
    """Return the type of the samples of a TIFF of one channel if Pillow takes them for another, else None."""
    if not isinstance(image, TiffImageFile):
        return None
    sign, bits = image.tag_v2.get(SAMPLEFORMAT, (_UNSIGNED,))[0], image.tag_v2.get(BITSPERSAMPLE, (1,))[0]
    known: dict[tuple[str, int, int], type[np.number]] = {
        ("L", _SIGNED, 8): np.int8,
        ("I", _UNSIGNED, 32): np.uint32,
        ("I;16", _FLOAT, 16): np.float16,
    }
    return known.get((image.mode, sign, bits))


def bit_depth(image: object) -> int:
    """Return the bits per sample of an opened TIFF, 0 for another file."""
    return int(image.tag_v2.get(BITSPERSAMPLE, (1,))[0]) if isinstance(image, TiffImageFile) else 0


def is_white_at_zero(image: object) -> bool:
    """Whether 0 is white in a TIFF of grey. Pillow inverts it at 8 bits only."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _plane(image: TiffImageFile, channel: str) -> str:
    """Return how one plane of a TIFF is packed, from Pillow's letter for its channel. Raises ValueError."""
    tags = image.tag_v2
    bits = tags.get(BITSPERSAMPLE, (1,))
    if tags.get(SAMPLESPERPIXEL, 1) == 1:  # one plane, so it lies as if there were no planes
        photometric, sign = tags.get(PHOTOMETRIC_INTERPRETATION, 0), tags.get(SAMPLEFORMAT, (_UNSIGNED,))[:1]
        _, packing = OPEN_INFO.get((tags.prefix, photometric, sign, tags.get(FILLORDER, 1), bits, ()), ("", channel))
        return packing
    wide = bits[0] == 16
    if channel == "a" or (wide and channel not in "RGBA"):  # alpha that has been multiplied in, ink, padding
        raise ValueError(_INTERLEAVE)
    return f"{channel};16{'B' if tags.prefix == b'MM' else 'L'}" if wide else channel
