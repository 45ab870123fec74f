"""The left view: denoised from noise, or taken from a photo (Sec. 3.4), and the map that its shift is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.inputs import Scene
from stereo_jobs.pixels import Image, to_image, to_tensor
from stereo_jobs.spec import Recipe
from stereo_jobs.stereo.disparity import relative_disparity, resize
from stereo_jobs.stereo.inversion import ddim_inversion, null_text
from stereo_jobs.stereo.sampler import GuidedUNet, Trajectory, denoise, denoise_within
from stereo_jobs.stereo.solver import Solver


@dataclass(frozen=True)
class LeftViews:
    """Left views and what the right views need of them. Tensors are stacked along the batch, lists run along it.

    Attributes:
        scenes: what they were made from.
        trajectory: their latents; None for photos of a baseline, which needs none.
        images: H,W,3 uint8 each, at the picture's size.
        maps: H,W float32 each: inverse depth or disparity of the picture, whatever the geometry asks for.
        conditional: B,n,c text embeddings.
        unconditional: the same of the negative prompt; steps,B,n,c where they were optimised.
        condition: B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net.
        usable: B bool, nothing in them is NaN or infinite.
        evaluations: U-Net evaluations, B.
    """

    scenes: list[Scene]
    trajectory: Trajectory | None
    images: list[Image]
    maps: list[Tensor]
    conditional: Tensor
    unconditional: Tensor
    condition: Tensor | None
    usable: Tensor
    evaluations: Tensor

    @property
    def denoised(self) -> Trajectory:
        """The latents, where the method needs them."""
        assert self.trajectory is not None
        return self.trajectory

    def take(self, indices: list[int]) -> "LeftViews":
        """The same for some of them, in another order, also repeatedly."""
        at = torch.tensor(indices, device=self.conditional.device)
        return LeftViews(
            [self.scenes[i] for i in indices],
            None if self.trajectory is None else self.trajectory.take(at),
            [self.images[i] for i in indices],
            [self.maps[i] for i in indices],
            self.conditional[at],
            self.unconditional.index_select(self.unconditional.dim() - 3, at),
            None if self.condition is None else self.condition[at],
            self.usable[at],
            self.evaluations[at.cpu()],
        )


class LeftViewMaker:
    """Makes the left views of one batch after the other.

    Args:
        sd: Stable Diffusion.
        depth: finds the depth of pictures whose rows give none.
        recipe: resolved.
    """

    def __init__(self, sd: StableDiffusion, depth: DepthEstimator, recipe: Recipe) -> None:
        self.sd = sd
        self.depth = depth
        self.mode = recipe.mode
        self.method = recipe.method

    def make(self, scenes: list[Scene], guidance: float, mask_guidance: float = 1.0) -> LeftViews:
        """The left views of scenes of one working size.

        Args:
            scenes: of one batch.
            guidance: of the left view and of the pair; 1 needs no second half of the batch.
            mask_guidance: of what masks are filled with (mode inpaint).
        """
        conditional = self.sd.encode_prompts([scene.row.prompt for scene in scenes])
        unconditional = self.sd.encode_prompts([scene.row.negative_prompt for scene in scenes])
        model = GuidedUNet(self.sd.unet, conditional, unconditional, guidance)
        solver = Solver.of(self.sd.scheduler_config, self.method.steps, self.method.scheduler)
        condition = self._condition(scenes)
        spent = torch.zeros(len(scenes), dtype=torch.int64)
        usable = torch.ones(len(scenes), dtype=torch.bool, device=self.sd.device)
        if self.mode == "inpaint":
            scenes, usable, spent = self._fill_masks(scenes, model, solver, mask_guidance)
        trajectory: Trajectory | None = None
        if all(scene.photo is None for scene in scenes):
            trajectory = denoise(model, solver, stack_noise(self.sd, scenes), condition)
            spent = spent + trajectory.evaluations
            images, usable = decode(self.sd, trajectory.final, scenes)
            if self.method.two_pass:
                scenes = [replace(scene, photo=image) for scene, image in zip(scenes, images, strict=True)]
        photos = [scene.photo for scene in scenes if scene.photo is not None]
        if photos:
            images = photos
        if photos and self.method.diffuses_pair:
            x_0 = self.sd.encode(
                stack(self.sd, [s.letterbox.into(to_tensor(p)) for s, p in zip(scenes, photos, strict=True)])
            )
            trajectory, unconditional, inverting = self._invert(x_0, model, solver, condition)
            spent = spent + inverting
            if self.method.inversion != "direct":
                images, decoded = decode(self.sd, trajectory.final, scenes)
                usable = usable & decoded
        maps = self._maps(scenes, images)
        usable = usable & torch.stack([torch.isfinite(values).all() for values in maps]).to(usable.device)
        if trajectory is not None:
            usable = usable & finite(trajectory.final)
        return LeftViews(
            scenes,
            trajectory,
            images,
            [values.nan_to_num(0.0, 0.0, 0.0) for values in maps],
            conditional,
            unconditional,
            condition,
            usable,
            spent,
        )

    def _invert(
        self, x_0: Tensor, model: GuidedUNet, solver: Solver, condition: Tensor | None
    ) -> tuple[Trajectory, Tensor, Tensor]:
        """Latents of photos (Sec. 3.4), the unconditional embeddings to go on with, and evaluations of each sample."""
        plain = GuidedUNet(self.sd.unet, model.conditional, model.unconditional, 1.0)
        pivot = ddim_inversion(plain, solver, x_0, condition)
        if self.method.inversion == "direct":
            return pivot, model.unconditional, pivot.evaluations
        if self.method.inversion == "ddim":
            left = denoise(model, solver, pivot.latents[0], condition)
            return left, model.unconditional, pivot.evaluations + left.evaluations
        found = null_text(model, solver, pivot, iterations=self.method.null_text_iterations, condition=condition)
        return found.left, found.embeddings, pivot.evaluations + found.left.evaluations

    def _fill_masks(
        self, scenes: list[Scene], model: GuidedUNet, solver: Solver, guidance: float
    ) -> tuple[list[Scene], Tensor, Tensor]:
        """Inpainting (Sec. 5, Fig. 8): photos with their masks filled, which hold no NaN, evaluations of each."""
        masks = stack(self.sd, [scene.letterbox.map_into(_mask(scene)) for scene in scenes])
        photos = stack(self.sd, [scene.letterbox.into(to_tensor(scene.given)) for scene in scenes])
        grid = functional.adaptive_max_pool2d(masks, grid_of(self.sd, scenes)) > 0  # any latent it touches is redrawn
        # The latents of what stands outside must not know what stood inside, nor its mean colour.
        keep = (masks <= 0.5)[:, None]
        mean = (photos * keep).sum((-2, -1), keepdim=True) / keep.sum((-2, -1), keepdim=True).clamp_min(1)
        outside = torch.where(keep, photos, mean)
        plain = GuidedUNet(self.sd.unet, model.conditional, model.unconditional, 1.0)
        known = ddim_inversion(plain, solver, self.sd.encode(outside))
        guided = GuidedUNet(self.sd.unet, model.conditional, model.unconditional, guidance)
        inpainted = denoise_within(guided, solver, stack_noise(self.sd, scenes), known, mask=grid)
        filled = self.sd.decode(inpainted.x_0)
        results = []
        for scene, pixels in zip(scenes, filled, strict=True):
            inside = _mask(scene)[:, None] > 0.5
            image = torch.where(inside, scene.letterbox.back(pixels[None]).cpu(), to_tensor(scene.given))
            results.append(replace(scene, photo=to_image(image)))
        return results, finite(filled), known.evaluations + inpainted.evaluations

    def _condition(self, scenes: list[Scene]) -> Tensor | None:
        """Depth as a depth-conditioned U-Net takes it: B,1,h,w in [-1, 1], from the rows' maps or pictures."""
        if not self.sd.depth_conditioned:
            return None
        maps = self._maps(scenes, [scene.guide for scene in scenes])
        grid = grid_of(self.sd, scenes)
        on_grid = [
            resize(scene.letterbox.map_into(values[None]), grid) for scene, values in zip(scenes, maps, strict=True)
        ]
        return 2 * relative_disparity(torch.cat(on_grid))[:, None] - 1

    def _maps(self, scenes: list[Scene], images: Sequence[Image | None]) -> list[Tensor]:
        """What the shift is made of, at each picture's size: the row's own map, else the estimator's inverse depth."""
        given = [None if scene.map is None else torch.from_numpy(scene.map).to(self.sd.device) for scene in scenes]
        some = next((image for image, values in zip(images, given, strict=True) if values is None), None)
        if some is None:
            return [values for values in given if values is not None]
        # Always a whole batch: the estimator's numbers depend on the batch shape, too.
        estimated = self.depth.inverse_depth([some if image is None else image for image in images])
        return [e if values is None else values for e, values in zip(estimated, given, strict=True)]


