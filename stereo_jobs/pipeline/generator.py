"""Rows in, stereo pairs out: the one function that a notebook, `--local`, Ray and evaluation all call."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from stereo_jobs.data.images import InputError
from stereo_jobs.data.manifest import INPUTS
from stereo_jobs.models.clip import ClipScorer
from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.files import fetch
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.models.safety import SafetyChecker
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.notebook import NotebookCalls
from stereo_jobs.pipeline.baseline_view import BaselineViewMaker
from stereo_jobs.pipeline.batching import batches, left_of
from stereo_jobs.pipeline.inputs import Scene, read_scene
from stereo_jobs.pipeline.left_view import LeftViewMaker
from stereo_jobs.pipeline.right_view import RightViewMaker
from stereo_jobs.records import Row, RowError, StereoPair
from stereo_jobs.spec import DEMO, Mode, Recipe, parse_recipe

log = logging.getLogger(__name__)
T = TypeVar("T")


class StereoPipeline(NotebookCalls):
    """Loaded models and one recipe; results depend on a row and the recipe, never on calls before or neighbours.

    In a notebook: `StereoPipeline.from_pretrained()("a red circle on the left, green floor, grey wall")`.

    Args:
        stable_diffusion: makes the images.
        depth: estimates inverse depth on the left image.
        recipe: resolved, with its size written out.
        batch_size: every network call has this batch shape, short batches are padded: float results depend on
            the shape (about 1e-6), so a row's result then does not depend on its neighbours.
        safety: says which images are unsafe; None leaves that open.
        clip: compares the views with the prompt; None leaves that open.
    """

    def __init__(
        self,
        stable_diffusion: StableDiffusion,
        depth: DepthEstimator,
        recipe: Recipe,
        batch_size: int,
        *,
        safety: SafetyChecker | None = None,
        clip: ClipScorer | None = None,
    ) -> None:
        if recipe.size is None:
            raise ValueError("the recipe must be resolved: its size is not written out")
        self.sd = stable_diffusion
        self.depth = depth
        self.recipe = recipe
        self.method = recipe.method
        self.batch_size = batch_size
        self.inputs: tuple[str, ...] = INPUTS[recipe.mode]
        """Image columns of the manifest that this mode reads."""
        self.safety = safety
        self.clip = clip
        self._reported: set[str] = set()
        self._reported_cut = False
        self._others: dict[Mode, StereoPipeline] = {}

    @classmethod
    def from_pretrained(
        cls, stable_diffusion: str = DEMO, *, depth: str | None = None, device: str = "auto", **recipe: Any
    ) -> "StereoPipeline":
        """Load models for single calls: `pipeline(prompt)`, `.from_image(...)`, `.from_depth(...)`.

        Args:
            stable_diffusion: a folder in diffusers format, a Hub id, or `demo`.
            depth: a folder in transformers format, a Hub id, or `demo`; to be named for any other `stable_diffusion`.
            device: `auto`, `cuda` or `cpu`.
            recipe: fields of a job's recipe, such as `method={"preset": "official"}`, `size` or `negative_prompt`.

        Raises:
            SpecError: a field is wrong.
            ModelError: a model cannot be used.
        """
        models = {"stable_diffusion": {"path": stable_diffusion}}
        if depth is not None:
            models["depth"] = {"path": depth}
        resolved = resolve_recipe(parse_recipe({"models": models} | recipe))
        return cls.load(resolved, choose_device(device), batch_size=1)

    def for_mode(self, mode: Mode) -> "StereoPipeline":
        """The same recipe in another mode, loaded when it is first used."""
        if mode == self.recipe.mode:
            return self
        if mode not in self._others:
            sd = self.recipe.models.stable_diffusion
            if sd.path == DEMO:  # which has a checkpoint of its own for depth
                sd = sd.model_copy(update={"revision": None})
            models = self.recipe.models.model_copy(update={"stable_diffusion": sd})
            recipe = resolve_recipe(self.recipe.model_copy(update={"mode": mode, "models": models}))
            if "depth" in (mode, self.recipe.mode):
                self._others[mode] = self.load(recipe, self.sd.device, self.batch_size)
            else:  # the same checkpoint
                self._others[mode] = StereoPipeline(
                    self.sd, self.depth, recipe, self.batch_size, safety=self.safety, clip=self.clip
                )
        return self._others[mode]

    @classmethod
    def load(cls, recipe: Recipe, device: str, batch_size: int) -> "StereoPipeline":
        """Load the models of a resolved recipe."""
        sd, depth, clip = recipe.models.stable_diffusion, recipe.models.depth, recipe.models.clip
        safety = None
        if recipe.models.safety_checker:
            folder = fetch(sd, recipe.mode, safety_checker=True)
            safety = SafetyChecker.load(folder, getattr(torch, sd.dtype), device, sd.variant)
        return cls(
            StableDiffusion.load(sd, device, recipe.mode),
            DepthEstimator.load(depth, device),
            recipe,
            batch_size,
            safety=safety,
            clip=None if clip is None else ClipScorer.load(clip, device),
        )

    @torch.no_grad()
    def generate(self, rows: Sequence[Row]) -> list[StereoPair | RowError]:
        """StereoDiffusion (Fig. 1) from text, depth or photos: a pair or an error for every row, in order."""
        results: dict[str, StereoPair | RowError] = {}
        scenes: dict[str, Scene] = {}
        groups: dict[tuple[tuple[int, int], float, float], list[Row]] = {}
        for row in rows:
            if row.error:
                results[row.id] = row.error
                continue
            try:
                scenes[row.id] = read_scene(row, self.recipe, self.sd.size_multiple)
            except InputError as error:
                results[row.id] = RowError(row.id, "InvalidRow", str(error))
                continue
            self._report_unread(row)
            # A network call has one size, and runs one or both halves of the guidance for all of its rows.
            groups.setdefault((scenes[row.id].letterbox.working, *self._guidance(row)), []).append(row)
        for (_, *guidance), group in groups.items():
            for batch in batches(group, self.batch_size):
                for result in self._generate([scenes[row.id] for row in batch], *guidance):
                    results[result.id] = result
        return [results[row.id] for row in rows]

    def _generate(self, scenes: list[Scene], guidance: float, mask_guidance: float) -> list[StereoPair | RowError]:
        """Pairs of a batch: at most `batch_size` left views, each with the right views of all its rows."""
        unique = list({left_of(scene.row): scene for scene in scenes}.values())
        index = {left_of(scene.row): i for i, scene in enumerate(unique)}
        maker = LeftViewMaker(self.sd, self.depth, self.recipe)
        lefts = maker.make(_padded(unique, self.batch_size), guidance, mask_guidance)
        rights = (RightViewMaker if self.method.diffuses_pair else BaselineViewMaker)(self.sd, self.recipe)
        results: list[StereoPair | RowError] = []
        for start in range(0, len(scenes), self.batch_size):
            part = [scene.row for scene in scenes[start : start + self.batch_size]]
            chosen = _padded([index[left_of(row)] for row in part], self.batch_size)
            made = list(rights.make(part, lefts.take(chosen), guidance))
            results += self._with_clip(self._with_depth(made), part)
        truths = {scene.row.id: scene for scene in scenes}
        return [self._checked(_with_truth(result, truths[result.id])) for result in results]

    def _with_depth(self, results: list[StereoPair | RowError]) -> list[StereoPair | RowError]:
        """The same pairs with what the estimator sees in their finished left views, for quality control."""
        shown = self._to_measure(results)
        if not shown:
            return results
        depths = self.depth.inverse_depth([pair.left for pair in shown])
        mirrored = self.depth.inverse_depth([np.ascontiguousarray(pair.left[:, ::-1]) for pair in shown])
        return [
            dataclasses.replace(
                result,
                depth=np.asarray(depths[i].cpu().numpy(), np.float32),
                mirrored_depth=np.asarray(mirrored[i].cpu().numpy(), np.float32),
            )
            if isinstance(result, StereoPair)
            else result
            for i, result in enumerate(results)
        ]

    def _with_clip(self, results: list[StereoPair | RowError], rows: list[Row]) -> list[StereoPair | RowError]:
        """The same pairs with the CLIP scores of both views, for quality control; rows without a prompt have none."""
        shown = self._to_measure(results)
        if not shown or self.clip is None:
            return results
        prompts = [row.prompt for row in _padded(rows, self.batch_size)]
        lefts = self.clip.scores([pair.left for pair in shown], prompts)
        rights = self.clip.scores([pair.right for pair in shown], prompts)
        return [
            dataclasses.replace(result, clip_left=lefts[i], clip_right=rights[i])
            if isinstance(result, StereoPair) and rows[i].prompt.strip()
            else result
            for i, result in enumerate(results)
        ]

    def _to_measure(self, results: list[StereoPair | RowError]) -> list[StereoPair]:
        """The pairs as a whole batch, each at its own place, so that a failed neighbour changes nothing.

        Some pair stands in the places of failed ones. Empty where there is none, and where quality control is off.
        """
        pairs = {i: result for i, result in enumerate(results) if isinstance(result, StereoPair)}
        if not pairs or not self.recipe.quality.enabled:
            return []
        some = next(iter(pairs.values()))
        return [pairs.get(i, some) for i in range(self.batch_size)]

    def _checked(self, result: StereoPair | RowError) -> StereoPair | RowError:
        """The same pair with the safety checker's verdict on either view."""
        if self.safety is None or isinstance(result, RowError):
            return result
        return dataclasses.replace(result, unsafe=any(self.safety.flags(np.stack([result.left, result.right]))))

    def _guidance(self, row: Row) -> tuple[float, float]:
        """Guidance of one row's views, and of what its mask is filled with.

        With equal prompts both halves say the same, unless one of them is optimised.
        """
        method, photo, equal = self.method, self.recipe.mode in ("image", "inpaint"), row.prompt == row.negative_prompt
        views = method.photo_guidance_scale if photo else method.guidance_scale
        optimised = photo and method.diffuses_pair and method.inversion == "null_text"
        mask = method.guidance_scale if self.recipe.mode == "inpaint" else 1.0
        return 1.0 if equal and not optimised else views, 1.0 if equal else mask

    def _report_unread(self, row: Row) -> None:
        """Say what of a prompt the model does not see: each unknown word once, and the first prompt that is cut."""
        for word in self.sd.unknown_words(row.prompt):
            if word not in self._reported:
                self._reported.add(word)
                log.warning(
                    "row %s: the model does not know the word %r and draws nothing for it",
                    *(row.id, word),
                    extra={"row": row.id},
                )
        if not self._reported_cut and self.sd.truncated(row.prompt):
            self._reported_cut = True
            log.warning(
                "row %s: the model reads %d tokens and not the rest of this prompt; further long prompts are cut "
                "without a word",
                *(row.id, self.sd.prompt_tokens),
                extra={"row": row.id},
            )


def choose_device(name: str) -> str:
    """`auto` is CUDA where there is a GPU."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _with_truth(result: StereoPair | RowError, scene: Scene) -> StereoPair | RowError:
    """The same pair with what its row says of the true right view."""
    if isinstance(result, RowError) or scene.true_right is None:
        return result
    return dataclasses.replace(
        result,
        true_right=scene.true_right,
        true_hole_right=scene.true_hole_right,
        true_known_right=scene.true_known_right,
    )


def _padded(items: list[T], size: int) -> list[T]:
    return items + items[-1:] * (size - len(items))
