"""The right view of each left one, and its labels: applied disparity and masks are facts of the shift."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.compositing import PictureWarp, composites, fitted
from stereo_jobs.pipeline.inputs import Scene
from stereo_jobs.pipeline.left_view import LeftViews, decode, finite, grid_of, stack_noise
from stereo_jobs.pipeline.pair import Labels, labelled_pair
from stereo_jobs.pixels import Image
from stereo_jobs.records import Row, RowError, StereoPair
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import relative_disparity, resize, scaled_disparity, sharpen_edges
from stereo_jobs.stereo.fill import background_columns, extend_background, mirrored_columns
from stereo_jobs.stereo.sampler import GuidedUNet, ViewShift, denoise_pair
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import ForwardWarp, border_holes, forward_warp, upsample

SURFACE_PX = 1.0
"""What is nearer than a hole's edge by more than this, in picture pixels, is not the background mirrored there."""


@dataclass(frozen=True)
class _Shift:
    """One picture's shift into one view. B = 1.

    Attributes:
        latents: warp on the latent grid.
        columns: from where each of its holes continues the background.
        picture: warp at the picture's size, where the method has one.
        applied: what this shift really is: disparity of the left view for the whole way, picture pixels, 1,H,W.
    """

    latents: ForwardWarp
    columns: Tensor
    picture: PictureWarp | None
    applied: Tensor


