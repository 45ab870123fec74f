"""Makes right views by the baselines of Table 1, or takes those of another program, on the method's left views."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.baselines import FILLS, image_warp, leave_blank
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.batching import padded
from stereo_jobs.pipeline.compositing import composites
from stereo_jobs.pipeline.inputs import DecodedRow, PhotoPair
from stereo_jobs.pipeline.left_view import LeftViews, Stream, decode, grid_of, noise_generator, stack
from stereo_jobs.pipeline.pair import FinishedViews, Labels, requested_disparity, scale_sign
from stereo_jobs.pixels import F32, Image
from stereo_jobs.records import Row
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import relative_disparity, resize
from stereo_jobs.stereo.image_warp import ImageWarp
from stereo_jobs.stereo.repaint import repaint
from stereo_jobs.stereo.sampler import GuidedUNet
from stereo_jobs.stereo.solver import Solver


@dataclass(frozen=True)
class _ImageShift:
    """The shift of one left view at the image's size, on the CPU. B = 1.

    Attributes:
        disparity: H,W float32 pixels for a fill; a fill may round it, but its fraction still tells which is nearer.
        sign: sign of the scale for a fill; -1 where the second view lies to the left.
        applied: H,W float32 pixels, what the pixels really do.
        warp: warp by `applied`.
    """

    disparity: F32
    sign: int
    applied: F32
    warp: ImageWarp


class BaselineViewMaker:
    """Makes the right views of one batch after the other, like `RightViewMaker`.

    Args:
        sd: Stable Diffusion; only `repaint` and composites use it.
        recipe: resolved.
    """

    def __init__(self, sd: StableDiffusion, recipe: Recipe) -> None:
        self.sd = sd
        self.method = recipe.method
        self.subpixel = recipe.method.warp != "integer"

    def make(self, rows: list[Row], lefts: LeftViews, guidance: float) -> FinishedViews:
        """Make the right views of a batch.

        Args:
            rows: the rows that ask for them.
            lefts: the left view of each row, and more of them where the batch is padded.
            guidance: guidance scale of `repaint`.
        """
        asked = [self._shift(lefts.refined[i].cpu(), row) for i, row in enumerate(rows)]
        shifts = padded(asked, len(lefts.images))
        labels = [Labels(shift.applied, shift.warp.masks) for shift in asked]
        if self.method.right_view != "repaint":
            rights = [self._fill(lefts.decoded[i], lefts.images[i], shift) for i, shift in enumerate(asked)]
            return FinishedViews(lefts.images, rights, None, labels, lefts.usable, lefts.evaluations)
        rights, usable, spent = self._repaint(lefts, shifts, guidance)
        finished = self._composites(lefts, shifts, rights, len(rows)) if self.method.composite else rights
        raw = rights if self.method.composite else None
        return FinishedViews(lefts.images, finished, raw, labels, usable, lefts.evaluations + spent)

    def _shift(self, values: Tensor, row: Row) -> _ImageShift:
        """Shift one image; in published comparisons by whole pixels, relative shifts truncated, known ones rounded."""
        full = requested_disparity(values, row, self.method)
        if not self.subpixel and self.method.geometry == "relative":
            full = np.trunc(full)
        sign = scale_sign(row, self.method)
        warp = image_warp(full, sign, self.subpixel)
        return _ImageShift(full, sign, full if self.subpixel else np.round(full), warp)

    def _fill(self, decoded: DecodedRow, left: Image, shift: _ImageShift) -> Image:
        """Take the right view that the row brings, or fill the holes of the warped left view by the baseline."""
        if isinstance(decoded.source, PhotoPair):
            return decoded.source.right
        fill = FILLS[self.method.right_view]
        return fill(left, shift.disparity, scale_sign=shift.sign, subpixel=self.subpixel)[0]

    def _composites(
        self, lefts: LeftViews, shifts: list[_ImageShift], diffused: list[Image], count: int
    ) -> list[Image]:
        """Put the known pixels of the warped left views over the first `count` repainted right views."""
        warps = [shift.warp for shift in shifts]
        return composites(
            lefts.decoded,
            warps[:count],
            lefts=lefts.images,
            diffused=diffused,
            latent_factor=self.sd.latent_factor,
        )

    def _repaint(self, lefts: LeftViews, shifts: list[_ImageShift], guidance: float) -> tuple[list[Image], Tensor, int]:
        """RePaint (Lugmayr et al. 2022) on the latents of right views with blank holes.

        Returns:
            The images, B bool which hold no NaN, and the U-Net evaluations of each.
        """
        decoded = lefts.decoded
        blanks = [
            leave_blank(left, shift.disparity, scale_sign=shift.sign, subpixel=self.subpixel)[0]
            for left, shift in zip(lefts.images, shifts, strict=True)
        ]
        inside = [one.letterbox.image_into(blank) for one, blank in zip(decoded, blanks, strict=True)]
        known = self.sd.encode(stack(self.sd, inside))
        holes = [one.letterbox.map_into((~s.warp.masks.filled).float()) for one, s in zip(decoded, shifts, strict=True)]
        # A latent is known only where all of its pixels are.
        mask = functional.adaptive_max_pool2d(stack(self.sd, holes), grid_of(self.sd, decoded)) > 0
        model = GuidedUNet(self.sd.unet, lefts.conditional, lefts.unconditional, guidance)
        solver = Solver.of(self.sd.scheduler_config, self.method.steps, self.method.scheduler)
        streams = [noise_generator(one.row.seed, Stream.REPAINT) for one in decoded]

        def noise() -> Tensor:
            shape = (1, *known.shape[1:])
            return stack(self.sd, [torch.randn(shape, generator=stream) for stream in streams])

        condition = self._condition(lefts, shifts)
        inpainted = repaint(model, solver, known, mask, noise, condition=condition)
        images, usable = decode(self.sd, inpainted.x_0, decoded)
        return images, usable & lefts.usable, inpainted.evaluations

    def _condition(self, lefts: LeftViews, shifts: list[_ImageShift]) -> Tensor | None:
        """Depth of the right views for a depth-conditioned U-Net: B,1,h,w in [-1, 1]; None for any other."""
        if lefts.condition is None:
            return None
        moved = [
            one.letterbox.map_into(shift.warp.continued(values.cpu()[None, None])[:, 0])
            for one, values, shift in zip(lefts.decoded, lefts.maps, shifts, strict=True)
        ]
        grid = grid_of(self.sd, lefts.decoded)
        return 2 * relative_disparity(stack(self.sd, [resize(values, grid) for values in moved]))[:, None] - 1
