"""How far a job is, from its records alone: works from anywhere, while the job runs and after.

`progress.json` sums up the records a driver has seen and says which they are, so that whoever asks reads only
the newer ones.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from stereo_jobs.data.storage import NotFoundError, Storage
from stereo_jobs.job import layout
from stereo_jobs.job.commits import committed, read_records
from stereo_jobs.job.layout import ShardKey
from stereo_jobs.job.plan import Job
from stereo_jobs.records import ShardRecord


@dataclass
class Totals:
    """Sums over records, apart for manifest and retry generations where they mean different things."""

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    """Earlier failures that a retry generation made good."""
    rejected: int = 0
    bytes: int = 0
    seconds: float = 0.0
    unet_evaluations: int = 0
    shards: set[ShardKey] = field(default_factory=set)

    def add(self, record: ShardRecord, is_retry: bool) -> None:
        """Add one shard; a second time it is ignored."""
        key = (record.generation, record.shard)
        if key in self.shards:
            return
        self.shards.add(key)
        self.succeeded += record.succeeded
        if is_retry:
            self.retried += record.succeeded
        else:
            self.failed += record.failed
        self.rejected += record.rejected
        self.bytes += record.bytes
        self.seconds += record.seconds
        self.unet_evaluations += record.unet_evaluations

    @property
    def failing(self) -> int:
        """Ids whose latest state is failed."""
        return self.failed - self.retried


@dataclass(frozen=True)
class Status:
    """What `stereo-jobs status` shows."""

    planned: int
    succeeded: int
    failed: int
    shards_planned: int
    shards_done: int
    generations: int
    bytes: int
    complete: bool

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self).copy()


def totals(storage: Storage, job: Job) -> Totals:
    """Sum of all records, from the roll-up and the records newer than it."""
    sums = _load(storage)
    _, keys = committed(storage)
    add(sums, job, read_records(storage, sorted(keys - sums.shards)))
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
        shards_planned=shards,
        shards_done=len(sums.shards),
        generations=len(job.plans),
        bytes=sums.bytes,
        complete=len(sums.shards) == shards,
    )


def save(storage: Storage, sums: Totals) -> None:
    """Write the roll-up; any reader makes do without it."""
    values = {key: value for key, value in vars(sums).items() if key != "shards"}
    storage.replace(layout.PROGRESS, json.dumps(values | {"shards": _pack(sums.shards)}).encode())


def _load(storage: Storage) -> Totals:
    try:
        values = json.loads(storage.read(layout.PROGRESS))
        return Totals(**values | {"shards": _unpack(values["shards"])})
    except (NotFoundError, ValueError, KeyError, TypeError):
        return Totals()


def _pack(shards: set[ShardKey]) -> dict[str, str]:
    """Per generation a compressed bitmap: a million shards take a few kilobytes."""
    bitmaps: dict[int, bytearray] = {}
    for generation, shard in shards:
        bitmap = bitmaps.setdefault(generation, bytearray())
        bitmap.extend(bytes(max(0, shard // 8 + 1 - len(bitmap))))
        bitmap[shard // 8] |= 1 << shard % 8
    return {str(g): base64.b64encode(zlib.compress(bytes(b))).decode() for g, b in bitmaps.items()}


def _unpack(packed: dict[str, str]) -> set[ShardKey]:
    return {
        (int(generation), 8 * i + bit)
        for generation, text in packed.items()
        for i, byte in enumerate(zlib.decompress(base64.b64decode(text)))
        for bit in range(8)
        if byte >> bit & 1
    }
