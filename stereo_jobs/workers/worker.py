"""A worker: rows of one shard -> pairs -> one committed shard. The same code in this process and in an actor."""

import contextvars
import dataclasses
import logging
import os
import platform
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import tenacity

from stereo_jobs import logs
from stereo_jobs.data import manifest
from stereo_jobs.data.manifest import ManifestReader, to_row
from stereo_jobs.data.reader import InputReader
from stereo_jobs.data.shards import encode_pair, load_codecs, write_shard
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import (
    DeviceLostError,
    StereoJobsError,
    StorageError,
    StorageUnavailableError,
    hide_passwords,
)
from stereo_jobs.output import layout
from stereo_jobs.output.commits import commit, complete
from stereo_jobs.pipeline.batching import Generator, batches
from stereo_jobs.records import CARRIED_PREFIX, REJECTED, QualitySummary, Row, RowError, ShardRecord, StereoPair
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.version import __version__
from stereo_jobs.workers.prometheus import Stage
from stereo_jobs.workers.task import ShardTask

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

ENCODERS = 2
"""Threads of a worker that encode pairs beside the models."""
STORE_PATIENCE_S = 600.0
"""How long a finished shard waits for a store that is away, before it is dealt again."""

GeneratorFactory = Callable[[Recipe, str, int], Generator]
"""Loads the generator: (resolved recipe, device, batch size) -> generator."""

Report = Callable[[layout.ShardKey, list[int]], None]
"""Told before each batch: the shard, and the positions of the rows in it."""

Observe = Callable[[Stage, float], None]
"""Told after each piece of work: the stage, and its seconds in one thread."""


class AbandonedError(StereoJobsError):
    """The worker was told to stop between two batches; the shard is dealt again another time."""


def load_pipeline(recipe: Recipe, device: str, batch_size: int) -> Generator:
    """Load the real models. On a CPU they compute on one thread.

    Float results depend on the number of threads, and must not depend on the machine's load or size: the
    cores are used by actors side by side instead.
    """
    import torch

    from stereo_jobs.pipeline.generator import StereoPipeline, choose_device

    device = choose_device(device)
    if device == "cpu":
        torch.set_num_threads(1)
    return StereoPipeline.load(recipe, device, batch_size)


