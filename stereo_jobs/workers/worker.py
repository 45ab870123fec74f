"""Makes shards: reads rows, generates, scores and encodes their pairs, and commits them. Used locally and by Ray."""

import contextlib
import contextvars
import dataclasses
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from stereo_jobs import logs
from stereo_jobs.data.shards import load_codecs, write_shard
from stereo_jobs.data.storage import NotFoundError, open_storage
from stereo_jobs.errors import (
    DeviceLostError,
    StereoJobsError,
    StorageError,
    StorageUnavailableError,
    hide_passwords,
)
from stereo_jobs.output import layout
from stereo_jobs.output.commits import commit, complete
from stereo_jobs.output.guard import PlanGuard
from stereo_jobs.pipeline.batching import Generator, batches
from stereo_jobs.records import REJECTED, PromptNotes, QualitySummary, Row, RowError, ShardRecord
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.workers.batch_size import BatchSize, first_size
from stereo_jobs.workers.encoding import Cells, GeneratedPair, compute_on_one_thread, encode
from stereo_jobs.workers.patience import STORE_PATIENCE_S, patient
from stereo_jobs.workers.prometheus import Stage
from stereo_jobs.workers.reading import Batches, ShardReader
from stereo_jobs.workers.task import GENERATE, ShardTask
from stereo_jobs.workers.timed_threads import TimedThreads, usable_cores

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

FEWEST_THREADS, MOST_THREADS = 2, 16
"""Threads of a worker that decode rows, and as many that score and encode pairs, while the models work on others."""
CONFIRM_EVERY_S = 10.0
"""Seconds between two looks, while a shard is generated, at whether its manifest files are still the planned ones."""

GeneratorFactory = Callable[[Recipe, str, int], Generator]
"""Loads a generator: (resolved recipe, device, batch size) -> generator."""

MOST_WAITING_BYTES = 2**30
"""Bytes of finished pairs that are encoded or wait for it, before the models wait; one larger pair is let through."""

Report = Callable[[layout.ShardKey, list[int], str], None]
"""Called with the shard, the positions of the rows that a work begins with, and its name: `generate`, or another name
for each pair that is scored and encoded. Without rows: the work of this name is done."""

Observe = Callable[[Stage, float], None]
"""Called after each piece of work with the stage and its seconds in one thread."""

Encoded = Future[Cells | RowError]
"""A pair that is being scored and encoded."""


class AbandonedError(StereoJobsError):
    """The worker was told to stop, and stopped between two batches; a later run makes the shard."""


def load_generator(recipe: Recipe, device: str, batch_size: int) -> Generator:
    """Load the real models. On a CPU they compute on one thread.

    Float results depend on the number of threads, and must not depend on the machine's load or size. Several actors
    use the cores instead.
    """
    import torch

    from stereo_jobs.pipeline.generator import PairGenerator, choose_device

    device = choose_device(device)
    if device == "cpu":
        torch.set_num_threads(1)
    return PairGenerator.load(recipe, device, batch_size)


