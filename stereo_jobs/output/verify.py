"""Verification: every planned id is exactly once in data/, or else among the failed rows, and every object is intact.

Only the output is needed: planned ids are compared by the hashes in its ids files. Where an ids file is missing, its
manifest is read instead.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stereo_jobs.data.shards import read_footer, read_table
from stereo_jobs.data.storage import NotFoundError, Storage
from stereo_jobs.errors import DamagedError
from stereo_jobs.output import layout
from stereo_jobs.output.commits import committed, read_record
from stereo_jobs.output.id_hashes import hash_ids
from stereo_jobs.output.plan import Job, Plan, known_hashes
from stereo_jobs.output.reading import describe, in_threads, intact
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.records import REJECTED
from stereo_jobs.spec import StorageSpec

log = logging.getLogger(__name__)

_MAX_PROBLEMS = 100


@dataclass
class VerifyReport:
    """Result of a verification, in numbers of rows (`corrupt`: shard objects, and rows that no plan has).

    Attributes:
        planned: planned rows, each id counted once.
        succeeded: planned rows in data/.
        failed: planned rows that are only among the failed rows.
        rejected: planned rows that were left out for their verdict.
        missing: planned rows that are in none of these places.
        duplicated: rows that are in data/ more often than once.
        corrupt: objects that are damaged or belong to no plan, and rows that were never planned.
        problems: one line per problem, the first hundred of them.
    """

    planned: int = 0
    succeeded: int = 0
    failed: int = 0
    rejected: int = 0
    missing: int = 0
    duplicated: int = 0
    corrupt: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is missing, duplicated or corrupt."""
        return not (self.missing or self.duplicated or self.corrupt)

    @property
    def exit_code(self) -> int:
        """Exit code of `stereo-jobs verify`: 0 if ok, else 4."""
        return 0 if self.ok else 4

    def as_json(self) -> dict[str, Any]:
        """Return the fields and `ok` as plain JSON values."""
        return vars(self) | {"ok": self.ok}

    def add_problem(self, text: str) -> None:
        """Log a problem, and list it while there are fewer than a hundred."""
        log.info("%s", text)
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)

    def add_corrupt(self, text: str) -> None:
        """Count a corrupt object and add its problem."""
        self.corrupt += 1
        self.add_problem(text)


class _Ids(NamedTuple):
    """The ids of one shard, or of many, by their outcome."""

    succeeded: list[str]
    failed: list[str]
    rejected: list[str]


def verify(storage: Storage, job: Job, settings: StorageSpec) -> VerifyReport:
    """Read every object of an output and compare it with its plans.

    Args:
        storage: storage of the output.
        job: all plans of the output.
        settings: S3 access, for manifests whose ids file is missing.
    """
    report = VerifyReport(planned=job.pairs)
    objects, records = committed(storage)
    planned = ShardSet(job.shard_keys())
    found = ShardSet([*objects, *records])
    for key in found.without(planned):
        report.add_corrupt(f"{layout.data(key)}: no plan has this shard")
    succeeded: list[NDArray[np.uint64]] = []
    failed: list[NDArray[np.uint64]] = []
    rejected: list[NDArray[np.uint64]] = []

    def check(key: layout.ShardKey) -> _Ids | str:
        return _check_object(storage, job.plans[key[0]], key, key in records)

    for ids in in_threads(check, (key for key in found if key in planned), 4):
        if isinstance(ids, str):
            report.add_corrupt(ids)
            continue
        succeeded.append(_id_keys(ids.succeeded))
        failed.append(_id_keys(ids.failed))
        rejected.append(_id_keys(ids.rejected))
    _count(report, _expected(storage, job, settings), _stack(succeeded), _stack(failed), _stack(rejected))
    return report


def damaged(error: DamagedError) -> VerifyReport:
    """Return the report on an output whose plans cannot be read."""
    report = VerifyReport()
    report.add_corrupt(str(error))
    return report


def _check_object(storage: Storage, plan: Plan, key: layout.ShardKey, has_record: bool) -> _Ids | str:
    """Return the ids of one shard by their outcome; if its object is not intact, what is wrong with it."""
    name = layout.data(key)
    try:
        return _read_object(storage, plan, key, has_record)
    except NotFoundError:
        return f"{name}: recorded as committed, but gone"
    except DamagedError as error:
        return str(error).removeprefix(f"{storage.uri}/")
    except ValueError as error:
        return f"{name}: {describe(error)}"