class ShardWorker:
    """Holds the loaded models and makes shards. Reading, encoding and uploading run beside the models.

    `run` may be called from several threads: while one shard generates, another reads or uploads.

    Args:
        spec: for `runtime`.
        recipe: resolved.
        load: loads the generator, in the thread that will use it.
        report: told before each batch.
        observe: told of the time each stage takes.

    Raises:
        ModelError: the models cannot be loaded.
        StorageError: the output cannot be seen from here.
        StorageUnavailableError: nor is it known whether it can, since the store is away.
    """

    def __init__(
        self,
        spec: JobSpec,
        recipe: Recipe,
        load: GeneratorFactory,
        report: Report | None = None,
        observe: Observe = lambda stage, seconds: None,
    ) -> None:
        self.runtime = spec.runtime
        self.recipe = recipe
        self.report = report or (lambda key, rows: None)
        self.observe = observe
        self.storage = open_storage(spec.output, self.runtime.storage)
        # Half of the time there is: what has waited for the store in vain says so before it is late.
        patience_s = min(STORE_PATIENCE_S, self.runtime.start_timeout_s / 2)
        if not patient(patience_s)(self.storage.exists, layout.plan(0)):
            raise StorageError(
                f"{self.storage.uri}: the plan cannot be seen from {socket.gethostname()}; the output of a cluster "
                "must be on S3 or on a file system that all its nodes share"
            )
        self.manifests = ManifestReader(self.runtime.storage)
        self.name = f"{socket.gethostname()}/{os.getpid()}"
        self.stop = threading.Event()
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        # One thread owns the models: one CUDA context, one torch thread setting, batches in order.
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        loading = self._model_thread.submit(load, recipe, self.runtime.device, self.runtime.batch_size)
        load_codecs()
        self.generator = loading.result()

    def run(self, task: ShardTask) -> ShardRecord:
        """Make and commit one shard; if it was committed meanwhile, that one stands.

        Raises:
            AbandonedError: told to stop.
            ManifestError, StorageError: the shard cannot be read or written.
        """
        with logs.about(job=self.storage.uri, shard=layout.shard_name(task.key)):
            return self._run(task)

    def _run(self, task: ShardTask) -> ShardRecord:
        if committed := patient()(self._committed, task):
            return committed
        rows = self._timed("read", patient(), self._read, task)
        within = contextvars.copy_context()
        results, seconds = self._model_thread.submit(within.run, self._generate, rows, task).result()
        encoded = [result.result() if isinstance(result, Future) else result for result in results]
        finished = [result for result in encoded if not isinstance(result, RowError)]
        kept = [self._curated(result, position) for position, result in enumerate(encoded)]
        cells = [result for result in kept if not isinstance(result, RowError)]
        errors = [result for result in kept if isinstance(result, RowError)]
        rejected = len(finished) - len(cells)
        record = ShardRecord(
            generation=task.plan.generation,
            shard=task.shard,
            fingerprint=task.plan.fingerprint,
            planned=len(rows),
            succeeded=len(cells),
            failed=len(errors) - rejected,
            rejected=rejected,
            failures=Counter(error.error_type for error in errors if error.error_type != REJECTED),
            quality=QualitySummary.of(finished),
            unet_evaluations=sum(cell["unet_evaluations"] for cell in finished),
            seconds=round(seconds, 3),
            worker=self.name,
        )
        return self._timed("write", self._write, task, cells, record, errors)

    def _write(
        self, task: ShardTask, cells: list[dict[str, Any]], record: ShardRecord, errors: list[RowError]
    ) -> ShardRecord:
        carried = patient()(manifest.carried_schema, task.plan.files[0].uri, self.runtime.storage)
        data = write_shard(cells, carried, record, errors, task.plan.recipe)
        return patient()(commit, self.storage, task.plan, task.shard, data)

    def _committed(self, task: ShardTask) -> ShardRecord | None:
        """The shard's record, if another attempt has made it meanwhile."""
        name = layout.data(task.key)
        if not self.storage.exists(name):
            return None
        return complete(self.storage, task.plan, task.shard, self.storage.read(name))

    def _timed(self, stage: Stage, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a piece of work, and say how long it took."""
        started = time.monotonic()
        try:
            return work(*args, **kwargs)
        finally:
            self.observe(stage, time.monotonic() - started)

    def _curated(self, made: "dict[str, Any] | RowError", position: int) -> "dict[str, Any] | RowError":
        """The same, unless it is a finished pair that its verdict keeps out of the data."""
        if isinstance(made, RowError) or made.get("accepted") is not False or not self.recipe.quality.drop_rejected:
            return made
        return RowError(made["id"], REJECTED, made["reject_reason"], made["run_attempt"], position)

    # --- Reading ---

    def _read(self, task: ShardTask) -> list[Row]:
        refs = task.plan.refs(task.shard)
        inputs = InputReader(
            self.runtime.allowed_prefixes
            if self.runtime.allowed_prefixes is not None
            else sorted({file.uri.rpartition("/")[0] for file in task.plan.files}),
            self.runtime.max_image_bytes,
            self.runtime.storage,
            self.runtime.max_image_pixels,
        )
        rows = []
        wanted: dict[str, list[int]] = {}
        for ref in refs:
            wanted.setdefault(ref.uri, []).append(ref.row)
        cells = {
            (uri, row): values
            for uri, indices in wanted.items()
            for row, values in zip(sorted(set(indices)), self.manifests.read(uri, sorted(set(indices))), strict=True)
        }
        for position, ref in enumerate(refs):
            row = to_row(cells[ref.uri, ref.row], ref.variant, self.recipe, self.generator.inputs, inputs)
            if position in task.quarantined:
                error = RowError(row.id, "KilledWorker", "two workers died or hung while generating this row", 2)
                row = dataclasses.replace(row, error=error)
            rows.append(row)
        return rows

    # --- Generating ---

    def _generate(self, rows: list[Row], task: ShardTask) -> "tuple[list[Future[dict[str, Any]] | RowError], float]":
        """Per row, in order: its encoded cells (under way in the encoder threads) or its error; and seconds."""
        started = time.monotonic()
        results: dict[str, Future[dict[str, Any]] | RowError] = {}
        position = {row.id: i for i, row in enumerate(rows)}
        for row in rows:
            if row.error:
                results[row.id] = dataclasses.replace(row.error, row=position[row.id])
        good = [row for row in rows if not row.error]
        while good:
            if self.stop.is_set():
                raise AbandonedError(f"shard {task.key} was left at row {len(results)} of {len(rows)}")
            size = self.generator.batch_size
            batch = good[:1] if task.one_by_one else next(batches(good, size))
            good = good[len(batch) :]
            self.report(task.key, [position[row.id] for row in batch])
            for row, made in zip(batch, self._timed("generate", self._attempt, batch), strict=True):
                results[row.id] = (
                    dataclasses.replace(made, row=position[row.id])
                    if isinstance(made, RowError)
                    else self._encoders.submit(self._timed, "encode", _encode, row, made, self.recipe)
                )
        self.report(task.key, [])  # whatever kills the worker now, it is none of the rows
        return [results[row.id] for row in rows], time.monotonic() - started

    def _attempt(self, batch: Sequence[Row], tries: int = 1) -> list["RowError | dict[str, Any]"]:
        """Generate a batch; after an exception each row alone, so that only those at fault fail."""
        started = time.monotonic()
        failure: tuple[str, str] | None = None
        try:
            made = self.generator.generate(batch)
            if [result.id for result in made] != [row.id for row in batch]:
                raise RuntimeError("the generator returned other rows than it was given")
        except Exception as error:
            # Only words leave this block: the exception holds the failed attempt's tensors in GPU memory.
            failure = type(error).__name__, hide_passwords(str(error)[:2000])
        if failure:
            return self._attempt_again(batch, tries, *failure)
        seconds = (time.monotonic() - started) / len(batch)
        return [
            dataclasses.replace(result, attempts=tries)
            if isinstance(result, RowError)
            else {
                "pair": result,
                "run_seconds": seconds,
                "run_attempt": tries,
                "run_batch": self.generator.batch_size,
            }
            for result in made
        ]

    def _attempt_again(
        self, batch: Sequence[Row], tries: int, kind: str, message: str
    ) -> list["RowError | dict[str, Any]"]:
        """What follows a failed attempt: smaller batches, rows alone, or the end of the one row at fault."""
        if kind == "AcceleratorError" or message.startswith("CUDA error"):
            raise DeviceLostError(f"the GPU fails for good: {message}")
        if kind == "OutOfMemoryError":
            _free_gpu_memory()
            if self.generator.batch_size > 1:
                self.generator.batch_size //= 2
                log.warning("out of GPU memory: going on with batches of %d", self.generator.batch_size)
                parts = batches(batch, self.generator.batch_size)
                return [result for part in parts for result in self._attempt(part, tries)]
        if len(batch) > 1:
            log.warning("a batch failed (%s); trying its %d rows alone", message, len(batch))
            return [result for row in batch for result in self._attempt([row], tries + 1)]
        if tries < self.runtime.row_attempts:
            return self._attempt(batch, tries + 1)
        log.warning("row %s failed: %s", batch[0].id, message, extra={"row": batch[0].id})
        return [RowError(batch[0].id, kind, message, tries)]


def patient(seconds: float | None = None) -> tenacity.Retrying:
    """Call it with what needs the store: done again and again while it is away, since what was generated is dear.

    Args:
        seconds: for how long; `STORE_PATIENCE_S` if left out.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StorageUnavailableError),
        wait=tenacity.wait_random_exponential(multiplier=1, max=20),
        stop=tenacity.stop_after_delay(STORE_PATIENCE_S if seconds is None else seconds),
        before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
        reraise=True,
    )


