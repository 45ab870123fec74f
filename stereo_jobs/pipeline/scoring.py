"""Scores finished pairs: by models in whole batches, then by metrics, verdict and truth on the CPU, pair by pair.

A job's worker and a notebook call the same functions, so that one pair has one set of numbers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from stereo_jobs.models.clip import ClipScorer
from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.safety import SafetyChecker
from stereo_jobs.pipeline.batching import padded
from stereo_jobs.pipeline.left_view import LeftViews
from stereo_jobs.pixels import F32, Image
from stereo_jobs.quality import truth
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.quality.measure import Metrics, measure
from stereo_jobs.quality.verdict import judge
from stereo_jobs.quality.working_size import WorkingSize
from stereo_jobs.records import (
    QUALITY_PREFIX,
    TRUE_PREFIX,
    ClipScores,
    LeftDepth,
    ModelScores,
    Row,
    RowError,
    StereoPair,
)
from stereo_jobs.stereo.disparity import resize

# --- By models, in the thread that owns them ---


@dataclasses.dataclass(frozen=True)
class ModelScorer:
    """Scores finished pairs with models. Each of them may be None; its scores are then None, too.

    Attributes:
        depth: estimates the depth of the finished left view.
        clip: compares both views with the prompt.
        safety: says whether either view is unsafe.
    """

    depth: DepthEstimator | None
    clip: ClipScorer | None
    safety: SafetyChecker | None

    def score(
        self, results: Sequence[StereoPair | RowError], rows: Sequence[Row], lefts: LeftViews, batch_size: int
    ) -> list[StereoPair | RowError]:
        """Return the same results, pairs with their `model_scores`.

        Args:
            results: at most `batch_size` pairs or errors.
            rows: the row of each result.
            lefts: the left views that the pairs were made from, at least one for each result.
            batch_size: images per network call: numbers depend on the batch shape, so that it is always whole.
        """
        pairs = {i: result for i, result in enumerate(results) if isinstance(result, StereoPair)}
        if not pairs:
            return list(results)
        # Each pair keeps its own place, so that a failed neighbour changes nothing; some pair stands in for that one.
        some = next(iter(pairs.values()))
        batch = [pairs.get(i, some) for i in range(batch_size)]
        depths, clips = self._depths(pairs, batch, lefts), self._clips(batch, rows)
        return [
            dataclasses.replace(result, model_scores=ModelScores(depths[i], clips[i], self._unsafe(result)))
            if isinstance(result, StereoPair)
            else result
            for i, result in enumerate(results)
        ]

    def _depths(
        self, pairs: Mapping[int, StereoPair], batch: list[StereoPair], lefts: LeftViews
    ) -> list[LeftDepth] | list[None]:
        """Estimate the depth of the left views, unless all of it is known from their shift, and of their mirror images.

        Args:
            pairs: the pairs by their place in the batch.
            batch: the same, with some pair in all other places.
            lefts: the left views of all places.
        """
        if self.depth is None:
            return [None] * len(batch)
        known: dict[int, Tensor] = {}
        for i, pair in pairs.items():
            depth = lefts.depths[i]
            if depth is not None and np.array_equal(pair.left, lefts.images[i]):
                known[i] = depth
        if len(known) == len(pairs):
            some = next(iter(known.values()))
            plain = _small([known.get(i, some) for i in range(len(batch))], batch)
        else:
            plain = _small(self.depth.inverse_depth([pair.left for pair in batch]), batch)
        flipped: dict[int, Image] = {}  # pairs that pad the batch share their image
        for pair in batch:
            flipped.setdefault(id(pair), np.ascontiguousarray(pair.left[:, ::-1]))
        mirrored = _small(self.depth.inverse_depth([flipped[id(pair)] for pair in batch]), batch)
        return [LeftDepth(*both) for both in zip(plain, mirrored, strict=True)]

    def _clips(self, batch: list[StereoPair], rows: Sequence[Row]) -> list[ClipScores | None]:
        """Compare both views with the prompt; None for a row without one."""
        if self.clip is None:
            return [None] * len(batch)
        prompts = [row.prompt for row in padded(rows, len(batch))]
        lefts = self.clip.scores([pair.left for pair in batch], prompts)
        rights = self.clip.scores([pair.right for pair in batch], prompts)
        return [
            ClipScores(left, right) if prompt.strip() else None
            for left, right, prompt in zip(lefts, rights, prompts, strict=True)
        ]

    def _unsafe(self, pair: StereoPair) -> bool | None:
        return None if self.safety is None else any(self.safety.flags(np.stack([pair.left, pair.right])))


def _small(depths: Sequence[Tensor], batch: Sequence[StereoPair]) -> list[F32]:
    """Resize depths to the size at which the views are compared: h,w each."""
    sizes = (WorkingSize.compared(*pair.disparity.shape) for pair in batch)
    return [
        np.asarray(resize(values[None], (size.height, size.width))[0].cpu().numpy(), np.float32)
        for values, size in zip(depths, sizes, strict=True)
    ]


# --- By metrics, on the CPU ---


def score_pair(pair: StereoPair, config: QualityConfig) -> dict[str, Any]:
    """Score one pair: the columns `qc_*`, `accepted`, `reject_reason` and `true_*`, as far as they apply to it."""
    return quality_cells(pair, config) | true_cells(pair)


def use_one_thread() -> None:
    """Let torch (in this thread) and OpenCV compute on one thread: the last bits depend on how many there are.

    Other threads keep their own setting of torch, the one that owns the models among them.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def measure_pair(pair: StereoPair) -> Metrics:
    """Measure a pair without ground truth. docs/quality.md explains the metrics."""
    depth, clip = pair.model_scores.depth, pair.model_scores.clip
    return measure(
        pair.left,
        pair.right,
        pair.disparity,
        pair.mask_nonocc_left,
        pair.mask_hole_right,
        raw_right=pair.raw_right,
        true_right=None if pair.truth is None else pair.truth.right,
        depth=None if depth is None else depth.plain,
        mirrored_depth=None if depth is None else depth.mirrored,
        clip_left=None if clip is None else clip.left,
        clip_right=None if clip is None else clip.right,
        scale_sign=pair.scale_sign,
    )


def quality_cells(pair: StereoPair, config: QualityConfig) -> dict[str, Any]:
    """Judge a pair: the columns `qc_*`, `accepted` and `reject_reason`; none where quality control is off."""
    if not config.enabled:
        return {}
    metrics = measure_pair(pair)
    measured = {QUALITY_PREFIX + name: value for name, value in vars(metrics).items()}
    return measured | judge(metrics, config)._asdict()


def true_cells(pair: StereoPair) -> dict[str, float | None]:
    """Compare the right view with the true one: the columns `true_*`; none where the row has no true right view.

    Holes are those of the true disparity, or else the pair's own. A score over no pixels is null.
    """
    if pair.truth is None:
        return {}
    holes = pair.truth.holes
    hole, known = (pair.mask_hole_right, None) if holes is None else holes
    scores = vars(truth.score(pair.right, pair.truth.right, hole, known))
    return {TRUE_PREFIX + name: value if math.isfinite(value) else None for name, value in scores.items()}
