"""The interface between a worker and what makes pairs, and how rows become batches. Imports no torch."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from stereo_jobs.records import Camera, Row, RowError, StereoPair

T = TypeVar("T")

LeftKey = tuple[str, str, int, str, Camera, tuple[tuple[str, bytes], ...]]


class Generator(Protocol):
    """Makes pairs from rows; `stereo_jobs.pipeline.generator.PairGenerator` is the real one.

    Attributes:
        batch_size: left images per network call; may change between calls.
        inputs: image columns of the manifest that it reads.
    """

    batch_size: int
    inputs: tuple[str, ...]

    def decode(self, row: Row) -> Any:
        """Decode a row's inputs, in any thread, and return what `generate` takes in its place."""

    def generate(self, rows: Sequence[Any]) -> list[StereoPair | RowError]:
        """Return a pair or an error for each row, in order.

        Args:
            rows: each is a Row, or what `decode` made of one, or an error.
        """

    def compile(self) -> None:
        """Compile the networks at their first calls (`runtime.compile`)."""


def batches(rows: Sequence[Row], batch_size: int) -> Iterator[list[Row]]:
    """Cut rows into batches of at most `batch_size` different left images.

    Rows that share a left image (the scales of one seed) stay together, and the image is made once for all of them.
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
    """Return everything that decides the left image of a row within one recipe."""
    return row.prompt, row.negative_prompt, row.seed, row.depth_kind, row.camera, tuple(sorted(row.inputs.items()))


def padded(items: Sequence[T], size: int) -> list[T]:
    """Repeat the last item until there are `size` of them: network calls then always have the same batch shape."""
    return [*items, *[items[-1]] * (size - len(items))]
