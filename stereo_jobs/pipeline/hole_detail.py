"""Draws the holes of large photos again at the photo's own resolution, through windows of the working size.

A photo larger than the working size is diffused as a small copy, and its enlarged holes are blurred beside sharp
pixels. Here the holes of the finished right view are noised to a middle level and denoised again (SDEdit, Meng et al.
2022). The U-Net looks at the view through overlapping windows of the size that it works at, and where they overlap its
predictions are averaged (MultiDiffusion, Bar-Tal et al. 2023). Very large photos take several levels, coarse to fine.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.batching import padded
from stereo_jobs.pipeline.left_view import LeftViews, Stream, noise_generator
from stereo_jobs.pipeline.resizing import Size
from stereo_jobs.pipeline.windows import FINER, Level, any_within, levels, padded_to, ramps
from stereo_jobs.pixels import Bools, Image, to_image, to_tensor
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.disparity import relative_disparity
from stereo_jobs.stereo.image_warp import ImageWarp
from stereo_jobs.stereo.membrane import membrane
from stereo_jobs.stereo.sampler import GuidedUNet, redraw
from stereo_jobs.stereo.solver import Solver

NOISE = 1.0
"""Noise over signal from which holes are drawn again: what is finer than an enlarged pixel drowns in the noise, and
what is coarser stays as it was drawn in the sight of the whole picture."""
LEAST_RETURNED = 0.75
"""Share of the fine detail beside the holes that the VAE must give back, in energy. One that gives back less was not
trained on such pictures, and blurs what it should sharpen. The embedded VAE gives back 1.05 of its own pictures' and
0.57 of photos'; its detail in photos made LPIPS in the holes of Motorcycle 0.26, which was 0.18."""
FRONT = 2
"""Latents of a level by which the U-Net draws beyond a hole, into what stands in front of it: their outline is far."""
BLEED_PX = 2 * FINER
"""Pixels of a level that the outline of what is in front bleeds into a hole: two of the level before it."""


class Detailed(NamedTuple):
    """What drawing the holes of a batch again took.

    Attributes:
        finite: B bool, False where the model returned NaN or infinite values.
        evaluations: B, U-Net evaluations that went into each.
    """

    finite: Tensor
    evaluations: Tensor


