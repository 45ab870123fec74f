"""Denoising of the left view and of the pair (StereoDiffusion, Eq. 1, Sec. 3.2, Eq. 6-8), and inpainting (Sec. 5).

Symbols: `x` is the paper's latent x_t, stacked as V,B,4,h,w with V = 1 view or 2 (left, right). `i` counts denoising
steps from 0; noise levels are numbered in the same way: `x` at level i enters step i.

Until the shift both views share one latent, and with `uni` attention the left never depends on the right. Therefore
the left is denoised once and its latents are kept (`Trajectory`); depth is estimated on the finished left; then only
the steps after the shift run for the pair. What the right view attends to is kept as well (`KeptInputs`), so that these
steps need the right view alone. A text pair of 50 guided steps, shifted after step 10, takes 100 + 78 = 178 U-Net
evaluations and gives the same numbers as the 300 of the published code. Where nothing was kept, both views are run:
100 + 156 = 256.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stereo_jobs.stereo.attention import InputRecorder, Keep, KeptInputs, pair_context, self_attention
from stereo_jobs.stereo.config import MethodConfig
from stereo_jobs.stereo.solver import Solver
from stereo_jobs.stereo.warp import ForwardWarp


class GuidedUNet:
    """Classifier-free guidance (Ho and Salimans 2022) around a U-Net: the noise predictor epsilon_theta of Eq. 1.

    Args:
        unet: a diffusers conditional U-Net.
        conditional: B,n,c text embeddings.
        unconditional: B,n,c embeddings of the negative prompt, or one set for each step: steps,B,n,c.
        guidance_scale: w; at 1 the unconditional half of the batch is not run at all.
    """

    def __init__(self, unet: nn.Module, conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> None:
        self.unet = unet
        self.guidance_scale = guidance_scale
        self.conditional = conditional
        self.unconditional = unconditional

    @property
    def evaluations_per_view(self) -> int:
        """U-Net evaluations that one prediction takes for one view of one sample: 2, or 1 at guidance 1."""
        return 1 if self.guidance_scale == 1 else 2

    def __call__(self, x: Tensor, i: int, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the noise (or v) of `x`, V,B,4,h,w; returns the same shape in float32.

        Args:
            x: latents of the views.
            i: index of the step, for embeddings that differ by step.
            timestep: the step's timestep, as the U-Net counts.
            condition: V,B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net.
        """
        text = [self.conditional]
        if self.evaluations_per_view == 2:
            text.insert(0, self.unconditional if self.unconditional.dim() == 3 else self.unconditional[i])
        halves = self.predict(x, timestep, text, condition)
        if len(halves) == 1:
            return halves[0]
        without, with_text = halves[0], halves[1]
        return without + self.guidance_scale * (with_text - without)

    def predict(self, x: Tensor, timestep: Tensor, text: Sequence[Tensor], condition: Tensor | None = None) -> Tensor:
        """Predict once for each set of embeddings, without guidance: len(text),V,B,4,h,w float32."""
        views = x.shape[0]
        inputs = x if condition is None else torch.cat([x, condition], 2)  # V,B,4,h,w -> V,B,5,h,w
        flat = inputs.flatten(0, 1).to(self.conditional.dtype)  # V,B,c,h,w -> V*B,c,h,w
        words = torch.cat([half.repeat(views, 1, 1).to(flat.dtype) for half in text])
        out = self.unet(torch.cat([flat] * len(text)), timestep, encoder_hidden_states=words).sample
        return out.float().reshape(len(text), *x.shape)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Trajectory:
    """All latents of one view, from noise to x_0.

    Attributes:
        latents: steps+1,B,4,h,w; `latents[i]` enters step i, `latents[-1]` is x_0.
        clean: steps,B,4,h,w, x_0 as each step predicted it: the history of a multistep sampler.
        evaluations: B int64 on the CPU, U-Net evaluations that each sample took.
        kept: what its self-attention layers were given in the steps of the pair; None where that is not known.
    """

    latents: Tensor
    clean: Tensor
    evaluations: Tensor
    kept: KeptInputs | None = None

    @property
    def final(self) -> Tensor:
        """x_0, B,4,h,w."""
        return self.latents[-1]

    def take(self, rows: Tensor) -> "Trajectory":
        """The trajectories of some samples of the batch, by their indices."""
        kept = None if self.kept is None else self.kept.take(rows)
        return Trajectory(self.latents[:, rows], self.clean[:, rows], self.evaluations[rows.cpu()], kept)


