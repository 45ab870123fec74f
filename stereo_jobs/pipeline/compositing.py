"""Composes right views at their own size from warped and diffused pixels, band by band."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.inputs import DecodedRow
from stereo_jobs.pipeline.left_view import stack
from stereo_jobs.pipeline.resizing import Letterbox
from stereo_jobs.pixels import Image, to_image, to_tensor
from stereo_jobs.stereo.bands import widened
from stereo_jobs.stereo.composite import composite, hole_depth, trusted_share, usual_share
from stereo_jobs.stereo.fill import background_beside
from stereo_jobs.stereo.image_warp import ImageWarp
from stereo_jobs.stereo.membrane import membrane

SURFACE_PX = 1.0
"""Disparity in image pixels by which a pixel may be nearer than a hole's edge and still count as its background."""
_HALO = 16
"""A band is composed with the rows around it that its holes may be continued from: this part of the width."""


def continued_at_working_size(
    sd: StableDiffusion,
    decoded: Sequence[DecodedRow],
    warps: Sequence[ImageWarp],
    images: Sequence[Image],
    *,
    rims: bool = False,
) -> Tensor:
    """Warp images, continue the background into their holes and bring them to the working size: B,3,h,w in [0, 1].

    Args:
        sd: says on which device.
        decoded: the rows of a batch.
        warps: the warp of each image; a batch is padded by the same warp again.
        images: H,W,3 uint8 each.
        rims: lay soft rims over the result; a composite lays them over the finished view instead.
    """
    made: list[Tensor] = []
    for i, (warp, image) in enumerate(zip(warps, images, strict=True)):
        again = i > 0 and warp is warps[i - 1] and image is images[i - 1]
        made.append(made[-1] if again else _continued_into(decoded[i].letterbox, warp, image, rims))
    return stack(sd, made)


def _continued_into(letterbox: Letterbox, warp: ImageWarp, image: Image, rims: bool) -> Tensor:
    def continued(rows: slice) -> Tensor:
        warped = warp.rows(rows)
        pixels = to_tensor(image[rows]).to(warp.disparity.device)
        view = warped.continued(pixels)
        return warped.with_rims(view, pixels) if rims else view

    return letterbox.into_from_bands(continued(rows) for rows in warp.bands())


def _membrane_into(letterbox: Letterbox, warp: ImageWarp, image: Image) -> tuple[Tensor, Tensor]:
    """Warp an image and continue its background as a membrane, at the working size: 1,3,h,w in [0, 1].

    What is seen is scaled alone, so that no hole's own pixel is mixed into its surroundings.

    Returns:
        The image, and 1,h,w bool, where it is seen.
    """
    device = warp.disparity.device
    share = letterbox.map_into(warp.masks.filled.float())[:, None]
    warped = (warp.rows(rows).seen(to_tensor(image[rows]).to(device)) for rows in warp.bands())
    pixels = letterbox.into_from_bands(warped) / share.clamp_min(0.5)
    moved = letterbox.into_from_bands(warp.rows(rows).moved[:, None] for rows in warp.bands()) / share.clamp_min(0.5)
    filled = share[:, 0] > 0.5
    beside = background_beside(filled, moved[:, 0], warp.sign, SURFACE_PX)
    return torch.where(filled[:, None], pixels, membrane(pixels, beside)).clamp(0, 1), filled


def composites(
    decoded: Sequence[DecodedRow],
    warps: Sequence[ImageWarp],
    *,
    lefts: Sequence[Image],
    diffused: Sequence[Image],
    latent_factor: int,
) -> list[Image]:
    """Compose each right view, without soft rims: warped pixels of the left one, diffused pixels in the holes.

    A membrane of the background is mixed in at the rims of holes, where the VAE does not return their colours, and
    where diffusion has drawn more than their surroundings hold.

    Args:
        decoded: the rows of the batch.
        warps: warps of the left images, one for each row that asks for a right view; the others pad the batch.
        lefts: the left images.
        diffused: the right views as decoded.
        latent_factor: width of a latent in pixels of the working size.
    """
    return [
        _composite(warp, lefts[i], _drawn(decoded[i].letterbox, warp, lefts[i], diffused[i], latent_factor))
        for i, warp in enumerate(warps)
    ]


def _drawn(letterbox: Letterbox, warp: ImageWarp, left: Image, diffused: Image, latent_factor: int) -> Image:
    """Mix the diffused pixels with a membrane of the background, where they cannot be trusted to show it."""
    continued, seen = _membrane_into(letterbox, warp, left)
    inside = letterbox.image_into(diffused).to(continued.device)
    share = hole_depth(seen, latent_factor)
    for weight in (trusted_share, usual_share):
        share = share * weight(continued, inside, seen, latent_factor)
    return letterbox.image_back(torch.lerp(continued, inside, share))


def _composite(warp: ImageWarp, left: Image, drawn: Image) -> Image:
    """Compose one right view. Each band is computed with the rows around it that its holes are continued from."""
    height, width = left.shape[:2]
    device = warp.disparity.device
    finished = np.empty_like(left)
    for rows in warp.bands():
        wide, own = widened(rows, max(1, width // _HALO), height)
        warped = warp.rows(wide)
        filled = warped.warp.filled
        composed = composite(
            warped.seen(to_tensor(left[wide]).to(device)),
            filled,
            to_tensor(drawn[wide]).to(device),
            background_beside(filled, warped.moved, warp.sign, SURFACE_PX),
        )
        finished[rows] = to_image(composed[..., own, :])
    return finished


def with_rims(view: Image, warp: ImageWarp, left: Image) -> Image:
    """Lay the soft rims of the objects of a left image over a finished right view, H,W,3 uint8 both."""
    if warp.rims is None:
        return view
    device, finished = warp.disparity.device, np.empty_like(view)
    for rows in warp.bands():
        parts = (to_tensor(image[rows]).to(device) for image in (view, left))
        finished[rows] = to_image(warp.rows(rows).with_rims(*parts))
    return finished