def _encode(row: Row, made: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """All cells of one successful row of the dataset."""
    sd, depth = recipe.models.stable_diffusion, recipe.models.depth
    run = dict(made)
    pair = run.pop("pair")
    return (
        encode_pair(pair)
        | _quality_cells(pair, recipe)
        | run
        | {
            "seed": row.seed,
            # Known pixels are nobody's share of the width.
            "scale_percent": None if recipe.method.geometry == "metric" else row.scale_percent,
            **dataclasses.asdict(row.camera),
            "prompt": row.prompt,
            "negative_prompt": row.negative_prompt,
            "mode": recipe.mode,
            "preset": recipe.method.preset,
            "model": sd.path,
            "model_revision": sd.revision,
            "depth_model": depth.path,
            "depth_model_revision": depth.revision,
            "run_version": __version__,
            "run_device": f"{platform.machine()}/{device_name()}",
        }
        | {CARRIED_PREFIX + name: value for name, value in row.carried.items()}
    )


def _quality_cells(pair: StereoPair, recipe: Recipe) -> dict[str, Any]:
    """Metrics and verdict. Computed on one thread: their last bits depend on how many there are."""
    if not recipe.quality.enabled:
        return {}
    import cv2
    import torch  # which a worker without real models may do without

    from stereo_jobs.pipeline.scoring import quality_cells

    cv2.setNumThreads(1)
    torch.set_num_threads(1)  # of this thread: the one that owns the models keeps its own
    return quality_cells(pair, recipe.quality)


def device_name() -> str:
    """Of the GPU, or `cpu`."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch and torch.cuda.is_available() else "cpu"


def _free_gpu_memory() -> None:
    torch = sys.modules.get("torch")  # loaded, if there is anything to free
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
