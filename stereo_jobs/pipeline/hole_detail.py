"""Draws the holes of large photos again at the photo's own resolution, through windows of the working size.

A photo larger than the working size is diffused as a small copy, and its enlarged holes are blurred beside sharp
pixels. Here the holes of the finished right view are noised to a middle level and denoised again (SDEdit, Meng et al.
2022). The U-Net looks at the view through overlapping windows of the size that it works at, and where they overlap its
predictions are averaged (MultiDiffusion, Bar-Tal et al. 2023). Very large photos take several levels, coarse to fine.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
from stereo_jobs.pixels import Bools, Image, to_image, to_tensor
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.disparity import relative_disparity
from stereo_jobs.stereo.sampler import GuidedUNet, redraw
from stereo_jobs.stereo.solver import Solver

LARGEST_ZOOM = 0.75
"""Working pixels per photo pixel below which holes are drawn again; above, enlarging them blurs next to nothing."""
NOISE = 1.0
"""Noise over signal from which holes are drawn again: what is finer than an enlarged pixel drowns in the noise, and
what is coarser stays as it was drawn in the sight of the whole picture."""
FINER = 4
"""Details that a level draws are at most so many times as fine as those drawn before it."""
MOST_WINDOWS = 64
"""Windows of the finest level of a photo. If its holes take more, that level has half of the photo's resolution, or a
quarter, and so on: the work of the U-Net has a bound."""
SEAM_PX = 4
"""Reach of the correction of the VAE's error at the seam of a hole, in pixels of the level."""
NARROWEST = 3
"""Latents that a hole spans in a row; a narrower one has no room for detail, and no window is opened for it."""


class Detailed(NamedTuple):
    """What drawing the holes of a batch again took.

    Attributes:
        finite: B bool, False where the model returned NaN or infinite values.
        evaluations: B, U-Net evaluations that went into each.
    """

    finite: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class Windows:
    """Overlapping windows through which a U-Net looks at a canvas that is larger than it was trained for. In latents.

    Attributes:
        canvas: height and width of the canvas.
        size: height and width of a window.
        corners: top left corner of each.
    """

    canvas: Size
    size: Size
    corners: list[tuple[int, int]]

    @classmethod
    def over(cls, holes: Bools, size: Size, most: int) -> "Windows | None":
        """Cover holes, strip by strip from the top, each strip from the left; None if it takes more than `most`.

        A pixel counts as covered only where a window sees an eighth of its size beyond it, or the canvas ends.

        Args:
            holes: H,W bool, the canvas; at least of a window's size.
            size: height and width of a window.
            most: number of windows.
        """
        open_holes, corners = holes.copy(), []
        while open_holes.any():
            top, below = _span(open_holes.any(1), size[0])
            strip = open_holes[:below]
            while strip.any():
                left, beside = _span(strip.any(0), size[1])
                strip[:, :beside] = False
                corners.append((top, left))
                if len(corners) > most:
                    return None
        return cls((holes.shape[0], holes.shape[1]), size, corners)

    def cut(self, canvas: Tensor) -> Tensor:
        """Cut the windows out of a canvas: 1,C,H,W -> N,C,h,w."""
        height, width = self.size
        return torch.cat([canvas[..., y : y + height, x : x + width] for y, x in self.corners])

    def joined(self, parts: Tensor) -> Tensor:
        """Put windows together, each weighing most in its middle: N,C,h,w -> 1,C,H,W, zero where there is no window."""
        height, width = self.size
        ramp = ramps(self.size).to(parts)
        whole = torch.zeros(1, parts.shape[1], *self.canvas, device=parts.device)
        weights = torch.zeros(1, 1, *self.canvas, device=parts.device)
        for (y, x), part in zip(self.corners, parts, strict=True):
            whole[..., y : y + height, x : x + width] += part * ramp
            weights[..., y : y + height, x : x + width] += ramp
        return whole / weights.clamp_min(1e-6)


