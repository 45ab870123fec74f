"""Reads the rows of a shard, and decodes them one batch ahead of the models."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import pyarrow as pa

from stereo_jobs.data.manifest import INPUTS, SCALARS, to_row
from stereo_jobs.data.manifest_reader import ManifestReader
from stereo_jobs.data.reader import InputReader
from stereo_jobs.output.plan import Plan
from stereo_jobs.pipeline.batching import Generator, batches
from stereo_jobs.records import Row, RowError
from stereo_jobs.spec import Recipe, Runtime
from stereo_jobs.workers.patience import patient
from stereo_jobs.workers.task import IN_FLIGHT, ShardTask
from stereo_jobs.workers.timed_threads import TimedThreads


class ShardReader:
    """Reads the rows of shards and their inputs, several shards at a time.

    Args:
        runtime: what may be read, and how large it may be.
        recipe: its mode decides which columns are needed.
        generator: says which image columns it reads.
        timeout_s: the deadline of one row.
    """

    def __init__(self, runtime: Runtime, recipe: Recipe, generator: Generator, timeout_s: float) -> None:
        self._runtime = runtime
        self._recipe = recipe
        self._generator = generator
        self._manifests = ManifestReader(runtime.storage)
        self._threads = TimedThreads(IN_FLIGHT, "read", timeout_s)

    def read(self, task: ShardTask) -> list[Row]:
        """Read the shard's rows and their inputs; a row that cannot be read carries its error."""
        runtime = self._runtime
        prefixes = runtime.allowed_prefixes
        if prefixes is None:
            prefixes = tuple(sorted({file.uri.rpartition("/")[0] for file in task.plan.files}))
        inputs = InputReader(prefixes, runtime.max_image_bytes, runtime.storage, runtime.max_image_pixels)
        columns = SCALARS.union(INPUTS[self._recipe.mode], self._generator.inputs)
        carried = self.carried(task.plan).names
        cells = {
            (file.uri, row): values
            for file, indices in task.plan.rows_by_file(task.shard)
            for row, values in zip(indices, self._manifests.read(file, indices, columns, carried), strict=True)
        }
        rows = []
        for position, ref in enumerate(task.plan.refs(task.shard)):
            row = self._read_row(cells[ref.uri, ref.row], ref.variant, inputs)
            if position in task.quarantined:
                error = RowError(row.id, "KilledWorker", "two workers died or hung while generating this row", 2)
                row = dataclasses.replace(row, error=error)
            rows.append(row)
        return rows

    def carried(self, plan: Plan) -> pa.Schema:
        """Return names and types of the carried columns. In a plan of an older version, all files have the same."""
        schema = plan.arrow_schema
        return self._manifests.carried_schema(plan.files[0]) if schema is None else schema

    def confirm(self, task: ShardTask, patience_s: float | None = None) -> None:
        """Check that the files of a shard's rows are still those that were planned. Raises DriftError."""
        for file, _ in task.plan.rows_by_file(task.shard):
            patient(patience_s)(self._manifests.confirm, file)

    def _read_row(self, cells: dict[str, Any], variant: int, inputs: InputReader) -> Row:
        """Read one row and its inputs, within the deadline."""
        wanted = self._generator.inputs
        read = partial(to_row, cells, variant, self._recipe, wanted, inputs)
        if not wanted:
            return read()
        row = self._threads.submit(str(cells["id"]), "reading", read).result()
        if isinstance(row, Row):
            return row
        bare = to_row(cells, variant, self._recipe, (), inputs)  # what is known of it without its inputs
        return dataclasses.replace(bare, error=dataclasses.replace(row, id=bare.id))


Decode = Callable[[Row], "Future[Any]"]
"""Has a row decoded; the future has what the generator takes in place of the row, or a RowError."""


class Batches:
    """The batches of a shard's rows. While the models work on one, the next is decoded; the first at once.

    Args:
        rows: the rows without an error.
        size: different left images of the first batch.
        decode: has a row decoded; None: rows are decoded by the models' own thread.
    """

    def __init__(self, rows: Sequence[Row], size: int, decode: Decode | None) -> None:
        self._rows = list(rows)
        self._decode = decode
        self._decoded: dict[str, Future[Any]] = {}
        self._start(size)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def pop(self, size: int | None) -> tuple[list[Row], dict[str, Any]]:
        """Remove and return the next batch, and what the generator takes in place of its rows, by id.

        Args:
            size: different left images, at most; None: one row.
        """
        batch = self._rows[:1] if size is None else next(batches(self._rows, size))
        self._rows = self._rows[len(batch) :]
        decoded = {row.id: self._decoded.pop(row.id) for row in batch if row.id in self._decoded}
        if size is not None:
            self._start(size)
        return batch, {row.id: decoded[row.id].result() if row.id in decoded else row for row in batch}

    def _start(self, size: int) -> None:
        """Have the next batch decoded, as far as that has not begun."""
        if self._decode and self._rows:
            for row in next(batches(self._rows, size)):
                if row.id not in self._decoded:
                    self._decoded[row.id] = self._decode(row)
