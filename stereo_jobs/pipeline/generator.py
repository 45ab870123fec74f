"""Makes stereo pairs from rows: notebook, `--local` runs, Ray and evaluation all call `PairGenerator.generate`."""

import dataclasses
import logging
from collections.abc import Sequence

import torch

from stereo_jobs.data.images import InputError
from stereo_jobs.data.manifest import INPUTS
from stereo_jobs.errors import SpecError
from stereo_jobs.models.clip import ClipScorer
from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.device import NO_GPU_REMEDY
from stereo_jobs.models.files import fetch
from stereo_jobs.models.safety import SafetyChecker
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.baseline_view import BaselineViewMaker
from stereo_jobs.pipeline.batching import batches, left_of, padded
from stereo_jobs.pipeline.inputs import DecodedRow, decode_row, size_of
from stereo_jobs.pipeline.left_view import DiffusedLeftViews, Guidance, LeftViewMaker, LeftViews
from stereo_jobs.pipeline.pair import FinishedViews, labelled_pairs
from stereo_jobs.pipeline.resizing import Size
from stereo_jobs.pipeline.right_view import RightViewMaker
from stereo_jobs.pipeline.scoring import ModelScorer
from stereo_jobs.records import Row, RowError, StereoPair, find_weight
from stereo_jobs.spec import Recipe

log = logging.getLogger(__name__)