def _span(holes: Bools, size: int) -> tuple[int, int]:
    """Place a window along one axis: where it begins, and where the holes end that it covers."""
    margin = size // 8
    begin = max(0, min(int(holes.argmax()) - margin, len(holes) - size))
    end = begin + size
    return begin, end if end == len(holes) else end - margin


def ramps(size: Size) -> Tensor:
    """Weights of a window's pixels: 1 in the middle, falling over an eighth of its size towards each edge, h,w."""
    along = [torch.arange(1, n + 1).minimum(torch.arange(n, 0, -1)).float() / (n // 8 + 1) for n in size]
    return along[0].clamp(max=1)[:, None] * along[1].clamp(max=1)


@dataclass(frozen=True)
class Level:
    """One of the resolutions at which a right view's holes are drawn again.

    Attributes:
        shrink: pixels of the photo per pixel of the level, in a row: a power of two.
        holes: H,W bool, pixels of the level.
        grid: the same on the canvas of latents, which ends at or beyond the level's edges: 1,1,h,w bool.
        windows: through which they are seen.
    """

    shrink: int
    holes: Bools
    grid: Tensor
    windows: Windows

    @classmethod
    def of(cls, holes: Bools, shrink: int, window: Size, factor: int, most: int) -> "Level | None":
        """Plan a level; None if it takes too many windows.

        Args:
            holes: H,W bool, pixels of the photo that are drawn again.
            shrink: pixels of the photo per pixel of the level.
            window: size of a window in latents.
            factor: pixels per latent.
            most: number of windows.
        """
        shrunk = any_within(holes, shrink)
        grid = any_within(shrunk, factor)
        grid = np.pad(grid, [(0, max(0, n - m)) for n, m in zip(window, grid.shape, strict=True)])
        wide = cv2.erode(grid.astype(np.uint8), np.ones((1, NARROWEST), np.uint8)) > 0
        windows = Windows.over(wide, window, most)
        return None if windows is None else cls(shrink, shrunk, torch.from_numpy(grid)[None, None], windows)

    def of_picture(self, picture: Image) -> Image:
        """Bring the photo's right view to this level; the photo itself, if it has the same pixels."""
        if self.shrink == 1:
            return picture
        height, width = self.holes.shape
        below, beside = height * self.shrink - picture.shape[0], width * self.shrink - picture.shape[1]
        whole = cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def any_within(mask: Bools, block: int) -> Bools:
    """Whether any pixel of each block x block pixels is set: H,W -> ceil(H / block),ceil(W / block)."""
    if block == 1:
        return mask
    below, beside = (-n % block for n in mask.shape)
    blocks = np.pad(mask, ((0, below), (0, beside)))
    return blocks.reshape(blocks.shape[0] // block, block, -1, block).any((1, 3))


def levels(holes: Bools, zoom: float, window: Size, factor: int) -> list[Level]:
    """Plan the levels of a photo, from coarse to fine.

    Args:
        holes: H,W bool, pixels of the photo that are drawn again.
        zoom: working pixels per photo pixel.
        window: size of a window in latents.
        factor: pixels per latent.
    """
    planned: list[Level] = []
    shrink = 1
    while shrink * zoom < LARGEST_ZOOM:
        level = Level.of(holes, shrink, window, factor, MOST_WINDOWS)
        if level is not None:
            planned.append(level)
        shrink *= FINER if planned else 2
    return planned[::-1]


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

    def draw(self, rights: list[Image], holes: list[Bools]) -> Detailed:
        """Draw the holes of right views again, where the photo is larger than the working size.

        Args:
            rights: H,W,3 uint8 each, finished right views; their holes are written to.
            holes: H,W bool each, pixels that are drawn again.
        """
        finite = torch.ones(len(self.lefts.images), dtype=torch.bool)
        evaluations = torch.zeros(len(self.lefts.images), dtype=torch.int64)
        for i, (right, hole) in enumerate(zip(rights, holes, strict=True)):
            letterbox, seed = self.lefts.decoded[i].letterbox, self.lefts.decoded[i].row.seed
            noise = noise_generator(seed, Stream.DETAIL)
            height, width = letterbox.working
            window = height // self.sd.latent_factor, width // self.sd.latent_factor
            for level in levels(hole, letterbox.zoom, window, self.sd.latent_factor):
                finite[i] &= self._draw(right, hole, level, i, noise)
                evaluations[i] += (self.solver.steps - self.start) * len(level.windows.corners)
        return Detailed(finite.to(self.sd.device), evaluations)

    def _draw(self, right: Image, hole: Bools, level: Level, i: int, generator: torch.Generator) -> bool:
        """Draw the holes of the view at place `i` of the batch again, at one level. Returns whether it was finite."""
        windows, factor, picture = level.windows, self.sd.latent_factor, level.of_picture(right)
        height, width = windows.size[0] * factor, windows.size[1] * factor
        places = [np.s_[y * factor : y * factor + height, x * factor : x * factor + width] for y, x in windows.corners]
        seen = (_tensor_of_size(picture[place], height, width) for place in places)
        clean = windows.joined(torch.cat(list(self._in_batches(self.sd.encode, seen))))
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        mask = level.grid[0].to(clean.device)
        x_0 = redraw(self._model(level, i), self.solver, clean, noise, mask=mask, start=self.start)
        finite, written = True, np.zeros_like(level.holes)
        for place, pixels in zip(places, self._in_batches(self.sd.decode, windows.cut(x_0).split(1)), strict=True):
            finite &= bool(torch.isfinite(pixels).all())
            paste(picture[place], level.holes[place], pixels.cpu().nan_to_num(0.0), written[place])
        if level.shrink > 1:
            for place in places:
                enlarge_into(right, hole, picture[place], place, level.shrink)
        return finite

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
            return level.windows.joined(torch.cat(list(self._in_batches(call, inputs.split(1)))))

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
            yield from work(torch.cat(padded(batch, size)))[: len(batch)].split(1)


def _tensor_of_size(image: Image, height: int, width: int) -> Tensor:
    """Convert an image H,W,3 uint8 -> 1,3,height,width in [0, 1]; what it lacks repeats its lower and right edge."""
    below, beside = height - image.shape[0], width - image.shape[1]
    return functional.pad(to_tensor(image), (0, beside, 0, below), mode="replicate")


def paste(picture: Image, holes: Bools, drawn: Tensor, written: Bools) -> None:
    """Write what a window drew into the holes of a picture, without a seam to what is beside them.

    Args:
        picture: H,W,3 uint8, what the window shows of the level.
        holes: H,W bool.
        drawn: 1,3,h,w in [0, 1], the window, which may end beyond the picture.
        written: H,W bool, where another window has drawn before: both are blended there. It is added to.
    """
    height, width = holes.shape
    known, inside = to_tensor(picture), torch.from_numpy(holes)[None, None]
    joined = without_seam(known, drawn[..., :height, :width], inside)
    ramp = ramps((drawn.shape[-2], drawn.shape[-1]))[:height, :width]
    weight = torch.where(torch.from_numpy(written), ramp, 1.0) * inside
    picture[...] = to_image(torch.lerp(known, joined, weight))
    written |= holes


def without_seam(known: Tensor, drawn: Tensor, holes: Tensor) -> Tensor:
    """Subtract the VAE's error just outside of holes from what was drawn inside; it fades with the distance."""
    outside = (~holes).to(drawn)
    size = 2 * SEAM_PX + 1

    def spread(x: Tensor) -> Tensor:
        for _ in range(2):
            x = functional.avg_pool2d(x, size, stride=1, padding=SEAM_PX, count_include_pad=False)
        return x

    return drawn + spread((known - drawn) * outside) / spread(outside).clamp_min(0.1)


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
