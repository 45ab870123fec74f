"""Progress of a job, from its records alone: it can be read from anywhere, during the run and after it.

`progress.json` holds the sums over all records that a driver has seen, and the set of their shards. Readers therefore
fetch only the records that are newer.
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
    """Sums over the records of a job.

    Attributes:
        succeeded: pairs in data/.
        failed: rows that failed in a manifest generation.
        retried: earlier failures that a retry generation settled: the pair was made, or it was rejected.
        rejected: pairs that were made and left out for their verdict.
        quality: verdicts, and means of the metrics.
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

    at: str
    pairs_per_s: float
    eta_s: float | None
    workers: int

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

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return vars(self) | {"quality": self.quality.model_dump()}


def totals(storage: Storage, job: Job) -> Totals:
    """Sum up all records: those in `progress.json`, and the newer ones one by one."""
    sums = _load(storage)
    _, keys = committed(storage)
    add(sums, job, read_records(storage, keys.without(sums.shards)))
    return sums


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
    )


def save(storage: Storage, sums: Totals, throughput: Throughput | None = None) -> None:
    """Write `progress.json`. It only saves readers time; they also work without it."""
    packed = {
        "shards": sums.shards.pack(),
        "quality": sums.quality.model_dump(),
        "pace": throughput and asdict(throughput),
    }
    storage.replace(layout.PROGRESS, json.dumps(vars(sums) | packed).encode())


def throughput(storage: Storage) -> Throughput | None:
    """Return the last report of a run that has not ended normally: it works still, or was killed since."""
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