class HoleDetailer:
    """Draws the holes of right views again, one view after the other.

    Args:
        sd: Stable Diffusion.
        method: says which solver.
        lefts: the left views of the batch.
        condition: B,1,h,w in [-1, 1], depth of the right views for a depth-conditioned U-Net.
    """

    def __init__(
        self, sd: StableDiffusion, method: MethodConfig, lefts: LeftViews, condition: Tensor | None = None
    ) -> None:
        self.sd = sd
        self.lefts = lefts
        self.condition = condition
        self.solver = Solver.of(sd.scheduler_config, method.steps, method.scheduler)

    @cached_property
    def start(self) -> int:
        """First step of those that draw holes again."""
        ratios = [noise / signal for signal, noise in map(self.solver.levels, range(self.solver.steps))]
        return next((i for i, ratio in enumerate(ratios) if ratio <= NOISE), self.solver.steps - 1)

    def draw(self, rights: list[Image], warps: Sequence[ImageWarp]) -> Detailed:
        """Draw the holes of right views again, where the photo is larger than the working size.

        What stands in front beside a hole is hidden from the U-Net, which draws background there, too: its outline,
        enlarged, would grow into the hole. The view keeps its own pixels.

        Args:
            rights: H,W,3 uint8 each, right views without their soft rims; their holes are written to.
            warps: the warp that made each of them.
        """
        finite = torch.ones(len(self.lefts.images), dtype=torch.bool)
        evaluations = torch.zeros(len(self.lefts.images), dtype=torch.int64)
        for i, (right, warp) in enumerate(zip(rights, warps, strict=True)):
            letterbox, seed = self.lefts.decoded[i].letterbox, self.lefts.decoded[i].row.seed
            noise = noise_generator(seed, Stream.DETAIL)
            height, width = letterbox.working
            window = height // self.sd.latent_factor, width // self.sd.latent_factor
            for level in levels(holes_of(warp), letterbox.zoom, window, self.sd.latent_factor):
                spent, sound = self._draw(i, right, warp, level, noise)
                evaluations[i] += spent
                finite[i] &= sound
        return Detailed(finite.to(self.sd.device), evaluations)

    def _draw(
        self, i: int, right: Image, warp: ImageWarp, level: Level, generator: torch.Generator
    ) -> tuple[int, bool]:
        """Draw the holes of the view at place `i` of the batch again, at one level.

        Returns:
            How many U-Net evaluations it took, and whether all numbers were finite.
        """
        windows, factor, picture = level.windows, self.sd.latent_factor, level.of_picture(right)
        front = any_within(in_front(warp, FRONT * factor * level.shrink), level.shrink) & ~level.holes
        places = windows.places(factor)
        seen = [(picture[place], level.holes[place], front[place]) for place in places]
        pixels = (_tensor_of_size(without_front(*one), windows.size, factor) for one in seen)
        latents = torch.cat(list(self._in_batches(self.sd.encode, pixels)))
        if self._returned_detail(latents, seen) < LEAST_RETURNED:
            return 0, True
        clean = windows.joined(latents)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        mask = torch.from_numpy(padded_to(any_within(level.holes | front, factor), windows.canvas))[None].to(
            clean.device
        )
        x_0 = redraw(self._model(level, i), self.solver, clean, noise, mask=mask, start=self.start)
        finite, written = True, np.zeros_like(level.holes)
        for place, one, drawn in zip(
            places, seen, self._in_batches(self.sd.decode, torch.split(windows.cut(x_0), 1)), strict=True
        ):
            finite &= bool(torch.isfinite(drawn).all())
            paste(*one, drawn.cpu().nan_to_num(0.0), written[place])
        if level.shrink > 1:
            for place in places:
                enlarge_into(right, holes_of(warp), picture[place], place, level.shrink)
        return (self.solver.steps - self.start) * len(places), finite

    def _returned_detail(self, latents: Tensor, seen: list[tuple[Image, Bools, Bools]]) -> float:
        """Return which share of the fine detail beside the holes the VAE gives back, in energy.

        Args:
            latents: N,4,h,w, the windows, encoded.
            seen: the windows: H,W,3 uint8, their holes and what is in front of them, H,W bool.
        """
        given = returned = 1e-6
        for (image, holes, front), decoded in zip(
            seen, self._in_batches(self.sd.decode, torch.split(latents, 1)), strict=True
        ):
            height, width = holes.shape
            known = torch.from_numpy(~(holes | front))
            given += float((fine_detail(to_tensor(image)).square() * known).sum())
            returned += float((fine_detail(decoded.cpu()[..., :height, :width]).square() * known).sum())
        return returned / given

    def _model(self, level: Level, i: int) -> Callable[[Tensor, int], Tensor]:
        """Return what predicts the noise of a level's canvas 1,4,H,W at a step, from what each window shows of it."""
        text = self.lefts.conditional[i : i + 1].expand(len(self.lefts.images), -1, -1)
        model = GuidedUNet(self.sd.unet, text, text, 1.0)
        depths = self._conditions(level, i)

        def predict(x: Tensor, step: int) -> Tensor:
            def call(latents: Tensor) -> Tensor:
                views, depth = latents[None, :, : x.shape[1]], latents[None, :, x.shape[1] :]
                return model(views, step, self.solver.timesteps[step], depth if depth.shape[2] else None)[0]

            inputs = torch.cat([level.windows.cut(x), depths], 1)
            return level.windows.joined(torch.cat(list(self._in_batches(call, torch.split(inputs, 1)))))

        return predict

    def _conditions(self, level: Level, i: int) -> Tensor:
        """Depth that each window shows, N,1,h,w in [-1, 1]; N,0,h,w for a U-Net that takes none."""
        windows = level.windows
        if self.condition is None:
            return torch.empty(len(windows.corners), 0, *windows.size, device=self.sd.device)
        letterbox, factor = self.lefts.decoded[i].letterbox, self.sd.latent_factor
        inner = [-(-n // factor) for n in letterbox.inner]
        whole = functional.interpolate(
            self.condition[i : i + 1, :, : inner[0], : inner[1]],
            [-(-n // factor) for n in level.holes.shape],
            mode="bilinear",
        )
        below, beside = (n - m for n, m in zip(windows.canvas, whole.shape[-2:], strict=True))
        cut = windows.cut(functional.pad(whole, (0, beside, 0, below), mode="replicate"))
        return 2 * relative_disparity(cut[:, 0])[:, None] - 1

    def _in_batches(self, work: Callable[[Tensor], Tensor], parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Apply a network to samples 1,..., always in batches of one size; its results depend on their shape."""
        size, waiting = len(self.lefts.images), iter(parts)
        while batch := list(itertools.islice(waiting, size)):
            yield from torch.split(work(torch.cat(padded(batch, size)))[: len(batch)], 1)


def _tensor_of_size(image: Image, window: Size, factor: int) -> Tensor:
    """Convert what a window shows, H,W,3 uint8, to 1,3,h,w in [0, 1]; beyond the picture its edge is repeated."""
    below, beside = (n * factor - m for n, m in zip(window, image.shape, strict=False))
    return functional.pad(to_tensor(image), (0, beside, 0, below), mode="replicate")


def holes_of(warp: ImageWarp) -> Bools:
    """The holes of a right view: H,W."""
    return np.asarray(~warp.masks.filled[0].cpu().numpy())


def in_front(warp: ImageWarp, reach: int) -> Bools:
    """Find what stands in front beside the holes: pixels up to `reach` away, opposite to the background, H,W."""
    parts = []
    for rows in warp.bands():
        warped = warp.rows(rows)
        hole = ~warped.warp.filled[0]
        right = warped.edges[0] > torch.arange(hole.shape[1], device=hole.device)  # the background lies there
        near = _any_ahead(hole & right, reach) | _any_ahead((hole & ~right).flip(-1), reach).flip(-1)
        parts.append((near & ~hole).cpu().numpy())
    return np.concatenate(parts)


def _any_ahead(mask: Tensor, reach: int) -> Tensor:
    """Whether any of the next `reach` pixels of the row is set, H,W bool."""
    count = functional.pad(mask.long(), (0, reach)).cumsum(-1)
    return count[:, reach:] > count[:, : mask.shape[1]]


def without_front(image: Image, holes: Bools, front: Bools) -> Image:
    """Continue the background over what stands in front, and over the pixels of the hole that its outline bleeds into.

    Args:
        image: H,W,3 uint8.
        holes: H,W bool.
        front: H,W bool.
    """
    if not front.any():
        return image
    size = 2 * BLEED_PX + 1
    hidden = cv2.dilate(front.astype(np.uint8), np.ones((size, size), np.uint8)) * (holes | front)
    return np.asarray(cv2.inpaint(image, hidden, 3, cv2.INPAINT_TELEA), np.uint8)


def fine_detail(image: Tensor) -> Tensor:
    """What a level can add to the one before it: an image B,C,H,W without its mean over about two coarser pixels."""
    return image - functional.avg_pool2d(image, 2 * FINER + 1, stride=1, padding=FINER, count_include_pad=False)


def paste(picture: Image, holes: Bools, front: Bools, drawn: Tensor, written: Bools) -> None:
    """Write what a window drew into the holes of a picture, without a seam to what is beside them.

    Args:
        picture: H,W,3 uint8, what the window shows of the level.
        holes: H,W bool.
        front: H,W bool, pixels that are no background of theirs.
        drawn: 1,3,h,w in [0, 1], the window, which may end beyond the picture.
        written: H,W bool, where another window has drawn before: both are blended there. It is added to.
    """
    height, width = holes.shape
    known, inside = to_tensor(picture), torch.from_numpy(holes)[None, None]
    background = torch.from_numpy(~(holes | front))[None]
    drawn = drawn[..., :height, :width]
    joined = drawn + membrane(known - drawn, background)
    ramp = ramps((drawn.shape[-2], drawn.shape[-1]))[:height, :width]
    weight = torch.where(torch.from_numpy(written), ramp, 1.0) * inside
    picture[...] = to_image(torch.lerp(known, joined, weight))
    written |= holes


def enlarge_into(right: Image, holes: Bools, part: Image, place: tuple[slice, slice], shrink: int) -> None:
    """Write a part of a level, enlarged, into the holes of the whole picture.

    Args:
        right: H,W,3 uint8, the whole picture.
        holes: H,W bool.
        part: what a window shows of the level.
        place: rows and columns of the part, in pixels of the level.
        shrink: pixels of the picture per pixel of the level.
    """
    whole = cv2.resize(part, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_CUBIC)
    at = tuple(slice(along.start * shrink, along.stop * shrink) for along in place)
    target, hole = right[at], holes[at]
    np.copyto(target, whole[: target.shape[0], : target.shape[1]], where=hole[..., None])