class ShardWorker:
    """Holds the loaded models and makes shards. Other threads read, score, encode and upload while the models work.

    `run` may be called from several threads: while one shard is generated, another is read or uploaded.

    Args:
        spec: the job; only its output and `runtime` are used.
        recipe: the resolved recipe.
        load: loads the generator, in the thread that will use it.
        report: called before each batch, and before each pair is scored.
        observe: called after each stage of work with its time.
        cores: processor cores for this worker; None: all that this process may use.

    Attributes:
        threads: how many pairs are scored and encoded at a time, and how many rows decoded.

    Raises:
        ModelError: the models cannot be loaded.
        StorageError: the output cannot be read from this machine.
        StorageUnavailableError: the store does not answer, so that it is unknown whether it can be read.
    """

    def __init__(
        self,
        spec: JobSpec,
        recipe: Recipe,
        load: GeneratorFactory,
        report: Report | None = None,
        *,
        observe: Observe = lambda stage, seconds: None,
        cores: int | None = None,
    ) -> None:
        self.runtime = spec.runtime
        self.recipe = recipe
        self.report = report or (lambda key, rows, work: None)
        self.observe = observe
        self.storage = open_storage(spec.output, self.runtime.storage)
        # Half of the start timeout, so that this error is reported before the timeout ends the worker.
        patience_s = min(STORE_PATIENCE_S, self.runtime.start_timeout_s / 2)
        if not patient(patience_s)(self.storage.exists, layout.plan(0)):
            raise StorageError(
                f"{self.storage.uri}: the plan cannot be seen from {socket.gethostname()}; the output of a cluster "
                "must be on S3 or on a file system that all its nodes share"
            )
        self.storage.hold()
        self.guard = PlanGuard(self.storage)
        self.name = f"{socket.gethostname()}/{os.getpid()}"
        self.stop = threading.Event()
        # Less than the shard's own deadline, so that the row is blamed and not its shard.
        timeout_s = min(self.runtime.batch_timeout_s, self.runtime.shard_timeout_s / 2)
        self.threads = min(max(FEWEST_THREADS, cores or usable_cores()), MOST_THREADS)
        self._decoders = TimedThreads(self.threads, "decode", timeout_s)
        self._encoders = TimedThreads(self.threads, "encode", timeout_s, MOST_WAITING_BYTES)
        # One thread owns the models: one CUDA context, one torch thread setting, batches in order.
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        loading = self._model_thread.submit(self._load, load)
        load_codecs()
        self.generator = loading.result()
        self._reader = ShardReader(self.runtime, recipe, self.generator, timeout_s)
        self._batch_size = BatchSize(self.generator.batch_size)

    def _load(self, load: GeneratorFactory) -> Generator:
        """Load the generator, in the thread that owns the models, with its batch size."""
        size, runtime = self.runtime.batch_size, self.runtime
        generator = load(self.recipe, runtime.device, 1 if size == "auto" else size)
        if size == "auto":
            generator.batch_size = first_size(_gpu_bytes(min(1.0, runtime.gpus_per_actor)), self.recipe)
        if runtime.compile:
            generator.compile()
        return generator

    def run(self, task: ShardTask) -> ShardRecord:
        """Make and commit one shard. If another attempt has committed it meanwhile, return the record of that one.

        Raises:
            AbandonedError: the worker was told to stop.
            DeviceLostError: the GPU fails and needs a new process.
            DriftError: a manifest file is not the one that was planned.
            ManifestError: the manifest cannot be read.
            OutputGoneError: the output was removed or replaced.
            StorageError: the shard cannot be read or written.
        """
        with logs.about(job=self.storage.uri, shard=layout.shard_name(task.key)):
            try:
                return self._run(task)
            except NotFoundError:
                self.guard.check(task.plan)  # whoever removes an output does not remove all of it at once
                raise

    def _run(self, task: ShardTask) -> ShardRecord:
        if committed := patient()(self._committed, task):
            return committed
        rows = self._timed("read", patient(), self._reader.read, task)
        ahead = self._batches(rows, task)
        context = contextvars.copy_context()
        results, seconds = self._model_thread.submit(context.run, self._generate, rows, ahead, task).result()
        encoded = [_settled(result, position) for position, result in enumerate(results)]
        finished = [result for result in encoded if not isinstance(result, RowError)]
        kept = [self._unless_rejected(result, position) for position, result in enumerate(encoded)]
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
            prompts=PromptNotes.of(finished),
            unet_evaluations=sum(cell["unet_evaluations"] for cell in finished),
            seconds=round(seconds, 3),
            worker=self.name,
        )
        return self._timed("write", self._write, task, cells, record, errors)

    def _write(self, task: ShardTask, cells: list[Cells], record: ShardRecord, errors: list[RowError]) -> ShardRecord:
        """Build the shard and commit it, if its rows are from the files that were planned."""
        carried = patient()(self._reader.carried, task.plan)
        data = write_shard(cells, carried, record, errors, task.plan.recipe)
        self._reader.confirm(task)
        return patient()(self._commit, task, data)

    def _commit(self, task: ShardTask, data: bytes) -> ShardRecord:
        self.guard.check(task.plan)
        return commit(self.storage, task.plan, task.shard, data)

    def _committed(self, task: ShardTask) -> ShardRecord | None:
        """Return the shard's record if another attempt has committed it; None if not."""
        name = layout.data(task.key)
        if not self.storage.exists(name):
            return None
        return complete(self.storage, task.plan, task.shard, self.storage.read(name))

    def _timed(self, stage: Stage, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a piece of work and report how long it took."""
        started = time.monotonic()
        try:
            return work(*args, **kwargs)
        finally:
            self.observe(stage, time.monotonic() - started)

    def _unless_rejected(self, made: Cells | RowError, position: int) -> Cells | RowError:
        """Return the same, or an error in place of a pair that its verdict keeps out of the dataset."""
        if isinstance(made, RowError) or made.get("accepted") is not False or not self.recipe.quality.drop_rejected:
            return made
        return RowError(made["id"], REJECTED, made["reject_reason"], made["run_attempt"], position)

    # --- Generating ---

    def _batches(self, rows: list[Row], task: ShardTask) -> Batches:
        """Begin to decode the rows of a shard, a batch ahead of the models."""
        position = {row.id: i for i, row in enumerate(rows)}

        def decode(row: Row) -> Any:
            work = f"decode {task.key} {position[row.id]}"
            self.report(task.key, [position[row.id]], work)
            try:
                compute_on_one_thread()
                return self.generator.decode(row)
            finally:
                self.report(task.key, [], work)

        def start(row: Row) -> Future[Any]:
            return self._decoders.submit(row.id, "decoding", partial(decode, row))

        good = [row for row in rows if not row.error]
        # With one row in work at a time, it is known which one kills.
        ahead = self.generator.inputs and not task.one_by_one
        return Batches(good, self.generator.batch_size, start if ahead else None)

    def _generate(self, rows: list[Row], ahead: Batches, task: ShardTask) -> tuple[list[Encoded | RowError], float]:
        """Generate all rows of a shard, batch by batch.

        Returns:
            For each row, in order, its cells (in work in the encoder threads) or its error; and the seconds it took.

        Raises:
            AbandonedError: the worker was told to stop.
        """
        started = confirmed = time.monotonic()
        results: dict[str, Encoded | RowError] = {}
        position = {row.id: i for i, row in enumerate(rows)}
        for row in rows:
            if row.error:
                results[row.id] = dataclasses.replace(row.error, row=position[row.id])
        while ahead:
            if self.stop.is_set():
                raise AbandonedError(f"shard {task.key} was abandoned after {len(results)} of {len(rows)} rows")
            if time.monotonic() - confirmed > CONFIRM_EVERY_S:
                with contextlib.suppress(StorageUnavailableError):  # it is confirmed before the commit at the latest
                    self._reader.confirm(task, patience_s=0)
                confirmed = time.monotonic()
            batch, decoded = ahead.pop(None if task.one_by_one else self.generator.batch_size)
            self.report(task.key, [position[row.id] for row in batch], GENERATE)
            made = self._timed("generate", self._attempt, batch, decoded)
            self.report(task.key, [], GENERATE)  # the time that the models wait for the encoders is not the batch's
            for row in batch:
                results[row.id] = self._encoded(task, position[row.id], row, made.pop(0))
        return [results[row.id] for row in rows], time.monotonic() - started

    def _encoded(self, task: ShardTask, position: int, row: Row, made: GeneratedPair | RowError) -> Encoded | RowError:
        """Have a pair scored and encoded; waits while too many bytes of others are waiting. An error stays an error."""
        if isinstance(made, RowError):
            return dataclasses.replace(made, row=position)
        work = f"encode {task.key} {position}"

        def encoded() -> Cells:
            self.report(task.key, [position], work)
            return self._timed("encode", encode, row, made, self.recipe)

        future = self._encoders.submit(row.id, "scoring and encoding", encoded, made.size)
        future.add_done_callback(lambda _: self.report(task.key, [], work))
        if task.one_by_one:
            future.exception()  # it is waited for: with one row in work at a time, it is known which one kills
        return future

    def _attempt(
        self, batch: Sequence[Row], decoded: Mapping[str, Any], tries: int = 1
    ) -> list[GeneratedPair | RowError]:
        """Generate a batch; after an exception each row alone, so that only the rows at fault fail.

        Args:
            batch: the rows.
            decoded: what the generator takes in their place, by id.
            tries: number of the attempt.
        """
        started = time.monotonic()
        failure: tuple[str, str] | None = None
        try:
            made = self.generator.generate([decoded[row.id] for row in batch])
            if [result.id for result in made] != [row.id for row in batch]:
                raise RuntimeError("the generator returned other rows than it was given")
        except Exception as error:
            # Only words leave this block: the exception holds the failed attempt's tensors in GPU memory.
            failure = type(error).__name__, hide_passwords(str(error)[:2000])
        if failure:
            return self._attempt_again(batch, decoded, tries, *failure)
        seconds, size = (time.monotonic() - started) / len(batch), self.generator.batch_size
        self._batch_size.succeeded()
        self._follow_batch_size()
        return [
            dataclasses.replace(result, attempts=tries)
            if isinstance(result, RowError)
            else GeneratedPair(result, seconds, tries, size)
            for result in made
        ]

    def _follow_batch_size(self) -> None:
        """Let the generator have the batch size of the moment."""
        if self.generator.batch_size != self._batch_size.now:
            self.generator.batch_size = self._batch_size.now
            log.warning("GPU memory: continuing with batches of %d", self.generator.batch_size)

    def _attempt_again(
        self, batch: Sequence[Row], decoded: Mapping[str, Any], tries: int, kind: str, message: str
    ) -> list[GeneratedPair | RowError]:
        """Handle a failed attempt: retry in smaller batches, or each row alone, or give up on the one row at fault.

        Args:
            batch: the rows that failed together.
            decoded: what the generator takes in their place, by id.
            tries: how often they have been tried.
            kind: name of the exception.
            message: message of the exception.

        Raises:
            DeviceLostError: the GPU fails and needs a new process.
        """
        if kind == "AcceleratorError" or message.startswith("CUDA error"):
            raise DeviceLostError(f"the GPU fails for good: {message}")
        if kind == "OutOfMemoryError":
            _free_gpu_memory()
            if self.generator.batch_size > 1:
                self._batch_size.ran_out_of_memory()
                self._follow_batch_size()
                parts = batches(batch, self.generator.batch_size)
                return [result for part in parts for result in self._attempt(part, decoded, tries)]
        if len(batch) > 1:
            log.warning("a batch failed (%s); retrying its %d rows one at a time", message, len(batch))
            return [result for row in batch for result in self._attempt([row], decoded, tries + 1)]
        if tries < self.runtime.row_attempts:
            return self._attempt(batch, decoded, tries + 1)
        log.warning("row %s failed: %s", batch[0].id, message, extra={"row": batch[0].id})
        return [RowError(batch[0].id, kind, message, tries)]


def _settled(result: "Encoded | RowError", position: int) -> "Cells | RowError":
    """Wait for the cells of a row; an error gets the row's position in the shard."""
    made = result.result() if isinstance(result, Future) else result
    return dataclasses.replace(made, row=position) if isinstance(made, RowError) else made


def _gpu_bytes(share: float) -> float:
    """Bytes of this actor's share of the GPU beside its loaded models; 0 on a CPU."""
    torch = sys.modules.get("torch")
    if not torch or not torch.cuda.is_available() or not torch.cuda.memory_allocated():
        return 0.0
    return float(share * torch.cuda.get_device_properties(0).total_memory - torch.cuda.memory_allocated())


def _free_gpu_memory() -> None:
    torch = sys.modules.get("torch")  # loaded, if there is anything to free
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