class PairGenerator:
    """Loaded models and one recipe. A result depends on its row and the recipe, never on other rows or earlier calls.

    Args:
        stable_diffusion: makes the images.
        depth: estimates inverse depth on the left image.
        recipe: resolved, with its size written out.
        batch_size: every network call has this batch shape, and short batches are padded: float results depend on
            the shape (about 1e-6), and so they do not depend on a row's neighbours.
        safety: says which images are unsafe; None leaves that open.
        clip: compares the views with the prompt; None leaves that open.

    Raises:
        ValueError: the recipe is not resolved.
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
        size_of(recipe)  # refuses a recipe that is not resolved before any row is read
        self.sd = stable_diffusion
        self.depth = depth
        self.recipe = recipe
        self.method = recipe.method
        self.batch_size = batch_size
        self.inputs: tuple[str, ...] = INPUTS[recipe.mode]
        """Image columns of the manifest that the mode reads."""
        self.safety = safety
        self.clip = clip
        self._reported: set[str] = set()
        self._reported_cut = self._reported_weight = False

    @classmethod
    def load(cls, recipe: Recipe, device: str, batch_size: int) -> "PairGenerator":
        """Load the models of a resolved recipe.

        Args:
            recipe: names the models.
            device: `cuda` or `cpu`.
            batch_size: left images per network call.

        Raises:
            ModelError: a model cannot be used.
        """
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

    def with_recipe(self, recipe: Recipe, batch_size: int) -> "PairGenerator":
        """Return a generator of another recipe with the same loaded models, which the recipe must name."""
        return PairGenerator(self.sd, self.depth, recipe, batch_size, safety=self.safety, clip=self.clip)

    def compile(self) -> None:
        """Compile U-Net and VAE, each graph at its first call. Results differ in the last bits before rounding."""
        self.sd.compile()

    def decode(self, row: Row) -> DecodedRow | RowError:
        """Decode a row's images and maps, in any thread: `generate` takes the result in place of the row."""
        if row.error:
            return row.error
        try:
            return decode_row(row, self.recipe, self.sd.size_multiple)
        except InputError as error:
            return RowError(row.id, "InvalidRow", str(error))

    @torch.no_grad()
    def generate(self, rows: Sequence[Row | DecodedRow | RowError]) -> list[StereoPair | RowError]:
        """Make stereo pairs from text, depth or photos (StereoDiffusion, Fig. 1).

        Args:
            rows: rows, or what `decode` made of them.

        Returns:
            A pair or an error for every row, in order.
        """
        results: dict[str, StereoPair | RowError] = {}
        decoded: dict[str, DecodedRow] = {}
        # A network call has one size, and runs one or both halves of the guidance for all of its rows.
        groups: dict[tuple[Size, Guidance], list[Row]] = {}
        cut: set[str] = set()
        ready = [self.decode(row) if isinstance(row, Row) else row for row in rows]
        for one in ready:
            if isinstance(one, RowError):
                results[one.id] = one
                continue
            decoded[one.row.id] = one
            if self._cut(one.row):
                cut.add(one.row.id)
            self._report_unread(one.row, cut=one.row.id in cut)
            groups.setdefault((one.letterbox.working, self._guidance(one.row)), []).append(one.row)
        for (_, guidance), group in groups.items():
            for batch in batches(group, self.batch_size):
                for result in self._generate([decoded[row.id] for row in batch], guidance):
                    if isinstance(result, StereoPair) and result.id in cut:
                        results[result.id] = dataclasses.replace(result, prompt_cut=True)
                    else:
                        results[result.id] = result
        return [results[one.id if isinstance(one, RowError) else one.row.id] for one in ready]

    def _generate(self, decoded: list[DecodedRow], guidance: Guidance) -> list[StereoPair | RowError]:
        """Make the pairs of a batch: at most `batch_size` left views, each with the right views of all its rows."""
        unique = list({left_of(one.row): one for one in decoded}.values())
        index = {left_of(one.row): i for i, one in enumerate(unique)}
        maker = LeftViewMaker(self.sd, self.depth, self.recipe)
        lefts = maker.make(padded(unique, self.batch_size), guidance)
        judged = self.recipe.quality.enabled
        scorer = ModelScorer(self.depth if judged else None, self.clip if judged else None, self.safety)
        results: list[StereoPair | RowError] = []
        for start in range(0, len(decoded), self.batch_size):
            rows = [one.row for one in decoded[start : start + self.batch_size]]
            chosen = lefts.take(padded([index[left_of(row)] for row in rows], self.batch_size))
            views = self._finished_views(rows, chosen, guidance.pair)
            made = labelled_pairs(rows, chosen, views, self.method)
            results += scorer.score(made, rows, chosen, self.batch_size)
        return results

    def _finished_views(self, rows: list[Row], lefts: LeftViews, guidance: float) -> FinishedViews:
        """Make the right views, by diffusion or by a baseline."""
        if isinstance(lefts, DiffusedLeftViews):
            return RightViewMaker(self.sd, self.recipe).make(rows, lefts, guidance)
        return BaselineViewMaker(self.sd, self.recipe).make(rows, lefts, guidance)

    def _guidance(self, row: Row) -> Guidance:
        """Choose the guidance scales of one row.

        A pair that starts from an inversion takes the inversion's guidance: with any other, its latents do not lead
        back to the left view. With equal prompts both halves of the guidance are equal, so that one is enough, unless
        one is optimised.
        """
        method, photo = self.method, self.recipe.mode in ("image", "inpaint")
        optimised = self.recipe.inverts and method.inversion == "null_text"
        left = mask = pair = method.guidance_scale
        if photo or optimised:
            pair = method.photo_guidance_scale
        elif self.recipe.inverts:
            pair = 1.0
        elif method.pair_guidance_scale is not None:
            pair = method.pair_guidance_scale
        if row.prompt == row.negative_prompt:
            left, pair, mask = 1.0, pair if optimised else 1.0, 1.0
        # What a row does not use is 1, so that it does not keep rows out of one batch.
        return Guidance(1.0 if photo else left, pair, mask if self.recipe.mode == "inpaint" else 1.0)

    def _cut(self, row: Row) -> bool:
        """Whether the text encoder reads only the beginning of the row's prompt or negative prompt."""
        return self.sd.truncated(row.prompt) or self.sd.truncated(row.negative_prompt)

    def _report_unread(self, row: Row, cut: bool) -> None:
        """Log what the model ignores of prompts: each unknown word once, and the first of each other kind."""
        for word in self.sd.unknown_words(row.prompt):
            if word not in self._reported:
                self._reported.add(word)
                self._warn(row, "the model does not know the word %r and draws nothing for it", word)
        if cut and not self._reported_cut:
            self._reported_cut = True
            self._warn(
                row,
                "the model reads %d tokens and ignores the rest of this prompt; other long prompts are only counted",
                self.sd.prompt_tokens,
            )
        weight = find_weight(row.prompt, row.negative_prompt)
        if weight and not self._reported_weight:
            self._reported_weight = True
            self._warn(
                row,
                "attention weights such as %s are not honoured, and the model reads them as text; other prompts with "
                "weights are only counted",
                weight[:80],
            )

    @staticmethod
    def _warn(row: Row, message: str, *values: object) -> None:
        log.warning("row %s: " + message, row.id, *values, extra={"row": row.id})


def choose_device(name: str) -> str:
    """Return `cuda` or `cpu`; `auto` becomes `cuda` where there is a GPU.

    Raises:
        SpecError: `cuda` is asked for, and PyTorch finds no GPU.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise SpecError(
            f"device: cuda is asked for, and PyTorch {torch.__version__} finds no GPU here; {NO_GPU_REMEDY}"
        )
    return name if name != "auto" else "cuda" if found else "cpu"
