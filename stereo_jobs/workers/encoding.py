"""Scores and encodes a pair: its row of the dataset."""

import dataclasses
import platform
import sys
from typing import Any

from stereo_jobs.data.shards import encode_pair
from stereo_jobs.records import CARRIED_PREFIX, Row, StereoPair
from stereo_jobs.spec import Recipe
from stereo_jobs.version import __version__

Cells = dict[str, Any]
"""One row of the dataset, by column."""


@dataclasses.dataclass(frozen=True)
class GeneratedPair:
    """A pair and how it was generated.

    Attributes:
        pair: the pair.
        seconds: its share of the seconds that its batch took.
        attempt: number of the attempt that made it, from 1.
        batch_size: batch size of the network calls.
    """

    pair: StereoPair
    seconds: float
    attempt: int
    batch_size: int

    @property
    def size(self) -> int:
        """Bytes of the pair's images and maps."""
        return sum(value.nbytes for value in vars(self.pair).values() if hasattr(value, "nbytes"))


def encode(row: Row, made: GeneratedPair, recipe: Recipe) -> Cells:
    """Score and encode a pair: all cells of its row of the dataset."""
    sd, depth = recipe.models.stable_diffusion, recipe.models.depth
    return (
        encode_pair(made.pair)
        | _scores(made.pair, recipe)
        | {
            "seed": row.seed,
            # A known disparity in pixels does not scale with the width.
            "scale_percent": None if recipe.method.geometry == "metric" else row.scale_percent,
            **dataclasses.asdict(row.camera),
            "prompt": row.prompt,
            "negative_prompt": row.negative_prompt,
            "prompt_cut": made.pair.prompt_cut,  # no column: only counted, in the record
            "mode": recipe.mode,
            "preset": recipe.method.preset,
            "model": sd.path,
            "model_revision": sd.revision,
            "depth_model": depth.path,
            "depth_model_revision": depth.revision,
            "run_seconds": made.seconds,
            "run_attempt": made.attempt,
            "run_batch": made.batch_size,
            "run_version": __version__,
            "run_device": f"{platform.machine()}/{device_name()}",
        }
        | {CARRIED_PREFIX + name: value for name, value in row.carried.items()}
    )


def _scores(pair: StereoPair, recipe: Recipe) -> Cells:
    """Score a pair on one thread. Without quality control and truth there are no scores, and torch is not imported."""
    if not recipe.quality.enabled and pair.truth is None:
        return {}
    from stereo_jobs.pipeline.scoring import score_pair

    compute_on_one_thread()
    return score_pair(pair, recipe.quality)


def compute_on_one_thread() -> None:
    """Let this thread compute on one core: the last bits depend on how many there are. Workers hold torch, or none."""
    if "torch" in sys.modules:
        from stereo_jobs.pipeline.scoring import use_one_thread

        use_one_thread()


def device_name() -> str:
    """Name of the GPU, or `cpu`."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch and torch.cuda.is_available() else "cpu"
