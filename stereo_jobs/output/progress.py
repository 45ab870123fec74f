"""How far a job is, from its records alone: works from anywhere, while the job runs and after.

`progress.json` sums up the records a driver has seen and says which they are, so that whoever asks reads only
the newer ones.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from stereo_jobs.data.storage import NotFoundError, Storage
from stereo_jobs.output import layout
from stereo_jobs.output.commits import committed, read_records
from stereo_jobs.output.plan import Job
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.records import QualitySummary, ShardRecord


@dataclass
class Totals:
    """Sums over records, apart for manifest and retry generations where they mean different things."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    """Earlier failures that a retry generation settled: made good, or rejected for their verdict."""
    rejected: int = 0
    quality: QualitySummary = field(default_factory=QualitySummary)
    bytes: int = 0
    seconds: float = 0.0
    wasted_seconds: float = 0.0
    """Of workers at shards that then had to be dealt again, as far as a driver has seen it."""
    unet_evaluations: int = 0
    shards: ShardSet = field(default_factory=ShardSet)

    def add(self, record: ShardRecord, is_retry: bool) -> None:
        """Add one shard; a second time it is ignored."""
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
        self.bytes += record.bytes
        self.seconds += record.seconds
        self.unet_evaluations += record.unet_evaluations

    @property
    def failing(self) -> int:
        """Ids whose latest state is failed."""
        return self.failed - self.retried


@dataclass(frozen=True)
class Throughput:
    """How a run was going when its driver last said so; a run that ends in order takes it back.

    Attributes:
        at: time on the driver's clock, ISO 8601: for people to read, never compared.
        pairs_per_s: of this run so far.
        eta_s: seconds to go at this rate.
        workers: that were ready.
    """

    at: str
    pairs_per_s: float
    eta_s: float | None
    workers: int

    @classmethod
    def now(cls, pairs_per_s: float, eta_s: float | None, workers: int) -> Self:
        """What the driver has to say at this moment."""
        return cls(datetime.now(UTC).isoformat(timespec="seconds"), pairs_per_s, eta_s, workers)


@dataclass(frozen=True)
class Status:
    """What `stereo-jobs status` shows."""

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

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self) | {"quality": self.quality.model_dump()}


def totals(storage: Storage, job: Job) -> Totals:
    """Sum of all records, from the roll-up and the records newer than it."""
    sums = _load(storage)
    _, keys = committed(storage)
    add(sums, job, read_records(storage, keys.without(sums.shards)))
    return sums


def add(sums: Totals, job: Job, records: Iterable[ShardRecord]) -> None:
    """Add records of this job."""
    for record in records:
        sums.add(record, job.plans[record.generation].kind == "retry")


def status(job: Job, sums: Totals) -> Status:
    """How far the job is."""
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
    )


def save(storage: Storage, sums: Totals, pace: Throughput | None = None) -> None:
    """Write the roll-up; any reader makes do without it."""
    packed = {"shards": sums.shards.pack(), "quality": sums.quality.model_dump(), "pace": pace and asdict(pace)}
    storage.replace(layout.PROGRESS, json.dumps(vars(sums) | packed).encode())


def pace(storage: Storage) -> Throughput | None:
    """What the last run said of itself, unless it ended in order; it may have died since."""
    try:
        return Throughput(**json.loads(storage.read(layout.PROGRESS))["pace"])
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None


def _load(storage: Storage) -> Totals:
    try:
        values = json.loads(storage.read(layout.PROGRESS))
        values.pop("pace", None)
        unpacked = {
            "shards": ShardSet.unpack(values["shards"]),
            "quality": QualitySummary.model_validate(values["quality"]),
        }
        return Totals(**values | unpacked)
    except (NotFoundError, ValueError, KeyError, TypeError):
        return Totals()
