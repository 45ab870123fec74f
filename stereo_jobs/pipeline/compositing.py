"""Composes right views at their own size from warped and diffused pixels, band by band."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.inputs import DecodedRow
from stereo_jobs.pipeline.left_view import stack
from stereo_jobs.pipeline.resizing import Letterbox
from stereo_jobs.pixels import Image, to_image, to_tensor
from stereo_jobs.stereo.bands import widened
from stereo_jobs.stereo.composite import HALO, composite, trusted_share
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.fill import extend_background, smooth_across_rows
from stereo_jobs.stereo.image_warp import ImageWarp

REACH_PX = 12.0
"""Pixels between a hole's pixel and its background over which the composite's colour correction fades out."""
COLUMNS_PER_ROW = 256
"""Columns of the image for which a plain hole is smoothed across one more row above and below, and one at least."""


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
        pixels = warped.continued(to_tensor(image[rows]).to(warp.disparity.device))
        return warped.with_rims(pixels) if rims else pixels

    return letterbox.into_from_bands(continued(rows) for rows in warp.bands())


def composites(
    sd: StableDiffusion,
    decoded: Sequence[DecodedRow],
    warps: Sequence[ImageWarp],
    *,
    lefts: Sequence[Image],
    given: Tensor,
    diffused: Sequence[Image],
    method: MethodConfig,
    encoded: Tensor | None = None,
) -> list[Image]:
    """Compose each right view: warped pixels of the left one, diffused pixels in the holes.

    Args:
        sd: its VAE decoded `diffused`.
        decoded: the rows of the batch.
        warps: warps of the left images, one for each row that asks for a right view; the others pad the batch.
        lefts: the left images.
        given: B,3,h,w, what `continued_at_working_size` makes of them.
        diffused: the right views as decoded.
        method: says how holes are finished.
        encoded: latents of `given`; None: they are computed.
    """
    returned = sd.decode(sd.encode(given) if encoded is None else encoded).nan_to_num(0.0)
    shares = trusted_share(given, returned, method.trusted_loss)
    return [
        _composite(
            warp,
            lefts[i],
            diffused[i],
            decoded[i].letterbox.back(returned[i : i + 1]).to(warp.disparity.device),
            grain=method.grain,
            share=shares[i : i + 1],
        )
        for i, warp in enumerate(warps)
    ]


def _composite(
    warp: ImageWarp, left: Image, diffused: Image, returned: Tensor, *, grain: float, share: Tensor
) -> Image:
    """Compose one right view. Each band is computed with the rows around it that its pixels depend on."""
    height, width = left.shape[:2]
    trusted = bool((share == 1).all())
    reach = 0 if trusted else max(1, width // COLUMNS_PER_ROW)
    device = warp.disparity.device
    finished = np.empty_like(left)
    for rows in warp.bands():
        wide, own = widened(rows, max(HALO, reach), height)
        warped = warp.rows(wide)
        pixels = warped.continued(to_tensor(left[wide]).to(device))
        composed = composite(
            pixels,
            warped.warp.filled,
            to_tensor(diffused[wide]).to(device),
            warped.columns,
            reach_px=REACH_PX,
            returned=returned[..., wide, :],
            grain=grain,
            plain=None if trusted else _plain(pixels, warped.edges, warped.warp.filled, reach),
            share=share,
        )
        finished[rows] = to_image(warped.with_rims(composed)[..., own, :])
    return finished


def _plain(continued: Tensor, edges: Tensor, filled: Tensor, reach: int) -> Tensor:
    """Replace each hole by the background's pixel beside it, smoothed across rows: 1,3,rows,W in [0, 1]."""
    return smooth_across_rows(extend_background(continued, edges), ~filled, reach)