def _read_object(storage: Storage, plan: Plan, key: layout.ShardKey, has_record: bool) -> _Ids:
    """Read the ids of one shard by their outcome. Raises ValueError if the object contradicts itself or its plan."""
    name = layout.data(key)
    data = storage.read(name)
    with intact(storage, name):
        footer = read_footer(data)
        ids = read_table(data)["id"].to_pylist()
        _id_keys(ids)  # refuses what is no id
    record = footer.record
    if (record.generation, record.shard) != key or record.fingerprint != plan.fingerprint:
        raise ValueError("belongs to another plan")
    rejected = [error.id for error in footer.errors if error.error_type == REJECTED]
    failed = [error.id for error in footer.errors if error.error_type != REJECTED]
    if (len(ids), len(failed), len(rejected)) != (record.succeeded, record.failed, record.rejected):
        raise ValueError("its rows differ from the counts in its footer")
    if record.succeeded + record.failed + record.rejected != plan.pairs_in(key[1]):
        raise ValueError("its row count differs from the plan")
    if has_record:
        recorded = read_record(storage, key)
        if recorded.sha256 != hashlib.sha256(data).hexdigest():
            raise ValueError("its checksum differs from the one in its record")
    return _Ids(ids, failed, rejected)


def _id_keys(ids: list[str]) -> NDArray[np.uint64]:
    """Compute keys of pair ids, N,3: the two halves of the manifest id's hash, and the variant."""
    bases, variants = [], []
    for value in ids:
        base, _, variant = value.partition("~")
        bases.append(base)
        variants.append(int(variant or 0))
    hashes = hash_ids(pa.array(bases, pa.string()))
    return np.concatenate([hashes, np.array(variants, np.uint64)[:, None]], axis=1)


def _expected(storage: Storage, job: Job, settings: StorageSpec) -> NDArray[np.uint64]:
    """Compute the keys of all planned ids, N,3; a retry generation only repeats ids."""
    parts = []
    for plan in job.plans:
        if plan.kind == "manifest":
            hashes = known_hashes(storage, plan, settings).repeat(plan.variants, axis=0)
            variants = np.tile(np.arange(plan.variants, dtype=np.uint64), len(hashes) // plan.variants)
            parts.append(np.concatenate([hashes, variants[:, None]], axis=1))
    return _stack(parts)


def _stack(parts: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.concatenate(parts) if parts else np.empty((0, 3), np.uint64)


def _count(
    report: VerifyReport,
    expected: NDArray[np.uint64],
    succeeded: NDArray[np.uint64],
    failed: NDArray[np.uint64],
    rejected: NDArray[np.uint64],
) -> None:
    """Compare the planned ids with those found, all as keys N,3, and fill in the counts of the report.

    A finished pair, kept or rejected, takes precedence over an earlier failure of the same id: a retry settled it.
    """
    wanted, made, lost, left_out = (_as_set(keys) for keys in (expected, succeeded, failed, rejected))
    finished = np.union1d(made, left_out)
    report.succeeded = len(np.intersect1d(made, wanted))
    report.rejected = len(np.intersect1d(left_out, wanted))
    report.failed = len(np.setdiff1d(np.intersect1d(lost, wanted), finished))
    report.missing = len(np.setdiff1d(wanted, np.union1d(finished, lost)))
    report.duplicated = len(succeeded) + len(rejected) - len(finished)
    unplanned = len(np.setdiff1d(np.union1d(finished, lost), wanted))
    report.corrupt += unplanned
    for count, text in (
        (report.missing, "planned rows are neither in data/ nor among the failed rows"),
        (report.duplicated, "rows are in data/ more than once"),
        (unplanned, "rows were never planned"),
    ):
        if count:
            report.add_problem(f"{count} {text}")


def _as_set(keys: NDArray[np.uint64]) -> NDArray[np.void]:
    """Convert keys N,3 to a sorted set of at most N opaque values, which numpy's set functions compare."""
    return np.unique(np.ascontiguousarray(keys).view(np.dtype((np.void, 24))).ravel())