@dataclass(frozen=True)
class ViewShift:
    """Stereo Pixel Shift (StereoDiffusion, Sec. 3.1) of latents at any noise level into one view.

    Attributes:
        warp: the shift on the latent grid.
        filled: B,h,w bool, where the left view gives this view's latents; diffusion fills the rest.
        clean: B,4,h,w, x_0 of this view with its holes filled from the background; None where nothing needs it.
        noise: B,4,h,w unit noise for the holes.
        split: shift x_0 and the noise separately: x_0 is `clean`, and the noise moves by whole pixels, so that it
            stays white and keeps its full variance.
    """

    warp: ForwardWarp
    filled: Tensor
    clean: Tensor | None = None
    noise: Tensor | None = None
    split: bool = False

    def begin(self, solver: Solver, i: int, x: Tensor, x_0: Tensor, fill: str) -> Tensor:
        """The view's whole latent at level i, from the left's `x` at that level and its `x_0`.

        Raises:
            ValueError: `fill` needs `noise` or `clean`, which this shift lacks.
        """
        if fill == "zero":
            holes = torch.zeros_like(x)
        elif fill == "noise":
            holes = _given(self.noise, "fill: noise (Deblur, Eq. 8) needs unit noise")
        else:
            clean = _given(self.clean, f"fill: {fill} needs a filled x_0")
            holes = solver.renoise(clean, _given(self.noise, f"fill: {fill} needs unit noise"), i)
        return self.copy(solver, i, x, x_0, holes)

    def copy(self, solver: Solver, i: int, x: Tensor, x_0: Tensor, view: Tensor) -> Tensor:
        """Symmetric Pixel Shift Masking Denoise (Sec. 3.2): write the left's latents over the view's where M.

        Args:
            solver: noise levels.
            i: level of `x` and `view`.
            x: B,4,h,w latent of the left view.
            x_0: B,4,h,w, the left's final x_0.
            view: B,4,h,w latent of this view.
        """
        if self.split:
            clean = _given(self.clean, "a sub-pixel warp needs the warped x_0")
            noise = self.warp.nearest(solver.noise_of(x, x_0, i), 0.0 if self.noise is None else self.noise)
            moved = solver.renoise(clean, noise, i)
        else:
            moved = self.warp(x)
        return torch.where(self.filled[:, None], moved, view)

    def history(self, x_0: Tensor, view: Tensor | None) -> Tensor:
        """The x_0 that a step predicted for the left, shifted; holes keep the view's own prediction, or the fill."""
        into = view if view is not None else self.clean if self.clean is not None else torch.zeros_like(x_0)
        return torch.where(self.filled[:, None], self.warp(x_0, into), into)


@dataclass(frozen=True)
class PairLatents:
    """Final latents of both views.

    Attributes:
        left: B,4,h,w.
        right: B,4,h,w.
        evaluations: U-Net evaluations for each pair, without those of the first left.
    """

    left: Tensor
    right: Tensor
    evaluations: int


@dataclass(frozen=True)
class Inpainted:
    """What inpainting returns.

    Attributes:
        x_0: B,4,h,w.
        evaluations: U-Net evaluations for each sample.
    """

    x_0: Tensor
    evaluations: int


