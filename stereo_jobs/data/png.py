"""Colour keys of PNG files: the one colour that is transparent, compared in other units than Pillow does."""

import io

from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngImageFile

_BIT_DEPTH = 24  # where the header chunk has it


def bit_depth(data: bytes) -> int:
    """Return the bits per sample of a PNG, 0 for another file."""
    return data[_BIT_DEPTH] if data.startswith(b"\x89PNG") and len(data) > _BIT_DEPTH else 0


def with_colour_key(image: Image.Image, data: bytes) -> Image.Image:
    """Correct the colour key of a PNG that Pillow has opened; a key of 16-bit colours becomes an alpha channel.

    A key counts in the units of the file. Pillow compares it with pixels that it has stretched from 2 or 4 bits to 8,
    or of which it has dropped the lower 8 of 16 bits.

    Args:
        image: opened from `data`; changed in place, and decoded if it has 16-bit colours with a key.
        data: the file.

    Returns:
        The same image, so that the caller need not hold it while a copy is made.
    """
    key, depth = image.info.get("transparency"), bit_depth(data)
    if isinstance(key, int) and image.mode == "L" and depth in (2, 4):
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif isinstance(key, tuple) and image.mode == "RGB" and depth == 16:
        upper = _differing(image, [value >> 8 for value in key])
        lower = _differing(_lower_bytes(data), [value & 255 for value in key])
        del image.info["transparency"]
        image.putalpha(ImageChops.lighter(upper, lower))
    return image


def _differing(image: Image.Image, colour: list[int]) -> Image.Image:
    """Return an image of one channel: 0 where an RGB image has a colour, 255 elsewhere."""
    differing = Image.new("L", image.size, 0)
    for channel, value in enumerate(colour):
        other = image.getchannel(channel).point([255 * (found != value) for found in range(256)])
        differing = ImageChops.lighter(differing, other)
    return differing


def _lower_bytes(data: bytes) -> Image.Image:
    """Open a PNG of 16-bit colours so that Pillow decodes the lower 8 bits of each sample, not the upper."""
    image = PngImageFile(io.BytesIO(data))
    image.tile = [type(tile)(tile[0], tile[1], tile[2], "RGB;16L") for tile in image.tile]
    return image
