"""Warps of whole pictures at their own size, and the right views that are composed with them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.inputs import Scene
from stereo_jobs.pipeline.lefts import decode
from stereo_jobs.pipeline.pixels import Image, to_image, to_tensor
from stereo_jobs.stereo.composite import composite
from stereo_jobs.stereo.fill import extend_background
from stereo_jobs.stereo.warp import ForwardWarp

REACH_PX = 12.0
"""Reach of the composite's colour correction, from a pixel of a hole to where its background is taken from."""


@dataclass(frozen=True)
class PictureWarp:
    """One picture's warp at its own size. B = 1.

    Attributes:
        warp: of its pixels.
        columns: from where each hole continues the background.
    """

    warp: ForwardWarp
    columns: Tensor

    def continued(self, picture: Image) -> Tensor:
        """The warped picture, its holes continued from the background: 1,3,H,W in [0, 1]."""
        return extend_background(self.warp(to_tensor(picture).to(self.columns.device)), self.columns)


def encode(sd: StableDiffusion, scenes: Sequence[Scene], pictures: Sequence[Tensor]) -> Tensor:
    """Pictures at their own sizes, 1,3,H,W each -> latents B,4,h,w."""
    fitted = [scene.fit.into(picture) for scene, picture in zip(scenes, pictures, strict=True)]
    return sd.encode(torch.cat(fitted).to(sd.device))


def composites(
    sd: StableDiffusion,
    scenes: Sequence[Scene],
    warps: Sequence[PictureWarp],
    *,
    continued: Sequence[Tensor],
    diffused: Sequence[Image],
    grain: float,
    encoded: Tensor | None = None,
) -> list[Image]:
    """The composite of each right view.

    Args:
        sd: whose VAE `diffused` came through.
        scenes: of the batch.
        warps: of the left pictures.
        continued: the left pictures, so warped and continued.
        diffused: the right views as decoded.
        grain: see `composite`.
        encoded: latents of `continued`, if they are known.
    """
    returned: list[Image | None] = [None] * len(continued)
    if grain:
        latents = encode(sd, scenes, continued) if encoded is None else encoded
        returned = [*decode(sd, latents, scenes)[0]]
    return [
        to_image(
            composite(
                pixels,
                warp.warp.filled,
                to_tensor(view).to(pixels.device),
                warp.columns,
                reach_px=REACH_PX,
                returned=None if back is None else to_tensor(back).to(pixels.device),
                grain=grain,
            )
        )
        for pixels, warp, view, back in zip(continued, warps, diffused, returned, strict=True)
    ]