def denoise(
    model: GuidedUNet, solver: Solver, x: Tensor, condition: Tensor | None = None, *, keep: Keep | None = None
) -> Trajectory:
    """Sampling of one view (StereoDiffusion, Eq. 1); every latent is kept.

    Args:
        model: noise predictor.
        solver: the steps.
        x: B,4,h,w, the noise to start from.
        condition: B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net.
        keep: which inputs of self-attention to keep; None: none.

    Raises:
        ValueError: more halves of guidance are to be kept than the model runs.
    """
    recorder = InputRecorder(torch.arange(len(x), device=x.device), keep)
    latents, clean = [x], None
    history = []
    with recorder.installed(model.unet):
        for i, timestep in enumerate(solver.timesteps):
            recorder.begin(i)
            output = model(latents[-1][None], i, timestep, _views(condition))[0]
            following, clean = solver.step(i, latents[-1], output, clean)
            latents.append(following)
            history.append(clean)
    evaluations = torch.full((len(x),), solver.steps * model.evaluations_per_view)
    return Trajectory(torch.stack(latents), torch.stack(history), evaluations, recorder.kept)


def denoise_within(
    model: GuidedUNet, solver: Solver, x: Tensor, known: Trajectory, *, mask: Tensor, condition: Tensor | None = None
) -> Inpainted:
    """Inpainting by masked denoise (StereoDiffusion, Sec. 5, Fig. 8): only the masked area is generated again.

    Args:
        model: noise predictor with the prompt of what shall appear.
        solver: the steps.
        x: B,4,h,w, the noise to start from.
        known: the image's trajectory.
        mask: B,h,w bool, True where the image is generated again.
        condition: B,1,h,w depth in [-1, 1] for a depth-conditioned U-Net.

    Returns:
        An x_0 that equals `known.final` outside the mask.
    """
    inside = mask[:, None]
    x, clean = torch.where(inside, x, known.latents[0]), None
    for i, timestep in enumerate(solver.timesteps):
        output = model(x[None], i, timestep, _views(condition))[0]
        x, clean = solver.step(i, x, output, clean)
        x = torch.where(inside, x, known.latents[i + 1])
    return Inpainted(x, solver.steps * model.evaluations_per_view)


def redraw(
    predict: Callable[[Tensor, int], Tensor], solver: Solver, known: Tensor, noise: Tensor, *, mask: Tensor, start: int
) -> Tensor:
    """Denoising of a finished image from a middle level (SDEdit, Meng et al. 2022), within a mask.

    Args:
        predict: the U-Net's output for a latent B,4,h,w that enters a step.
        solver: the steps.
        known: B,4,h,w, x_0 of the image.
        noise: B,4,h,w unit noise.
        mask: B,h,w bool, True where the image is drawn again.
        start: the first step.

    Returns:
        An x_0 that equals `known` outside the mask.
    """
    x, clean = solver.renoise(known, noise, start), None
    for i in range(start, solver.steps):
        x, clean = solver.step(i, x, predict(x, i), clean)
        x = torch.where(mask[:, None], x, known if i + 1 == solver.steps else solver.renoise(known, noise, i + 1))
    return x


