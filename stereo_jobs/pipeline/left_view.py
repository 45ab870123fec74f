"""Makes the left view, denoised from noise or taken from a photo (Sec. 3.4), and the map that its shift is made of."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.inputs import DecodedRow, GuidedNoise, MaskedPhoto, Photo
from stereo_jobs.pixels import Bools, Image, to_image, to_tensor
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.attention import Keep
from stereo_jobs.stereo.composite import composite
from stereo_jobs.stereo.disparity import relative_disparity, resize
from stereo_jobs.stereo.edges import refine
from stereo_jobs.stereo.inversion import ddim_inversion, null_text, renoised
from stereo_jobs.stereo.sampler import GuidedUNet, Trajectory, denoise, denoise_within
from stereo_jobs.stereo.solver import Solver


@dataclass(frozen=True)
class LeftViews:
    """A batch of left views and what the right views need of them. Tensors are stacked, lists run along the batch.

    Attributes:
        decoded: the rows they were made from.
        images: H,W,3 uint8 each, at the image's size.
        maps: H,W float32 each: inverse depth or disparity of the image, whatever the geometry asks for.
        refined: H,W float32 each: the same with its edges on those of the image; `maps` where the method refines none.
        depths: h,w float32 each: inverse depth of the image as the estimator gives it; None where the row has a map.
        conditional: B,n,c text embeddings.
        unconditional: the same of the negative prompt; steps,B,n,c where they were optimised.
        condition: B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net; None for any other.
        usable: B bool, False where anything was NaN or infinite.
        evaluations: B, U-Net evaluations that went into each.
    """

    decoded: list[DecodedRow]
    images: list[Image]
    maps: list[Tensor]
    refined: list[Tensor]
    depths: list[Tensor | None]
    conditional: Tensor
    unconditional: Tensor
    condition: Tensor | None
    usable: Tensor
    evaluations: Tensor

    def take(self, indices: list[int]) -> Self:
        """Select some of them, in any order, also repeatedly."""
        at = torch.tensor(indices, device=self.conditional.device)
        return replace(
            self,
            decoded=[self.decoded[i] for i in indices],
            images=[self.images[i] for i in indices],
            maps=[self.maps[i] for i in indices],
            refined=[self.refined[i] for i in indices],
            depths=[self.depths[i] for i in indices],
            conditional=self.conditional[at],
            unconditional=self.unconditional.index_select(self.unconditional.dim() - 3, at),
            condition=None if self.condition is None else self.condition[at],
            usable=self.usable[at],
            evaluations=self.evaluations[at.cpu()],
        )


@dataclass(frozen=True)
class DiffusedLeftViews(LeftViews):
    """Left views whose latents are known at every step, for a method that diffuses both views together.

    Attributes:
        trajectory: their latents.
    """

    trajectory: Trajectory

    def take(self, indices: list[int]) -> Self:
        """Select some of them, in any order, also repeatedly."""
        at = torch.tensor(indices, device=self.conditional.device)
        return replace(super().take(indices), trajectory=self.trajectory.take(at))


class Guidance(NamedTuple):
    """Guidance scales of one row; 1 needs no second half of a batch.

    Attributes:
        left: scale for a left view that is denoised from noise.
        pair: scale for the right view, and for a left view that is denoised from its inversion.
        mask: scale for what the mask of a photo is filled with.
    """

    left: float
    pair: float
    mask: float


class _Batch(NamedTuple):
    """What the left views of one batch are made with."""

    decoded: list[DecodedRow]
    conditional: Tensor
    unconditional: Tensor
    solver: Solver
    condition: Tensor | None
    guidance: Guidance


class _Made(NamedTuple):
    """The left views of a batch as their source gives them.

    Attributes:
        images: H,W,3 uint8 each.
        usable: B bool.
        trajectory: their latents; None for photos of a baseline, which needs none.
        unconditional: embeddings of the negative prompt that all further steps use.
        evaluations: B, U-Net evaluations that went into each.
    """

    images: list[Image]
    usable: Tensor
    trajectory: Trajectory | None
    unconditional: Tensor
    evaluations: Tensor


class LeftViewMaker:
    """Makes the left views of one batch after the other.

    Args:
        sd: Stable Diffusion.
        depth: finds the depth of images whose rows give none.
        recipe: resolved.
    """

    def __init__(self, sd: StableDiffusion, depth: DepthEstimator, recipe: Recipe) -> None:
        self.sd = sd
        self.depth = depth
        self.method = recipe.method

    def make(self, decoded: list[DecodedRow], guidance: Guidance) -> LeftViews:
        """Make the left views of rows of one working size; `DiffusedLeftViews` where the method diffuses the pair.

        Args:
            decoded: the rows of one batch.
            guidance: guidance scales of these rows.
        """
        conditional = self.sd.encode_prompts([one.row.prompt for one in decoded])
        unconditional = self.sd.encode_prompts([one.row.negative_prompt for one in decoded])
        solver = Solver.of(self.sd.scheduler_config, self.method.steps, self.method.scheduler)
        batch = _Batch(decoded, conditional, unconditional, solver, self._condition(decoded), guidance)
        photos = [one.source for one in decoded if isinstance(one.source, Photo)]
        made = self._from_photos(batch, photos) if photos else self._from_noise(batch)
        found = self._maps(decoded, made.images)
        known = [bool(torch.isfinite(values).all()) for values in found]
        usable = made.usable & torch.tensor(known, device=made.usable.device)
        found = [v if fine else v.nan_to_num(0.0, 0.0, 0.0) for v, fine in zip(found, known, strict=True)]
        maps = _with_images(at_size_of, found, made.images)
        if made.trajectory is not None:
            usable = usable & finite(made.trajectory.final)
        views = LeftViews(
            decoded,
            made.images,
            maps,
            _with_images(_refined, found, made.images) if self.method.refines_edges else maps,
            [v if one.map is None else None for v, one in zip(found, decoded, strict=True)],
            conditional,
            made.unconditional,
            batch.condition,
            usable,
            made.evaluations,
        )
        if made.trajectory is None or not self.method.diffuses_pair:
            return views
        return DiffusedLeftViews(**vars(views), trajectory=made.trajectory)

    def _from_noise(self, batch: _Batch) -> _Made:
        """Denoise each row's noise; with `two_pass` the image is then inverted as a photo would be."""
        model = self._model(batch, batch.guidance.left)
        keep = None if self.method.two_pass else self._keep(batch, model)
        trajectory = denoise(model, batch.solver, stack_noise(self.sd, batch.decoded), batch.condition, keep=keep)
        images, usable = decode(self.sd, trajectory.final, batch.decoded)
        if self.method.two_pass and self.method.diffuses_pair:
            return self._inverted(batch, images, usable, trajectory.evaluations)
        return _Made(images, usable, trajectory, batch.unconditional, trajectory.evaluations)

    def _from_photos(self, batch: _Batch, photos: list[Photo]) -> _Made:
        """Take the photos, filled first where they are masked; inverted where the method diffuses the pair."""
        images = [photo.image for photo in photos]
        usable = torch.ones(len(photos), dtype=torch.bool, device=self.sd.device)
        evaluations = torch.zeros(len(photos), dtype=torch.int64)
        masked = [photo for photo in photos if isinstance(photo, MaskedPhoto)]
        if masked:
            images, usable, evaluations = self._fill_masks(batch, masked)
        if self.method.diffuses_pair:
            return self._inverted(batch, images, usable, evaluations)
        return _Made(images, usable, None, batch.unconditional, evaluations)

    def _inverted(self, batch: _Batch, images: list[Image], usable: Tensor, evaluations: Tensor) -> _Made:
        """Find the latents of images (Sec. 3.4); where sampling makes them, the views are what it shows."""
        inside = [one.letterbox.image_into(image) for one, image in zip(batch.decoded, images, strict=True)]
        x_0 = self.sd.encode(stack(self.sd, inside))
        trajectory, unconditional, spent = self._invert(x_0, batch)
        if self.method.samples_photo:
            images, reconstructed = decode(self.sd, trajectory.final, batch.decoded)
            usable = usable & reconstructed
        return _Made(images, usable, trajectory, unconditional, evaluations + spent)

    def _invert(self, x_0: Tensor, batch: _Batch) -> tuple[Trajectory, Tensor, Tensor]:
        """Invert x_0: its latents, the unconditional embeddings of all further steps, and evaluations of each: B."""
        solver, condition = batch.solver, batch.condition
        pivot = self._latents_of(x_0, batch, keep=not self.method.samples_photo)
        if not self.method.samples_photo:
            return pivot, batch.unconditional, pivot.evaluations
        model = self._model(batch, batch.guidance.pair)
        if self.method.inversion == "ddim":
            left = denoise(model, solver, pivot.latents[0], condition, keep=self._keep(batch, model))
            return left, batch.unconditional, pivot.evaluations + left.evaluations
        found = null_text(model, solver, pivot, iterations=self.method.null_text_iterations, condition=condition)
        return found.left, found.embeddings, pivot.evaluations + found.left.evaluations

    def _latents_of(self, x_0: Tensor, batch: _Batch, *, keep: bool = False) -> Trajectory:
        """Find latents of x_0 at every level, by DDIM inversion or by noising it; keep what the pair will need."""
        if self.method.inversion == "renoise":
            return renoised(batch.solver, x_0, stack_noise(self.sd, batch.decoded))
        model = self._model(batch, 1.0)
        kept = self._keep(batch, model) if keep else None
        return ddim_inversion(model, batch.solver, x_0, batch.condition, keep=kept)

    def _keep(self, batch: _Batch, model: GuidedUNet) -> Keep | None:
        """What the pair will need of the left view's denoising; None where it needs nothing, or more than is run."""
        halves = self._model(batch, batch.guidance.pair).evaluations_per_view
        if not self.method.keeps_left or halves > model.evaluations_per_view:
            return None
        return Keep(self.method.attention_start, halves)

    def _fill_masks(self, batch: _Batch, masked: list[MaskedPhoto]) -> tuple[list[Image], Tensor, Tensor]:
        """Fill the masks of photos by the masked denoise (Sec. 5, Fig. 8).

        Returns:
            The images, B bool which hold no NaN, and B U-Net evaluations of each.
        """
        decoded, solver = batch.decoded, batch.solver
        pairs = list(zip(decoded, masked, strict=True))
        masks = stack(self.sd, [one.letterbox.map_into(_as_tensor(photo.mask)) for one, photo in pairs])
        photos = stack(self.sd, [one.letterbox.image_into(photo.image) for one, photo in pairs])
        grid = functional.adaptive_max_pool2d(masks, grid_of(self.sd, decoded)) > 0  # any latent it touches is redrawn
        # The latents of what stands outside must not know what stood inside, nor its mean colour.
        keep = (masks <= 0.5)[:, None]
        mean = (photos * keep).sum((-2, -1), keepdim=True) / keep.sum((-2, -1), keepdim=True).clamp_min(1)
        outside = torch.where(keep, photos, mean)
        known = self._latents_of(self.sd.encode(outside), batch)
        guided = self._model(batch, batch.guidance.mask)
        inpainted = denoise_within(guided, solver, stack_noise(self.sd, decoded), known, mask=grid)
        filled = self.sd.decode(inpainted.x_0)
        images = []
        for (one, photo), pixels in zip(pairs, filled, strict=True):
            drawn = to_tensor(one.letterbox.image_back(pixels[None]))
            outside = ~torch.from_numpy(photo.mask)[None]
            images.append(to_image(composite(to_tensor(photo.image), outside, drawn, outside)))
        return images, finite(filled), known.evaluations + inpainted.evaluations

    def _model(self, batch: _Batch, guidance_scale: float) -> GuidedUNet:
        return GuidedUNet(self.sd.unet, batch.conditional, batch.unconditional, guidance_scale)

    def _condition(self, decoded: list[DecodedRow]) -> Tensor | None:
        """Depth as a depth-conditioned U-Net takes it: B,1,h,w in [-1, 1], from the rows' maps or guides."""
        if not self.sd.depth_conditioned:
            return None
        guides = [one.source.guide if isinstance(one.source, GuidedNoise) else None for one in decoded]
        found = self._maps(decoded, guides)
        maps = [v if guide is None else at_size_of(v, guide) for guide, v in zip(guides, found, strict=True)]
        grid = grid_of(self.sd, decoded)
        on_grid = [
            resize(one.letterbox.map_into(values[None]), grid) for one, values in zip(decoded, maps, strict=True)
        ]
        return 2 * relative_disparity(torch.cat(on_grid))[:, None] - 1

    def _maps(self, decoded: list[DecodedRow], images: Sequence[Image | None]) -> list[Tensor]:
        """Find what the shift is made of: the row's own map, H,W, else inverse depth at the estimator's own size."""
        given = [None if one.map is None else torch.from_numpy(one.map).to(self.sd.device) for one in decoded]
        some = next((image for image, values in zip(images, given, strict=True) if values is None), None)
        if some is None:
            return [values for values in given if values is not None]
        # Always a whole batch: the estimator's numbers depend on the batch shape, too.
        estimated = self.depth.inverse_depth([some if image is None else image for image in images])
        return [e if values is None else values for e, values in zip(estimated, given, strict=True)]


