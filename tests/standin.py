"""A generator for the machinery: exact, cheap, a function of the row alone. Knows some prompts to fail on."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stereo_jobs.records import Row, RowError, StereoPair
from stereo_jobs.spec import Recipe

SIZE = 16


class StandIn:
    """Draws noise from the row's seed. Words in a prompt make it misbehave:

    `boom` raises; `nan` returns what a model's NaN becomes; `poison` kills the process;
    `flaky:PATH` raises until the file exists, and makes it; `slow` takes 0.4 s, `hang` an hour;
    `told:PATH` adds the row's id to a file, each time that it is generated.
    """

    inputs: tuple[str, ...] = ()

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def decode(self, row: Row) -> Row:
        return row

    def generate(self, rows: Sequence[Row]) -> list[StereoPair | RowError]:
        return [self._one(row) for row in rows]

    def _one(self, row: Row) -> StereoPair | RowError:
        words = row.prompt.split()
        if "boom" in words:
            raise ValueError(f"boom in {row.id}")
        if "nan" in words:
            return RowError(row.id, "NotFinite", "the model returned NaN or infinite values for this row")
        if "poison" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "slow" in words:
            time.sleep(0.4)
        for word in words:
            if word.startswith("told:"):
                with Path(word[5:]).open("a") as file:
                    file.write(f"{row.id}\n")
        if "hang" in words:
            time.sleep(3600)
        for word in words:
            if word.startswith("flaky:") and not Path(word[6:]).exists():
                Path(word[6:]).touch()
                raise RuntimeError("flaky, works the next time")
        return pair(row)


def pair(row: Row) -> StereoPair:
    rng = np.random.default_rng(row.seed)
    left, right = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    mask = rng.random((SIZE, SIZE)) < 0.5
    disparity = rng.random((SIZE, SIZE), dtype=np.float32) * np.float32(row.scale_percent)
    return StereoPair(
        id=row.id,
        left=left,
        right=right,
        disparity=disparity,
        disparity_requested=None,
        disparity_of="left",
        mask_nonocc_left=mask,
        mask_hole_right=~mask,
        mask_border_right=mask,
        unet_evaluations=256,
    )


def load(recipe: Recipe, device: str, batch_size: int) -> StandIn:
    """As `GeneratorFactory` of stereo_jobs.workers.worker."""
    return StandIn(batch_size)


def load_with_images(recipe: Recipe, device: str, batch_size: int) -> StandIn:
    """One that reads the manifest's `image` column, as photo mode does."""
    generator = StandIn(batch_size)
    generator.inputs = ("image",)
    return generator
