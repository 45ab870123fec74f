"""Progress of a job, from its records alone: it can be read from anywhere, during the run and after it.

`progress.json` holds the sums over all records that a driver has seen, and the set of their shards. Readers therefore
fetch only the records that are newer.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from stereo_jobs.data.storage import NotFoundError, Storage
from stereo_jobs.errors import DamagedError
from stereo_jobs.output import layout
from stereo_jobs.output.commits import read_records, recorded_beyond
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.plan import Job, Plan
from stereo_jobs.output.reading import intact, read_json
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.records import PromptNotes, QualitySummary, ShardRecord

log = logging.getLogger(__name__)

_AMOUNT = Field(ge=0, lt=2.0**53, allow_inf_nan=False)


@dataclass
class Totals:
    """Sums over the records of a job.

    Attributes:
        succeeded: pairs in data/.
        failed: rows that failed in a manifest generation.
        retried: earlier failures that a retry generation settled: the pair was made, or it was rejected.
        rejected: pairs that were made and left out for their verdict.
        quality: verdicts, and means of the metrics.
        prompts: prompts that were cut, or have attention weights.
        bytes: size of the shard objects.
        seconds: worker time for these shards.
        wasted_seconds: worker time for shards that had to be dispatched again, as far as a driver has seen it.
        unet_evaluations: evaluations of the diffusion network.
        shards: the shards that are summed up here.
    """

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    rejected: int = 0
    quality: QualitySummary = field(default_factory=QualitySummary)
    prompts: PromptNotes = field(default_factory=PromptNotes)
    bytes: int = 0
    seconds: float = 0.0
    wasted_seconds: float = 0.0
    unet_evaluations: int = 0
    shards: ShardSet = field(default_factory=ShardSet)

    def add(self, record: ShardRecord, is_retry: bool) -> None:
        """Add the record of one shard; adding it twice changes nothing."""
        key = (record.generation, record.shard)
        if key in self.shards:
            return
        self.shards.add(key)
        self.succeeded += record.succeeded
        if is_retry:
            self.retried += record.succeeded + record.rejected
        else:
            self.failed += record.failed
        self.rejected += record.rejected
        self.quality = self.quality.merged(record.quality)
        self.prompts = self.prompts.merged(record.prompts)
        self.bytes += record.bytes
        self.seconds += record.seconds
        self.unet_evaluations += record.unet_evaluations

    @property
    def failing(self) -> int:
        """Number of ids whose latest state is failed."""
        return self.failed - self.retried


@dataclass(frozen=True)
class Throughput:
    """Speed of a run when its driver last reported it. A run that ends normally removes its report.

    Attributes:
        at: time of the report on the driver's clock, ISO 8601; for people to read, never compared.
        pairs_per_s: pairs per second of this run so far.
        eta_s: seconds left at this rate; None if unknown.
        workers: number of ready workers.
    """

    at: Annotated[str, Field(max_length=40)]
    pairs_per_s: Annotated[float, _AMOUNT]
    eta_s: Annotated[float, _AMOUNT] | None
    workers: Annotated[int, _AMOUNT]

    @classmethod
    def now(cls, pairs_per_s: float, eta_s: float | None, workers: int) -> Self:
        """Make a report with the present time."""
        return cls(datetime.now(UTC).isoformat(timespec="seconds"), pairs_per_s, eta_s, workers)


@dataclass(frozen=True)
class Status:
    """Progress of a job, as `stereo-jobs status` shows it; the counts are explained at `Totals`.

    Attributes:
        planned: number of planned pairs.
        failed: ids whose latest state is failed.
        shards_planned: number of shards in all generations.
        shards_done: number of committed shards.
        generations: number of plan generations.
        complete: whether all shards are committed.
    """

    planned: int
    succeeded: int
    failed: int
    rejected: int
    shards_planned: int
    shards_done: int
    generations: int
    bytes: int
    seconds: float
    wasted_seconds: float
    complete: bool
    quality: QualitySummary
    prompts: PromptNotes = field(default_factory=PromptNotes)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return vars(self) | {"quality": self.quality.model_dump(), "prompts": self.prompts.model_dump()}


class RolledUp(BaseModel):
    """The content of `progress.json`."""

    succeeded: Annotated[int, _AMOUNT] = 0
    failed: Annotated[int, _AMOUNT] = 0
    retried: Annotated[int, _AMOUNT] = 0
    rejected: Annotated[int, _AMOUNT] = 0
    quality: QualitySummary
    prompts: PromptNotes = PromptNotes()
    bytes: Annotated[int, _AMOUNT] = 0
    seconds: Annotated[float, _AMOUNT] = 0.0
    wasted_seconds: Annotated[float, _AMOUNT] = 0.0
    unet_evaluations: Annotated[int, _AMOUNT] = 0
    shards: dict[str, str]
    pace: Throughput | None = None


def totals(storage: Storage, job: Job, known: Totals | None = None) -> Totals:
    """Sum up all records: those in `progress.json`, and the newer ones one by one.

    Args:
        storage: the storage of the output.
        job: its plans.
        known: an earlier result for this job, to go on from where there is no `progress.json`; it is changed.
    """
    sums = rolled_up(storage, job)
    if known and not sums.shards:
        sums = known
    add(sums, job, read_records(storage, recorded_beyond(storage, job.plans, sums.shards)))
    return sums


def planned_only(job: Job, keys: Iterable[ShardKey]) -> Iterator[ShardKey]:
    """Leave out the keys of shards that no plan has."""
    for generation, shard in keys:
        if generation < len(job.plans) and shard < job.plans[generation].shards:
            yield generation, shard
        else:
            log.warning("%s is ignored: no plan has such a shard", layout.shard_name((generation, shard)))


def add(sums: Totals, job: Job, records: Iterable[ShardRecord]) -> None:
    """Add records of this job to the sums."""
    for record in records:
        sums.add(record, job.plans[record.generation].kind == "retry")


def status(job: Job, sums: Totals) -> Status:
    """Compute the progress of a job from its sums."""
    shards = sum(plan.shards for plan in job.plans)
    return Status(
        planned=job.pairs,
        succeeded=sums.succeeded,
        failed=sums.failing,
        rejected=sums.rejected,
        shards_planned=shards,
        shards_done=len(sums.shards),
        generations=len(job.plans),
        bytes=sums.bytes,
        seconds=round(sums.seconds, 3),
        wasted_seconds=round(sums.wasted_seconds, 3),
        complete=len(sums.shards) == shards,
        quality=sums.quality,
        prompts=sums.prompts,
    )


def save(storage: Storage, sums: Totals, throughput: Throughput | None = None) -> None:
    """Write `progress.json`. It only saves readers time; they also work without it."""
    packed = {
        "shards": sums.shards.pack(),
        "quality": sums.quality.model_dump(),
        "prompts": sums.prompts.model_dump(),
        "pace": throughput and asdict(throughput),
    }
    storage.replace(layout.PROGRESS, json.dumps(vars(sums) | packed).encode())


def throughput(storage: Storage) -> Throughput | None:
    """Return the last report of a run that has not ended normally: it works still, or was killed since."""
    try:
        return read_json(storage, layout.PROGRESS, RolledUp).pace
    except (NotFoundError, DamagedError):
        return None


def rolled_up(storage: Storage, job: Job) -> Totals:
    """Read `progress.json`; nothing is summed up if it is missing, damaged, or contradicts the plans."""
    try:
        with intact(storage, layout.PROGRESS):
            found = read_json(storage, layout.PROGRESS, RolledUp)
            shards = ShardSet.unpack(found.shards, [plan.shards for plan in job.plans])
            planned = sum(_pairs_in(plan, shards) for plan in job.plans if plan.kind == "manifest")
            if found.succeeded + found.failed + found.rejected - found.retried != planned:
                raise ValueError("its counts contradict the plans")
            fields = {name: value for name, value in found if name != "pace"}
            return Totals(**fields | {"shards": shards})
    except (NotFoundError, DamagedError):
        return Totals()


def _pairs_in(plan: Plan, shards: ShardSet) -> int:
    """Count the pairs of those shards of a plan that are in a set."""
    last = (plan.generation, plan.shards - 1)
    missing = plan.shards * plan.shard_rows - plan.pairs if last in shards else 0
    return shards.count(plan.generation) * plan.shard_rows - missing