def at_size_of(values: Tensor, image: Image) -> Tensor:
    """Resize a map to the size of its image: h,w -> H,W."""
    return resize(values[None], (image.shape[0], image.shape[1]))[0]


def _refined(values: Tensor, image: Image) -> Tensor:
    """Resize a map to the size of its image, its edges on those of the image: h,w -> H,W."""
    picture = torch.from_numpy(image).to(values.device).permute(2, 0, 1)[None]  # H,W,3 -> 1,3,H,W
    return refine(values[None], picture)[0]


def _with_images(
    work: Callable[[Tensor, Image], Tensor], maps: Sequence[Tensor], images: Sequence[Image]
) -> list[Tensor]:
    """Apply `work` to each map and its image; those that pad a batch share their result, too."""
    made: list[Tensor] = []
    for i, (values, image) in enumerate(zip(maps, images, strict=True)):
        again = i > 0 and image is images[i - 1] and values is maps[i - 1]
        made.append(made[-1] if again else work(values, image))
    return made


def _as_tensor(mask: Bools) -> Tensor:
    """H,W bool -> 1,H,W float32."""
    return torch.from_numpy(mask.astype(np.float32))[None]


# --- Between images and latents, for whole batches ---


def grid_of(sd: StableDiffusion, decoded: Sequence[DecodedRow]) -> tuple[int, int]:
    """Height and width of the latents of rows of one working size."""
    height, width = decoded[0].letterbox.working
    return height // sd.latent_factor, width // sd.latent_factor


