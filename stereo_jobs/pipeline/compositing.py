"""Warps images at their own size, and composes right views from warped and diffused pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.inputs import DecodedRow
from stereo_jobs.pipeline.left_view import stack
from stereo_jobs.pixels import Image, to_image, to_tensor
from stereo_jobs.stereo.composite import composite, trusted_share
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.fill import extend_background, smooth_across_rows
from stereo_jobs.stereo.warp import ForwardWarp

REACH_PX = 12.0
"""Pixels between a hole's pixel and its background over which the composite's colour correction fades out."""
COLUMNS_PER_ROW = 256
"""Columns of the image for which a plain hole is smoothed across one more row above and below, and one at least."""


@dataclass(frozen=True)
class ImageWarp:
    """The warp of one image at its own size. B = 1.

    Attributes:
        warp: warp of its pixels.
        edges: column of the background beside each hole.
        columns: column from which each pixel of a hole continues the background.
    """

    warp: ForwardWarp
    edges: Tensor
    columns: Tensor

    def continued(self, image: Image) -> Tensor:
        """Warp an image and continue the background into its holes: 1,3,H,W in [0, 1]."""
        return extend_background(self.warp(to_tensor(image).to(self.columns.device)), self.columns)

    def plain(self, continued: Tensor) -> Tensor:
        """Replace each hole by the background's pixel beside it, smoothed across rows: 1,3,H,W in [0, 1]."""
        extended = extend_background(continued, self.edges)
        return smooth_across_rows(extended, ~self.warp.filled, max(1, extended.shape[-1] // COLUMNS_PER_ROW))


def at_working_size(sd: StableDiffusion, decoded: Sequence[DecodedRow], images: Sequence[Tensor]) -> Tensor:
    """Bring images at their own sizes, 1,3,H,W each -> B,3,h,w at the working size."""
    return stack(sd, [one.letterbox.into(image) for one, image in zip(decoded, images, strict=True)])


def composites(
    sd: StableDiffusion,
    decoded: Sequence[DecodedRow],
    warps: Sequence[ImageWarp],
    *,
    continued: Sequence[Tensor],
    diffused: Sequence[Image],
    method: MethodConfig,
    encoded: Tensor | None = None,
) -> list[Image]:
    """Compose each right view: warped pixels of the left one, diffused pixels in the holes.

    Args:
        sd: its VAE decoded `diffused`.
        decoded: the rows of the batch.
        warps: warps of the left images.
        continued: the left images, warped and continued by `warps`.
        diffused: the right views as decoded.
        method: says how holes are finished.
        encoded: latents of `continued`; None: they are computed.
    """
    given = at_working_size(sd, decoded, continued)
    returned = sd.decode(sd.encode(given) if encoded is None else encoded).nan_to_num(0.0)
    shares = trusted_share(given, returned, method.trusted_loss)
    return [
        to_image(
            composite(
                pixels,
                warp.warp.filled,
                to_tensor(diffused[i]).to(pixels.device),
                warp.columns,
                reach_px=REACH_PX,
                returned=decoded[i].letterbox.back(returned[i : i + 1]).to(pixels.device),
                grain=method.grain,
                plain=warp.plain(pixels),
                share=shares[i : i + 1],
            )
        )
        for i, (warp, pixels) in enumerate(zip(warps, continued, strict=True))
    ]