# --- Between pictures and latents, for whole batches ---


def grid_of(sd: StableDiffusion, scenes: Sequence[Scene]) -> tuple[int, int]:
    """Height and width of the latents of scenes of one working size."""
    height, width = scenes[0].letterbox.working
    return height // sd.latent_factor, width // sd.latent_factor


def stack(sd: StableDiffusion, parts: Sequence[Tensor]) -> Tensor:
    """Tensors of single pictures as one batch on the models' device."""
    return torch.cat(list(parts)).to(sd.device)


def stack_noise(sd: StableDiffusion, scenes: Sequence[Scene], stream: int = 0) -> Tensor:
    """Unit noise on the latent grid, B,4,h,w, from each row's seed: drawn on the CPU, alike on every device."""
    shape = (1, sd.latent_channels, *grid_of(sd, scenes))
    seeds = [(scene.row.seed + stream) % 2**63 for scene in scenes]
    return stack(sd, [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def decode(sd: StableDiffusion, latents: Tensor, scenes: Sequence[Scene]) -> tuple[list[Image], Tensor]:
    """Latents B,4,h,w -> images at their own sizes, and which of them hold no NaN (in the others it is black)."""
    pixels = sd.decode(latents)
    backs = [scene.letterbox.back(image[None].nan_to_num(0.0)) for scene, image in zip(scenes, pixels, strict=True)]
    return [to_image(back) for back in backs], finite(pixels)


def _mask(scene: Scene) -> Tensor:
    """1,H,W float32, 1 where it is to be filled."""
    assert scene.mask is not None
    mask: NDArray[np.float32] = scene.mask.astype(np.float32)
    return torch.from_numpy(mask)[None]


def finite(x: Tensor) -> Tensor:
    """Which samples are finite throughout. B,... -> B bool."""
    return torch.isfinite(x).flatten(1).all(1)