def stack(sd: StableDiffusion, parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors of single images, 1,... each -> B,... on the models' device."""
    return torch.cat(list(parts)).to(sd.device)


class Stream(IntEnum):
    """What a row draws noise for; each stream of a seed is independent of all others."""

    START = 0
    """The noise that the left view is denoised from: that of `torch.manual_seed(seed)`, as elsewhere."""
    HOLES = 1
    REPAINT = 2
    DETAIL = 3


def noise_generator(seed: int, stream: Stream) -> torch.Generator:
    """Return the generator of one stream of a row's seed, on the CPU: alike for every device."""
    if stream is not Stream.START:
        # Neighbouring seeds are as common as any others, so that one added to a seed is another row's noise.
        seed = int.from_bytes(hashlib.sha256(f"{seed}:{stream.value}".encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def stack_noise(sd: StableDiffusion, decoded: Sequence[DecodedRow], stream: Stream = Stream.START) -> Tensor:
    """Draw unit noise on the latent grid, B,4,h,w, from each row's seed."""
    shape = (1, sd.latent_channels, *grid_of(sd, decoded))
    return stack(sd, [torch.randn(shape, generator=noise_generator(one.row.seed, stream)) for one in decoded])


def decode(sd: StableDiffusion, latents: Tensor, decoded: Sequence[DecodedRow]) -> tuple[list[Image], Tensor]:
    """Decode latents B,4,h,w -> images at their own sizes, and B bool, which of them hold no NaN; NaN becomes black."""
    pixels = sd.decode(latents)
    images = [one.letterbox.image_back(image[None].nan_to_num(0.0)) for one, image in zip(decoded, pixels, strict=True)]
    return images, finite(pixels)


def finite(x: Tensor) -> Tensor:
    """Tell which samples are finite throughout. B,... -> B bool."""
    return torch.isfinite(x).flatten(1).all(1)
