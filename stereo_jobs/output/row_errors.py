"""Row errors of a job: those of rows that still lack their pair, counted, grouped and listed in bounded memory.

A row that a later retry generation has settled is not among them, and one that failed again is there once, with its
latest error. They are read from the footers of the shards, also while the job runs.
"""

import bisect
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from stereo_jobs.data.storage import Storage
from stereo_jobs.output import layout
from stereo_jobs.output.commits import failed_rows, keys_with_errors, sizes
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.plan import Job, Plan
from stereo_jobs.output.progress import planned_only
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.records import REJECTED, RowError

MOST_GROUPS = 64
"""Groups that are told apart; what fits into none of them is in one more group of its type."""
FEW_SHARDS = 256
"""Shards with errors that a command reads when it only mentions the errors; reading more of them takes a while."""
_LONGEST_KIND = 80
_OTHER = "other messages"

_VARYING = re.compile(
    r"'(?:[^'\\]|\\.)*'"  # a quoted value
    r'|"(?:[^"\\]|\\.)*"'
    r"|\S*/\S*"  # a path or URI
    r"|[-+]?\d[\d.,x]*"  # a number, or WIDTHxHEIGHT
)


class FailedRow(NamedTuple):
    """A row that lacks its pair, and the shard whose footer says why."""

    shard: str
    error: RowError

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        error = self.error
        return {
            "id": error.id,
            "type": error.error_type,
            "message": error.error_message,
            "attempts": error.attempts,
            "shard": self.shard,
        }


@dataclass
class ErrorGroup:
    """Errors of one type whose messages begin alike.

    Attributes:
        type: their error type.
        kind: the beginning that their messages share, with `...` for values, paths and numbers.
        count: how many there are.
        id: id of the first of them, as an example.
        message: message of the first of them.
    """

    type: str
    kind: str
    count: int
    id: str
    message: str


class ErrorSummary:
    """Counts of row errors by group. Its memory does not depend on how many errors are added.

    Attributes:
        failed: number of errors.
        shards: shards with errors that were read.
        of_shards: shards with errors that there are; if more than were read, the counts are of a part of the errors.
    """

    def __init__(self) -> None:
        self.failed = 0
        self.shards = 0
        self.of_shards = 0
        self._groups: dict[tuple[str, str], ErrorGroup] = {}

    def add(self, error: RowError) -> None:
        """Count one error."""
        self.failed += 1
        key = (error.error_type, kind(error.error_message))
        if key not in self._groups and len(self._groups) >= MOST_GROUPS:
            key = (error.error_type, _OTHER)
        group = self._groups.setdefault(key, ErrorGroup(*key, 0, error.id, error.error_message))
        group.count += 1

    @property
    def groups(self) -> list[ErrorGroup]:
        """The groups, largest first."""
        return sorted(self._groups.values(), key=lambda group: -group.count)

    @property
    def complete(self) -> bool:
        """Whether all shards with errors were read."""
        return self.shards == self.of_shards

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "failed": self.failed,
            "complete": self.complete,
            "groups": [asdict(group) for group in self.groups],
        }


def kind(message: str) -> str:
    """Return what a message has in common with others of its kind: its beginning, with `...` for what varies.

    A message begins with the column or the rule, and its first clause says what is wrong.
    """
    line = message.strip().partition("\n")[0][:1000]
    common = _VARYING.sub("...", line)
    return re.split(r"[,;(]", common, maxsplit=1)[0].strip()[:_LONGEST_KIND] or "..."


def failing(storage: Storage, job: Job) -> Iterator[FailedRow]:
    """Iterate over the rows whose latest state is failed, in the order of their shards.

    Raises:
        DamagedError: a shard is damaged; the message names it.
    """
    done, with_errors = _listed(storage, job)
    yield from _failing(storage, job, done, with_errors)


def summarise(storage: Storage, job: Job, most_shards: int | None = None) -> ErrorSummary:
    """Count the rows whose latest state is failed, by group.

    Args:
        storage: the storage of the output.
        job: the plans of the output.
        most_shards: shards to read at most; of more, evenly spaced ones are read. None: all are read.

    Raises:
        DamagedError: a shard is damaged; the message names it.
    """
    summary = ErrorSummary()
    done, keys = _listed(storage, job)
    summary.of_shards = len(keys)
    if most_shards is not None and len(keys) > most_shards:
        keys = [keys[i] for i in np.linspace(0, len(keys) - 1, most_shards).astype(int)]
    summary.shards = len(keys)
    for row in _failing(storage, job, done, keys):
        summary.add(row.error)
    return summary


def _listed(storage: Storage, job: Job) -> tuple[ShardSet, list[ShardKey]]:
    """List the committed shards, and the planned ones among them that have an errors file."""
    with_errors = keys_with_errors(storage)  # before the shards: an errors file is written after its shard
    done = ShardSet(key for key, _ in sizes(storage))
    return done, [key for key in planned_only(job, with_errors) if key in done]


def _failing(storage: Storage, job: Job, done: ShardSet, keys: Iterable[ShardKey]) -> Iterator[FailedRow]:
    offsets = _offsets(job)
    for key, errors in failed_rows(storage, keys):
        plan = job.plans[key[0]]
        for error in errors:
            if error.error_type == REJECTED:
                continue
            position = key[1] * plan.shard_rows + max(0, error.row)
            pair = plan.retry[position] if plan.kind == "retry" else offsets[plan.generation] + position
            later = job.plans[plan.generation + 1 :]
            if error.row < 0 or not any(_settles(retry, pair, done) for retry in later):
                yield FailedRow(layout.shard_name(key), error)


def _offsets(job: Job) -> dict[int, int]:
    """Return for each manifest generation the number of pairs before it, by which retry generations name pairs."""
    offsets, total = {}, 0
    for plan in job.plans:
        if plan.kind == "manifest":
            offsets[plan.generation], total = total, total + plan.pairs
    return offsets


def _settles(plan: Plan, pair: int, done: ShardSet) -> bool:
    """Whether a committed shard of a retry generation has a later outcome of a pair."""
    if plan.kind != "retry":
        return False
    at = bisect.bisect_left(plan.retry, pair)  # a retry plan lists its pairs in ascending order
    found = at < len(plan.retry) and plan.retry[at] == pair
    return found and (plan.generation, at // plan.shard_rows) in done
