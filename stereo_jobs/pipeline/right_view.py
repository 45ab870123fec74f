"""Makes the right view of each left one, and its labels: applied disparity and masks are facts of the shift."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.batching import padded
from stereo_jobs.pipeline.compositing import SURFACE_PX, composites, continued_at_working_size, with_rims
from stereo_jobs.pipeline.hole_detail import HoleDetailer
from stereo_jobs.pipeline.left_view import DiffusedLeftViews, LeftViews, Stream, decode, finite, grid_of, stack_noise
from stereo_jobs.pipeline.pair import FinishedViews, Labels
from stereo_jobs.pipeline.resizing import Letterbox
from stereo_jobs.pixels import Image
from stereo_jobs.records import Row
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import relative_disparity, resize, scaled_disparity
from stereo_jobs.stereo.fill import background_columns, extend_background, mirrored_columns
from stereo_jobs.stereo.image_warp import ImageWarp, Masks
from stereo_jobs.stereo.rims import find_rims
from stereo_jobs.stereo.sampler import GuidedUNet, ViewShift, denoise_pair
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import ForwardWarp, border_holes, forward_warp, upsample


@dataclass(frozen=True)
class _LatentShift:
    """The shift of one left view into another view. B = 1.

    Attributes:
        latents: warp on the latent grid.
        columns: column of that grid from which each latent of a hole continues the background.
        image: warp at the image's size; None where the method needs none.
        applied: disparity of the left view that this shift really applies, for the whole way: 1,H,W image pixels.
    """

    latents: ForwardWarp
    columns: Tensor
    image: ImageWarp | None
    applied: Tensor


class RightViewMaker:
    """Makes the right views of one batch after the other, by diffusing both views together (Sec. 3).

    Args:
        sd: Stable Diffusion.
        recipe: resolved.
    """

    def __init__(self, sd: StableDiffusion, recipe: Recipe) -> None:
        self.sd = sd
        self.method = recipe.method

    def make(self, rows: list[Row], lefts: DiffusedLeftViews, guidance: float) -> FinishedViews:
        """Make the right views of a batch.

        Args:
            rows: the rows that ask for them.
            lefts: the left view of each row, and more of them where the batch is padded.
            guidance: guidance scale of both views.
        """
        method = self.method
        solver = Solver.of(self.sd.scheduler_config, method.steps, method.scheduler)
        half = 0.5 if method.shift_both else 1.0
        shifts = self._shifts(lefts, rows, half)
        back = self._shifts(lefts, rows, -half) if method.shift_both else None
        # At the working size. Both the shift of a method that warps pixels and the composite are made of it.
        continued = self._continued(lefts, shifts, lefts.images)
        to_right = self._view_shift(lefts, shifts, continued)
        model = GuidedUNet(self.sd.unet, lefts.conditional, lefts.unconditional, guidance)
        conditions = self._conditions(lefts, shifts)
        latents = denoise_pair(
            model,
            solver,
            lefts.trajectory,
            method=method,
            to_right=to_right,
            to_left=self._view_shift(lefts, back, self._continued(lefts, back, lefts.images)) if back else None,
            conditions=conditions,
        )
        left, left_finite = lefts.images, lefts.usable
        if method.changes_left:
            left, left_finite = decode(self.sd, latents.left, lefts.decoded)
        right, right_finite = decode(self.sd, latents.right, lefts.decoded)
        usable, evaluations = lefts.usable & left_finite & right_finite, lefts.evaluations + latents.evaluations
        finished = right
        if method.composite:
            warps, factor = _image_warps(shifts)[: len(rows)], self.sd.latent_factor
            finished = composites(lefts.decoded, warps, lefts=left, diffused=right, latent_factor=factor)
            if method.hole_detail:
                detail = HoleDetailer(self.sd, method, lefts, None if conditions is None else conditions[1])
                detail_finite, spent = detail.draw(finished, warps)
                usable, evaluations = usable & detail_finite, evaluations + spent
            finished = [with_rims(*one) for one in zip(finished, warps, left, strict=False)]
        return FinishedViews(
            left,
            finished,
            right if method.composite else None,
            [self._labels(lefts.decoded[i].letterbox, shifts[i]) for i in range(len(rows))],
            usable & finite(latents.left) & finite(latents.right),
            evaluations,
        )

    # --- The shift ---

    def _shifts(self, lefts: LeftViews, rows: list[Row], share: float) -> list[_LatentShift]:
        """Shift the left view of each row; the batch is padded by the last shift, like its left views."""
        return padded([self._shift(lefts, i, row, share) for i, row in enumerate(rows)], len(lefts.images))

    def _continued(self, lefts: LeftViews, shifts: list[_LatentShift], images: list[Image]) -> Tensor | None:
        """Warp left images and continue their holes: B,3,h,w at the working size; None where no image is warped."""
        warps = _image_warps(shifts)
        if not warps:
            return None
        return continued_at_working_size(self.sd, lefts.decoded, warps, images, rims=not self.method.composite)

    def _shift(self, lefts: LeftViews, i: int, row: Row, share: float) -> _LatentShift:
        """Shift the left view at place `i` of the batch by `share` of the whole way (Sec. 3.1, Eq. 3)."""
        method, letterbox, factor = self.method, lefts.decoded[i].letterbox, self.sd.latent_factor
        grid = grid_of(self.sd, lefts.decoded)
        values = lefts.refined[i][None]
        if method.geometry == "relative":
            sign = torch.tensor([row.scale_percent * share], dtype=torch.float64)
            full = scaled_disparity(relative_disparity(values), sign)
            # The published order: resize, normalise, scale. A padded image is narrower than its latents.
            relative = relative_disparity(resize(letterbox.map_into(values), grid))
            on_grid = scaled_disparity(relative, sign * (letterbox.inner[1] / letterbox.working[1]))
        else:
            sign = torch.tensor([share])
            full = values * share
            on_grid = functional.adaptive_avg_pool2d(letterbox.map_into(full), grid) * (letterbox.zoom / factor)
        if method.warp == "integer":
            # Relative shifts are truncated as in the published code; known pixels are rounded, which is more exact.
            on_grid = on_grid.trunc() if method.geometry == "relative" else on_grid.round()
        latents = _warp_within(on_grid, -(-letterbox.inner[1] // factor), sign, subpixel=method.warp != "integer")
        columns = self._columns(latents, on_grid, sign, SURFACE_PX * letterbox.zoom / factor)
        if method.warp != "pixel" and not method.composite:
            applied = letterbox.map_back(upsample(on_grid * factor, factor)) / letterbox.zoom
            return _LatentShift(latents, columns, None, applied / share)
        rims = None
        if method.rims and not method.changes_left:
            picture = torch.from_numpy(lefts.images[i]).permute(2, 0, 1)[None].to(full.device)
            rims = find_rims(picture, full, sign, traces=method.refines_edges)
        image = ImageWarp(full, sign, mirror=SURFACE_PX if method.fill == "mirror" else None, rims=rims)
        return _LatentShift(latents, columns, image, full if share == 1 else full / share)

    def _columns(self, warp: ForwardWarp, disparity: Tensor, sign: Tensor, step: float) -> Tensor:
        """Find the column from which each latent of a hole continues the background."""
        moved = warp(disparity[:, None])[:, 0]
        if self.method.fill == "mirror":
            return mirrored_columns(warp.filled, moved, sign, step)
        return background_columns(warp.filled, moved, sign)

    def _view_shift(self, lefts: DiffusedLeftViews, shifts: list[_LatentShift], continued: Tensor | None) -> ViewShift:
        """Bring the shifts of a batch, and its warped images, to the form that the sampler takes."""
        method, decoded = self.method, lefts.decoded
        warp, columns = _stacked(shifts)
        filled, clean = warp.filled, None
        if method.warp == "pixel":
            clean = self.sd.encode(_given(continued))
            # A latent is given only where all of its pixels are.
            warps = _image_warps(shifts)
            seen = [one.letterbox.map_into(w.masks.filled.float()) for one, w in zip(decoded, warps, strict=True)]
            filled = functional.adaptive_avg_pool2d(torch.cat(seen), grid_of(self.sd, decoded)) > 0.999
        elif method.warp == "subpixel" or method.fill in ("background", "mirror"):
            clean = extend_background(warp(lefts.trajectory.final), columns)
        noise = stack_noise(self.sd, decoded, Stream.HOLES)
        return ViewShift(warp, filled, clean, noise, split=method.warp != "integer")

    def _conditions(self, lefts: LeftViews, shifts: list[_LatentShift]) -> Tensor | None:
        """Depth of both views for a depth-conditioned U-Net, 2,B,1,h,w in [-1, 1]; None for any other."""
        if lefts.condition is None:
            return None
        right = lefts.condition
        if self.method.warp_condition:
            warp, columns = _stacked(shifts)
            right = extend_background(warp(right), columns)
        return torch.stack([lefts.condition, right])

    def _labels(self, letterbox: Letterbox, shift: _LatentShift) -> Labels:
        """Bring the facts of a shift to the image's size."""
        applied = np.asarray(shift.applied[0].cpu().numpy(), np.float32)
        if shift.image is not None:
            return Labels(applied, shift.image.masks)
        grids = (shift.latents.visible, shift.latents.filled, border_holes(shift.latents.filled))
        masks = Masks(*(letterbox.map_back(upsample(grid, self.sd.latent_factor)) for grid in grids))
        return Labels(applied, masks)


def _warp_within(disparity: Tensor, width: int, sign: Tensor, *, subpixel: bool) -> ForwardWarp:
    """Warp only the first `width` columns of a grid: the columns that pad it are no source and no target."""
    return forward_warp(disparity[..., :width], sign, subpixel=subpixel).pad(disparity.shape[-1] - width)


def _image_warps(shifts: list[_LatentShift]) -> list[ImageWarp]:
    """Warps at the image's size; empty for a method that needs none."""
    return [shift.image for shift in shifts if shift.image is not None]


def _given(continued: Tensor | None) -> Tensor:
    """The warped images, which a method that warps pixels or composes needs."""
    if continued is None:
        raise ValueError("this method warps the left images, but none of its shifts has a warp of an image")
    return continued


def _stacked(shifts: list[_LatentShift]) -> tuple[ForwardWarp, Tensor]:
    """Stack the latent warps of single images into one of a batch, and their background columns."""
    return ForwardWarp.cat([shift.latents for shift in shifts]), torch.cat([shift.columns for shift in shifts])