class RightViewMaker:
    """Makes the right views of one batch after the other.

    Args:
        sd: Stable Diffusion.
        recipe: resolved.
    """

    def __init__(self, sd: StableDiffusion, recipe: Recipe) -> None:
        self.sd = sd
        self.method = recipe.method

    def make(self, rows: list[Row], lefts: LeftViews, guidance: float) -> Iterator[StereoPair | RowError]:
        """One pair, or an error, for each of `rows`; `lefts` goes with them and may be padded further."""
        method = self.method
        solver = Solver.of(self.sd.scheduler_config, method.steps, method.scheduler)
        padded = rows + rows[-1:] * (len(lefts.scenes) - len(rows))
        half = 0.5 if method.shift_both else 1.0
        shifts = [self._shift(lefts, i, row, half) for i, row in enumerate(padded)]
        back = [self._shift(lefts, i, row, -half) for i, row in enumerate(padded)] if method.shift_both else None
        continued = _continued(lefts.images, shifts)
        to_right = self._view_shift(lefts, shifts, continued)
        model = GuidedUNet(self.sd.unet, lefts.conditional, lefts.unconditional, guidance)
        latents = denoise_pair(
            model,
            solver,
            lefts.denoised,
            method=method,
            to_right=to_right,
            to_left=self._view_shift(lefts, back, _continued(lefts.images, back)) if back else None,
            conditions=self._conditions(lefts, shifts),
        )
        left, left_finite = lefts.images, lefts.usable
        if method.changes_left:
            left, left_finite = decode(self.sd, latents.left, lefts.scenes)
        right, right_finite = decode(self.sd, latents.right, lefts.scenes)
        finished = right
        if method.composite:
            same = not method.changes_left and method.warp == "pixel"
            finished = composites(
                self.sd,
                lefts.scenes,
                _pictures(shifts),
                continued=_continued(left, shifts) if method.changes_left else continued,
                diffused=right,
                method=method,
                encoded=to_right.clean if same else None,
            )
        usable = lefts.usable & left_finite & right_finite & finite(latents.left) & finite(latents.right)
        for i, row in enumerate(rows):
            if not usable[i]:
                yield RowError(row.id, "NotFinite", "the model returned NaN or infinite values for this row")
                continue
            yield labelled_pair(
                row,
                lefts.scenes[i],
                method,
                lefts.maps[i],
                left=left[i],
                right=finished[i],
                labels=self._labels(lefts.scenes[i], shifts[i]),
                evaluations=int(lefts.evaluations[i]) + latents.evaluations,
                raw_right=right[i] if method.composite else None,
            )

    # --- The shift ---

    def _shift(self, lefts: LeftViews, i: int, row: Row, share: float) -> _Shift:
        """The shift of one picture by `share` of the whole way."""
        method, letterbox, factor = self.method, lefts.scenes[i].letterbox, self.sd.latent_factor
        grid = grid_of(self.sd, lefts.scenes)
        values = lefts.maps[i][None]
        if method.geometry == "relative":
            sign = torch.tensor([row.scale_percent * share], dtype=torch.float64)
            sharp = sharpen_edges(values, method.edge_px)
            full = scaled_disparity(relative_disparity(sharp, of=values), sign)
            # The published order: resize, normalise, scale. A padded picture is narrower than its latents.
            relative = relative_disparity(resize(letterbox.map_into(sharp), grid))
            on_grid = scaled_disparity(relative, sign * (letterbox.inner[1] / letterbox.working[1]))
        else:
            sign = torch.tensor([share])
            full = values * share
            on_grid = functional.adaptive_avg_pool2d(letterbox.map_into(full), grid) * (letterbox.zoom / factor)
        if method.warp == "integer":
            # Relative shifts are truncated as in the published code; known pixels are worth rounding.
            on_grid = on_grid.trunc() if method.geometry == "relative" else on_grid.round()
        latents = _warp_within(on_grid, -(-letterbox.inner[1] // factor), sign, subpixel=method.warp != "integer")
        _, columns = self._columns(latents, on_grid, sign, SURFACE_PX * letterbox.zoom / factor)
        if method.warp != "pixel" and not method.composite:
            applied = letterbox.map_back(upsample(on_grid * factor, factor)) / letterbox.zoom
            return _Shift(latents, columns, None, applied / share)
        pixels = forward_warp(full, sign, subpixel=True)
        picture = PictureWarp(pixels, *self._columns(pixels, full, sign, SURFACE_PX))
        return _Shift(latents, columns, picture, full / share)

    def _columns(self, warp: ForwardWarp, disparity: Tensor, sign: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """Where the background beside each hole of a warp by `disparity` is, and from where the hole continues it."""
        moved = warp(disparity[:, None])[:, 0]
        edges = background_columns(warp.filled, moved, sign)
        if self.method.fill == "mirror":
            return edges, mirrored_columns(warp.filled, moved, sign, step)
        return edges, edges

    def _view_shift(self, lefts: LeftViews, shifts: list[_Shift], continued: list[Tensor]) -> ViewShift:
        """The shifts of a batch, and its warped pictures, as the sampler takes them."""
        method, scenes = self.method, lefts.scenes
        warp, columns = _stacked(shifts)
        filled, clean = warp.filled, None
        if method.warp == "pixel":
            clean = self.sd.encode(fitted(self.sd, scenes, continued))
            # A latent is given only where all of its pixels are.
            seen = [s.letterbox.map_into(p.warp.filled.float()) for s, p in zip(scenes, _pictures(shifts), strict=True)]
            filled = functional.adaptive_avg_pool2d(torch.cat(seen), grid_of(self.sd, scenes)) > 0.999
        elif method.warp == "subpixel" or method.fill in ("background", "mirror"):
            clean = extend_background(warp(lefts.denoised.final), columns)
        noise = stack_noise(self.sd, scenes, stream=1)
        return ViewShift(warp, filled, clean, noise, split=method.warp != "integer")

    def _conditions(self, lefts: LeftViews, shifts: list[_Shift]) -> Tensor | None:
        """Depth of both views, 2,B,1,h,w."""
        if lefts.condition is None:
            return None
        right = lefts.condition
        if self.method.warp_condition:
            warp, columns = _stacked(shifts)
            right = extend_background(warp(right), columns)
        return torch.stack([lefts.condition, right])

    # --- The pair ---

    def _labels(self, scene: Scene, shift: _Shift) -> Labels:
        """Facts of a shift, at the picture's size."""
        applied = np.asarray(shift.applied[0].cpu().numpy(), np.float32)
        if shift.picture is not None:
            warp = shift.picture.warp
            return Labels(applied, warp.visible, warp.filled, border_holes(warp.filled))
        grids = (shift.latents.visible, shift.latents.filled, border_holes(shift.latents.filled))
        return Labels(applied, *(scene.letterbox.map_back(upsample(grid, self.sd.latent_factor)) for grid in grids))


def _warp_within(disparity: Tensor, width: int, sign: Tensor, *, subpixel: bool) -> ForwardWarp:
    """The warp of a picture in the first `width` columns of its grid: what pads it is no source and no target."""
    return forward_warp(disparity[..., :width], sign, subpixel=subpixel).pad(disparity.shape[-1] - width)


def _pictures(shifts: list[_Shift]) -> list[PictureWarp]:
    """The pictures' warps, of a method that has them."""
    return [shift.picture for shift in shifts if shift.picture is not None]


def _continued(pictures: list[Image], shifts: list[_Shift]) -> list[Tensor]:
    """Left pictures, warped and their holes continued: 1,3,H,W each."""
    return [
        shift.picture.continued(picture)
        for shift, picture in zip(shifts, pictures, strict=True)
        if shift.picture is not None
    ]


def _stacked(shifts: list[_Shift]) -> tuple[ForwardWarp, Tensor]:
    """The latent warps of single pictures as one of a batch, and their background columns."""
    return ForwardWarp.cat([shift.latents for shift in shifts]), torch.cat([shift.columns for shift in shifts])
