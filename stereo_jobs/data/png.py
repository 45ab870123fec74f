"""PNG files: what their pixels depend on, apart from metadata, and the colour key, which Pillow compares otherwise."""

import io
import zlib

from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngImageFile

_BIT_DEPTH = 24  # where the header chunk has it
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LONGEST = 16 * 1024**2
"""Bytes of the longest EXIF or ICC profile that is unpacked; the largest profiles of printers have some MB."""
_RAW_EXIF = b"Raw profile type exif"
"""Name of the text in which files from before there was an EXIF chunk keep it."""


def without_metadata(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Take the metadata out of a PNG. Pillow refuses pictures whose texts are long, or damaged.

    Animations go, too: what is left is the picture that a program shows which knows none.

    Args:
        data: the file; it may be damaged.

    Returns:
        A PNG of the chunks that pixels depend on, and `exif` and `icc_profile` where it has them, as Pillow names them.
    """
    view, at = memoryview(data), len(_SIGNATURE)
    kept, told = [view[:at]], dict[str, bytes]()
    while at < len(data):
        length, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 12 + length
        if not kind[:1].islower() or kind == b"tRNS":  # a capital: no picture without it
            kept.append(view[at:end])
        elif kind in _READERS and zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big"):
            told = _READERS[kind](bytes(view[at + 8 : end - 4])) | told
        at = len(data) if kind == b"IEND" else end
    return b"".join(kept), told


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
    image = PngImageFile(io.BytesIO(without_metadata(data)[0]))
    image.tile = [type(tile)(tile[0], tile[1], tile[2], "RGB;16L") for tile in image.tile]
    return image


# --- Metadata that matters ---


def _exif(content: bytes) -> dict[str, bytes]:
    return {"exif": content}


def _profile(content: bytes) -> dict[str, bytes]:
    packed = content.partition(b"\0")[2][1:]  # behind its name and the method of compression
    unpacked = _unpacked(packed)
    return {"icc_profile": unpacked} if unpacked else {}


def _text(content: bytes) -> dict[str, bytes]:
    name, _, text = content.partition(b"\0")
    return _raw_exif(text) if name == _RAW_EXIF else {}


def _packed_text(content: bytes) -> dict[str, bytes]:
    name, _, packed = content.partition(b"\0")
    return _raw_exif(_unpacked(packed[1:])) if name == _RAW_EXIF else {}


def _raw_exif(text: bytes) -> dict[str, bytes]:
    """Read EXIF data from a text: lines with its kind and length, then its bytes in hexadecimal."""
    try:
        return {"exif": bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))}
    except ValueError:
        return {}


def _unpacked(packed: bytes) -> bytes:
    """Inflate at most `_LONGEST` bytes; nothing if there are more, or they are damaged."""
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(packed, _LONGEST)
    except zlib.error:
        return b""
    return content if inflate.eof else b""


_READERS = {b"eXIf": _exif, b"iCCP": _profile, b"tEXt": _text, b"zTXt": _packed_text}
