"""Warps of whole pictures at their own size, and the right views that are composed with them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.inputs import Scene
from stereo_jobs.pipeline.lefts import stack
from stereo_jobs.pipeline.pixels import Image, to_image, to_tensor
from stereo_jobs.stereo.composite import composite, trusted_share
from stereo_jobs.stereo.fill import extend_background, smooth_across_rows
from stereo_jobs.stereo.warp import ForwardWarp

ROW_REACH = 256
"""A hole is smoothed across one row above and below for every so many columns of the picture, and one at least."""


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
        extended = extend_background(self.warp(to_tensor(picture).to(self.columns.device)), self.columns)
        return smooth_across_rows(extended, ~self.warp.filled, max(1, extended.shape[-1] // ROW_REACH))


def fitted(sd: StableDiffusion, scenes: Sequence[Scene], pictures: Sequence[Tensor]) -> Tensor:
    """Pictures at their own sizes, 1,3,H,W each -> B,3,h,w at the working size."""
    return stack(sd, [scene.fit.into(picture) for scene, picture in zip(scenes, pictures, strict=True)])


def composites(
    sd: StableDiffusion,
    scenes: Sequence[Scene],
    warps: Sequence[PictureWarp],
    *,
    continued: Sequence[Tensor],
    diffused: Sequence[Image],
    trusted_loss: float | None,
    encoded: Tensor | None = None,
) -> list[Image]:
    """The composite of each right view.

    Args:
        sd: whose VAE `diffused` came through.
        scenes: of the batch.
        warps: of the left pictures.
        continued: the left pictures, so warped and continued.
        diffused: the right views as decoded.
        trusted_loss: see `trusted_share`.
        encoded: latents of `continued`, if they are known.
    """
    given = fitted(sd, scenes, continued)
    returned = sd.decode(sd.encode(given) if encoded is None else encoded).nan_to_num(0.0)
    shares = trusted_share(given, returned, trusted_loss)
    return [
        to_image(
            composite(
                pixels,
                warps[i].warp.filled,
                to_tensor(diffused[i]).to(pixels.device),
                scenes[i].fit.back(returned[i : i + 1]).to(pixels.device),
                shares[i : i + 1],
            )
        )
        for i, pixels in enumerate(continued)
    ]