def denoise_pair(
    model: GuidedUNet,
    solver: Solver,
    first_left: Trajectory,
    *,
    method: MethodConfig,
    to_right: ViewShift,
    to_left: ViewShift | None = None,
    conditions: Tensor | None = None,
) -> PairLatents:
    """Stereo Pixel Shift and Symmetric Pixel Shift Masking Denoise (StereoDiffusion, Sec. 3.1-3.3, Eq. 6-8).

    Args:
        model: noise predictor, with the embeddings of these B pairs.
        solver: the steps that made `first_left`.
        first_left: the left view, denoised alone.
        method: which techniques are used, and from which step.
        to_right: the shift from the left to the right view.
        to_left: with `shift_both`, the shift by the other half of the way.
        conditions: 2,B,1,h,w depth of both views for a depth-conditioned U-Net.

    Returns:
        Final latents. The left is `first_left.final` itself, unless the method changes the left.
    """
    start, x_0 = method.first_pair_step, first_left.final
    x, clean = first_left.latents[start], first_left.clean[start - 1]
    right = to_right.begin(solver, start, x, x_0, method.fill)
    left = x if to_left is None else to_left.begin(solver, start, x, x_0, method.fill)
    right_clean = to_right.history(clean, None)
    left_clean = clean if to_left is None else to_left.history(clean, None)
    evaluations = 0

    predictor = _PairPredictor(model, solver, method, first_left.kept, conditions)
    with predictor.attention(pairs=len(x)):
        for i in range(start, method.steps):
            output = predictor(i, left, right)
            evaluations += len(output) * model.evaluations_per_view
            right, right_clean = solver.step(i, right, output[-1], right_clean)
            if method.changes_left:
                left, left_clean = solver.step(i, left, output[0], left_clean)
            else:
                left, left_clean = first_left.latents[i + 1], first_left.clean[i]
            if method.recopies_after(i):
                # With `shift_both` the current left is already shifted: the copy comes from the first left.
                source = left if to_left is None else first_left.latents[i + 1]
                source_clean = left_clean if to_left is None else first_left.clean[i]
                right = to_right.copy(solver, i + 1, source, x_0, right)
                right_clean = to_right.history(source_clean, right_clean)
                if to_left is not None:
                    left = to_left.copy(solver, i + 1, source, x_0, left)
                    left_clean = to_left.history(source_clean, left_clean)
    return PairLatents(left, right, evaluations)


class _PairPredictor:
    """The noise predictor of the pair, with attention across the views (StereoDiffusion, Sec. 3.3).

    It runs both views only where it must: where the left view changes, and where the right view attends to a left one
    whose inputs were not kept.

    Args:
        model: noise predictor of single views.
        solver: the steps.
        method: says from which step which view attends to which.
        kept: the left view's inputs of self-attention in these steps; None: they are not known.
        conditions: 2,B,1,h,w depth of both views for a depth-conditioned U-Net.
    """

    def __init__(
        self,
        model: GuidedUNet,
        solver: Solver,
        method: MethodConfig,
        kept: KeptInputs | None,
        conditions: Tensor | None,
    ) -> None:
        self.model = model
        self.timesteps = solver.timesteps
        self.method = method
        self.kept = kept if method.keeps_left else None
        self.conditions = conditions
        self._attends = False
        self._left: dict[str, Tensor] = {}

    def attention(self, pairs: int) -> AbstractContextManager[None]:
        """Install the attention of Alg. 1 once for all steps of `pairs` pairs."""
        if self.method.attention == "off":
            return nullcontext()
        together = pair_context(self.method.attention, pairs)

        def context(layer: str, hidden_states: Tensor) -> Tensor | None:
            if not self._attends:
                return None
            return self._left[layer] if self.kept else together(layer, hidden_states)

        return self_attention(self.model.unet, context)

    def __call__(self, i: int, left: Tensor, right: Tensor) -> Tensor:
        """Predict the noise of both views or of the right one alone, B,4,h,w each: 2 or 1,B,4,h,w."""
        self._attends = self.method.attention != "off" and i >= self.method.attention_start
        if self._attends and self.kept:
            self._left = self.kept.at(i)
        if self.method.changes_left or (self._attends and not self.kept):
            return self.model(torch.stack([left, right]), i, self.timesteps[i], self.conditions)
        condition = None if self.conditions is None else self.conditions[1:]
        return self.model(right[None], i, self.timesteps[i], condition)


def _views(condition: Tensor | None) -> Tensor | None:
    """B,1,h,w -> 1,B,1,h,w: the condition of a single view."""
    return None if condition is None else condition[None]


def _given(value: Tensor | None, rule: str) -> Tensor:
    """The value, which a technique needs; raises ValueError with the rule where it is missing."""
    if value is None:
        raise ValueError(rule)
    return value
