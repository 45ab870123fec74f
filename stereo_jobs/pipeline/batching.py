"""What a worker asks of a generator, and how rows are grouped for it. Imports no torch."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from stereo_jobs.records import Camera, Row, RowError, StereoPair

LeftKey = tuple[str, str, int, str, Camera, tuple[tuple[str, bytes], ...]]


class Generator(Protocol):
    """Makes pairs; `stereo_jobs.pipeline.generator.StereoPipeline` is the real one.

    Attributes:
        batch_size: left images per network call; may be lowered between calls.
        inputs: image columns of the manifest that it reads.
    """

    batch_size: int
    inputs: tuple[str, ...]

    def generate(self, rows: Sequence[Row]) -> list[StereoPair | RowError]:
        """One result per row, in order."""


def batches(rows: Sequence[Row], batch_size: int) -> Iterator[list[Row]]:
    """Cut rows so that each piece has at most `batch_size` different left images.

    Rows that share one (the scales of one seed) stay together and are denoised once.
    """
    batch: list[Row] = []
    lefts: set[LeftKey] = set()
    for row in rows:
        if left_of(row) not in lefts and len(lefts) == batch_size:
            yield batch
            batch, lefts = [], set()
        batch.append(row)
        lefts.add(left_of(row))
    if batch:
        yield batch


def left_of(row: Row) -> LeftKey:
    """What the left image of a row depends on, within one recipe."""
    return row.prompt, row.negative_prompt, row.seed, row.depth_kind, row.camera, tuple(sorted(row.inputs.items()))
