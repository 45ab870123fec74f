"""Right views by the baselines of Table 1, or by another program, on the left views and disparities of the method."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stereo_jobs.baselines import FILLS, columns_of, leave_blank, warp_of
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.compositing import PictureWarp, composites
from stereo_jobs.pipeline.inputs import Scene
from stereo_jobs.pipeline.left_view import LeftViews, decode, grid_of, stack
from stereo_jobs.pipeline.pair import Labels, labelled_pair, requested_disparity, scale_sign
from stereo_jobs.pixels import Image, to_tensor
from stereo_jobs.records import Row, RowError, StereoPair
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import relative_disparity, resize
from stereo_jobs.stereo.fill import extend_background
from stereo_jobs.stereo.repaint import repaint
from stereo_jobs.stereo.sampler import GuidedUNet
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import ForwardWarp, border_holes


@dataclass(frozen=True)
class _Shift:
    """One picture's shift at its own size, on the CPU. B = 1.

    Attributes:
        disparity: H,W float32 pixels, as a fill takes it; where it rounds, the fraction still tells which is nearer.
        sign: as a fill takes it.
        applied: H,W float32 pixels, what the pixels really do.
        warp: by it.
        columns: from where each hole continues the background.
    """

    disparity: NDArray[np.float32]
    sign: int
    applied: NDArray[np.float32]
    warp: ForwardWarp
    columns: Tensor


class BaselineViewMaker:
    """Makes the right views of one batch after the other, as `RightViewMaker` does.

    Args:
        sd: Stable Diffusion, for `repaint`.
        recipe: resolved.
    """

    def __init__(self, sd: StableDiffusion, recipe: Recipe) -> None:
        self.sd = sd
        self.method = recipe.method
        self.subpixel = recipe.method.warp != "integer"

    def make(self, rows: list[Row], lefts: LeftViews, guidance: float) -> Iterator[StereoPair | RowError]:
        """One pair, or an error, for each of `rows`; `lefts` goes with them and may be padded further."""
        padded = rows + rows[-1:] * (len(lefts.scenes) - len(rows))
        shifts = [self._shift(lefts.maps[i].cpu(), row) for i, row in enumerate(padded)]
        usable, spent = lefts.usable, 0
        raws: list[Image | None] = [None] * len(rows)
        if self.method.right_view == "repaint":
            rights, usable, spent = self._repaint(lefts, shifts, guidance)
            if self.method.composite:
                raws = [*rights]
                pictures = [PictureWarp(shift.warp, shift.columns, shift.columns) for shift in shifts]
                continued = [picture.continued(left) for picture, left in zip(pictures, lefts.images, strict=True)]
                rights = composites(
                    self.sd, lefts.scenes, pictures, continued=continued, diffused=rights, method=self.method
                )
        else:
            rights = [
                self._fill(scene, left, shift)
                for scene, left, shift in zip(lefts.scenes, lefts.images, shifts, strict=True)
            ]
        for i, row in enumerate(rows):
            if not usable[i]:
                yield RowError(row.id, "NotFinite", "the model returned NaN or infinite values for this row")
                continue
            warp = shifts[i].warp
            yield labelled_pair(
                row,
                lefts.scenes[i],
                self.method,
                lefts.maps[i],
                left=lefts.images[i],
                right=rights[i],
                labels=Labels(shifts[i].applied, warp.visible, warp.filled, border_holes(warp.filled)),
                evaluations=int(lefts.evaluations[i]) + spent,
                raw_right=raws[i],
            )

    def _shift(self, values: Tensor, row: Row) -> _Shift:
        """The shift in the picture. Whole pixels as published comparisons have them: truncated, known ones rounded."""
        full = requested_disparity(values, row, self.method, edge_px=self.method.edge_px)
        if not self.subpixel and self.method.geometry == "relative":
            full = np.trunc(full)
        blank = np.empty((*full.shape, 3), np.uint8)  # only its size counts
        sign = scale_sign(row, self.method)
        warp = warp_of(blank, full, sign, self.subpixel)
        return _Shift(full, sign, full if self.subpixel else np.round(full), warp, columns_of(warp, full, sign))

    def _fill(self, scene: Scene, left: Image, shift: _Shift) -> Image:
        if self.method.right_view == "given":
            assert scene.given_right is not None
            return scene.given_right
        fill = FILLS[self.method.right_view]
        return fill(left, shift.disparity, scale_sign=shift.sign, subpixel=self.subpixel)[0]

    def _repaint(self, lefts: LeftViews, shifts: list[_Shift], guidance: float) -> tuple[list[Image], Tensor, int]:
        """RePaint on the latents of the blank right views: images, which hold no NaN, evaluations of each."""
        scenes = lefts.scenes
        blanks = [
            leave_blank(left, shift.disparity, scale_sign=shift.sign, subpixel=self.subpixel)[0]
            for left, shift in zip(lefts.images, shifts, strict=True)
        ]
        pictures = [scene.letterbox.into(to_tensor(blank)) for scene, blank in zip(scenes, blanks, strict=True)]
        holes = [scene.letterbox.map_into((~s.warp.filled).float()) for scene, s in zip(scenes, shifts, strict=True)]
        known = self.sd.encode(stack(self.sd, pictures))
        # A latent is known only where all of its pixels are.
        mask = functional.adaptive_max_pool2d(stack(self.sd, holes), grid_of(self.sd, scenes)) > 0
        model = GuidedUNet(self.sd.unet, lefts.conditional, lefts.unconditional, guidance)
        solver = Solver.of(self.sd.scheduler_config, self.method.steps, self.method.scheduler)
        streams = [torch.Generator().manual_seed((scene.row.seed + 2) % 2**63) for scene in scenes]

        def noise() -> Tensor:
            shape = (1, *known.shape[1:])
            return stack(self.sd, [torch.randn(shape, generator=stream) for stream in streams])

        condition = self._condition(lefts, shifts)
        inpainted = repaint(model, solver, known, mask, noise, condition=condition)
        images, usable = decode(self.sd, inpainted.x_0, scenes)
        return images, usable & lefts.usable, inpainted.evaluations

    def _condition(self, lefts: LeftViews, shifts: list[_Shift]) -> Tensor | None:
        """Depth of the right views for a depth-conditioned U-Net: B,1,h,w in [-1, 1]."""
        if lefts.condition is None:
            return None
        moved = [
            scene.letterbox.map_into(extend_background(shift.warp(values.cpu()[None, None]), shift.columns)[:, 0])
            for scene, values, shift in zip(lefts.scenes, lefts.maps, shifts, strict=True)
        ]
        grid = grid_of(self.sd, lefts.scenes)
        return 2 * relative_disparity(stack(self.sd, [resize(values, grid) for values in moved]))[:, None] - 1
