"""ICC profiles of pictures: what their numbers look like, in the numbers of sRGB, which everything here means."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageCms

_SAME = 1
"""Largest difference of a profile's colours from those of sRGB, in steps of 8 bits, that comes from rounding."""
_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
"""Colour spaces of profiles that are followed, to Pillow's modes of the pixels they describe."""


@dataclass(frozen=True)
class ToSrgb:
    """The way from the colours of one profile to sRGB, by relative colorimetric intent.

    Attributes:
        mode: Pillow's mode of the pixels that it takes.
        transform: what Little CMS made of both profiles.
    """

    mode: str
    transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a picture, or a part of it, as an RGB image in sRGB, without its alpha."""
        return self.transform.apply(image.convert(self.mode))


def to_srgb(image: Image.Image) -> ToSrgb | None:
    """Return what converts a picture to sRGB; None where nothing is to be done.

    That is a picture without a profile, with one that is sRGB already, or with one that cannot be followed: it is
    damaged, or of another colour space than the picture.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(source.profile.xcolor_space.strip(), "")
        if not _describes(mode, image):
            return None
        made = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        found = ToSrgb(mode, made)
        return None if _is_srgb(found) else found
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _describes(mode: str, image: Image.Image) -> bool:
    """Return whether a profile for pixels of a mode is meant for this picture."""
    bands = image.getbands()
    if mode == "L" and bands[:3] == ("R", "G", "B"):  # grey with alpha in 16 bits, as Pillow opens it
        red, green, blue, *_ = image.split()
        return all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))
    if image.mode in ("P", "PA", "YCbCr"):
        return mode == "RGB"
    return mode == {"R": "RGB", "C": "CMYK", "L": "L", "I": "L", "1": "L"}.get(bands[0])


def _is_srgb(found: ToSrgb) -> bool:
    """Return whether colours stay the same, judged by some from the whole range."""
    if found.mode == "CMYK":
        return False
    levels = np.arange(0, 256, 1 if found.mode == "L" else 17, dtype=np.uint8)
    one = levels[None] if found.mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    converted = np.asarray(found(Image.fromarray(one)), np.int16)
    return bool(np.abs(converted - one.reshape(1, len(one[0]), -1)).max() <= _SAME)
