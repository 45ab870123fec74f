"""Verification: every planned id is exactly once in data/, or else among the failed rows, and every object is intact.

Each problem is a line that ends with its remedy. Only the output is needed: planned ids are compared by the hashes in
its ids files. Where an ids file is missing, its manifest is read instead.
"""

import hashlib
import logging
from collections.abc import Sequence
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
from stereo_jobs.output.reading import AGAIN, describe, in_threads, intact
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.records import REJECTED
from stereo_jobs.spec import StorageSpec

log = logging.getLogger(__name__)

_MAX_CORRUPT = 100
_MAX_NAMED = 5
_REMAKE = "move all these objects away and run again: they are then made again"


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
        problems: one line per problem, with its remedy; those of the first hundred corrupt objects, and of the rows.
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
        """Log and list a problem."""
        log.info("%s", text)
        self.problems.append(text)

    def add_corrupt(self, text: str) -> None:
        """Count a corrupt object, log its problem, and list it while there are few."""
        self.corrupt += 1
        if self.corrupt <= _MAX_CORRUPT:
            self.add_problem(text)
        else:
            log.info("%s", text)


Keys = NDArray[np.uint64]
"""Keys of pair ids, N,3: the two halves of the manifest id's hash, and the variant."""


class _Outcomes(NamedTuple):
    """The pair ids of one shard by their outcome, as keys."""

    shard: layout.ShardKey
    succeeded: Keys
    failed: Keys
    rejected: Keys


def verify(storage: Storage, job: Job, settings: StorageSpec) -> VerifyReport:
    """Read every object of an output and compare it with its plans.

    Args:
        storage: storage of the output.
        job: all plans of the output.
        settings: S3 access, for manifests whose ids file is missing.
    """
    report = VerifyReport(planned=job.pairs)
    objects, records, _ = committed(storage)
    planned = ShardSet(job.shard_keys())
    found = ShardSet([*objects, *records])
    for key in found.without(planned):
        names = [name for name, has in ((layout.data(key), objects), (layout.record(key), records)) if key in has]
        report.add_corrupt(f"{' and '.join(names)}: no plan has this shard; move away what has its name")

    def check(key: layout.ShardKey) -> _Outcomes | str:
        return _check_object(storage, job.plans[key[0]], key, key in records)

    whole: list[_Outcomes] = []
    for outcome in in_threads(check, (key for key in found if key in planned), 4):
        if isinstance(outcome, str):
            report.add_corrupt(outcome)
        else:
            whole.append(outcome)
    _count(report, job, _expected(storage, job, settings), whole)
    return report


def damaged(error: DamagedError) -> VerifyReport:
    """Return the report on an output whose plans cannot be read."""
    report = VerifyReport()
    report.add_corrupt(str(error))
    return report


def _check_object(storage: Storage, plan: Plan, key: layout.ShardKey, has_record: bool) -> _Outcomes | str:
    """Return the ids of one shard by their outcome; if its object is not intact, what is wrong and what to do."""
    name = layout.data(key)
    try:
        return _read_object(storage, plan, key, has_record)
    except NotFoundError:
        return f"{name}: recorded as committed, but gone; restore it, or run again: it is then made again"
    except DamagedError as error:
        return str(error).removeprefix(f"{storage.uri}/")
    except ValueError as error:
        return f"{name}: {describe(error)}; {AGAIN}"


def _read_object(storage: Storage, plan: Plan, key: layout.ShardKey, has_record: bool) -> _Outcomes:
    """Read the ids of one shard by their outcome. Raises ValueError if the object contradicts itself or its plan."""
    name = layout.data(key)
    data = storage.read(name)
    with intact(storage, name):
        footer = read_footer(data)
        succeeded = _id_keys(read_table(data)["id"].to_pylist())  # refuses what is no id
    record = footer.record
    if (record.generation, record.shard) != key or record.fingerprint != plan.fingerprint:
        raise ValueError("belongs to another plan")
    rejected = [error.id for error in footer.errors if error.error_type == REJECTED]
    failed = [error.id for error in footer.errors if error.error_type != REJECTED]
    if (len(succeeded), len(failed), len(rejected)) != (record.succeeded, record.failed, record.rejected):
        raise ValueError("its rows differ from the counts in its footer")
    if record.succeeded + record.failed + record.rejected != plan.pairs_in(key[1]):
        raise ValueError("its row count differs from the plan")
    if has_record:
        recorded = read_record(storage, key)
        if recorded.sha256 != hashlib.sha256(data).hexdigest():
            raise ValueError("its checksum differs from the one in its record")
    return _Outcomes(key, succeeded, _id_keys(failed), _id_keys(rejected))


def _id_keys(ids: list[str]) -> Keys:
    """Compute the keys of pair ids."""
    bases, variants = [], []
    for value in ids:
        base, _, variant = value.partition("~")
        bases.append(base)
        variants.append(int(variant or 0))
    hashes = hash_ids(pa.array(bases, pa.string()))
    return np.concatenate([hashes, np.array(variants, np.uint64)[:, None]], axis=1)


def _expected(storage: Storage, job: Job, settings: StorageSpec) -> Keys:
    """Compute the keys of all planned ids; a retry generation only repeats ids."""
    parts = []
    for plan in job.plans:
        if plan.kind == "manifest":
            hashes = known_hashes(storage, plan, settings).repeat(plan.variants, axis=0)
            variants = np.tile(np.arange(plan.variants, dtype=np.uint64), len(hashes) // plan.variants)
            parts.append(np.concatenate([hashes, variants[:, None]], axis=1))
    return _stack(parts)


def _stack(parts: Sequence[Keys]) -> Keys:
    return np.concatenate(parts) if parts else np.empty((0, 3), np.uint64)


def _count(report: VerifyReport, job: Job, expected: Keys, shards: Sequence[_Outcomes]) -> None:
    """Compare the planned ids with those found in intact shards, and fill in the counts of the report.

    A finished pair, kept or rejected, takes precedence over an earlier failure of the same id: a retry settled it.
    """
    wanted = _as_set(expected)
    made, lost, left_out = (
        _as_set(_stack([getattr(shard, name) for shard in shards])) for name in ("succeeded", "failed", "rejected")
    )
    finished = np.union1d(made, left_out)
    unplanned = np.setdiff1d(np.union1d(finished, lost), wanted)
    report.succeeded = len(np.intersect1d(made, wanted))
    report.rejected = len(np.intersect1d(left_out, wanted))
    report.failed = len(np.setdiff1d(np.intersect1d(lost, wanted), finished))
    report.missing = len(np.setdiff1d(wanted, np.union1d(finished, lost)))
    report.duplicated = sum(len(shard.succeeded) + len(shard.rejected) for shard in shards) - len(finished)
    if report.missing:
        first = "do first what is said above of objects; then " if report.corrupt else ""
        report.add_problem(
            f"{report.missing} planned rows are neither in data/ nor among the failed rows; {first}run again: they are "
            "then made"
        )
    if report.duplicated:
        named = _shards_with(shards, _repeated(shards))
        report.add_problem(
            f"{report.duplicated} rows are in data/ more than once, in {_names(named)}; {_undo(job, named)}"
        )
    if len(unplanned):
        report.corrupt += len(unplanned)
        named = _shards_with(shards, unplanned)
        report.add_problem(f"{len(unplanned)} rows were never planned, in {_names(named)}; {_REMAKE}")


def _undo(job: Job, shards: Sequence[layout.ShardKey]) -> str:
    """Return the remedy for rows that several of these shards have."""
    retries = [generation for generation, _ in shards if job.plans[generation].kind == "retry"]
    if not retries:
        return _REMAKE
    # A shard of a retry would be made again with the rows that have been done elsewhere by now.
    first, last = min(retries), len(job.plans) - 1
    which = f"generation {first:04d}" if first == last else f"generations {first:04d} to {last:04d}"
    return (
        f"rows of a retry were also made again elsewhere: move away every object of {which}, in data/ and _job/; then "
        "run again with --extend, and retry-failed"
    )


def _names(shards: Sequence[layout.ShardKey]) -> str:
    rest = len(shards) - _MAX_NAMED
    listed = ", ".join(map(layout.data, shards[:_MAX_NAMED]))
    return f"{listed} and {rest} more" if rest > 0 else listed


def _repeated(shards: Sequence[_Outcomes]) -> NDArray[np.void]:
    """Return the keys that are finished more often than once."""
    keys, counts = np.unique(
        _opaque(_stack([k for s in shards for k in (s.succeeded, s.rejected)])), return_counts=True
    )
    return keys[counts > 1]


def _shards_with(shards: Sequence[_Outcomes], keys: NDArray[np.void]) -> list[layout.ShardKey]:
    """Return the shards that hold some of these keys."""
    return [shard.shard for shard in shards if np.isin(_opaque(_stack(shard[1:])), keys).any()]


def _opaque(keys: Keys) -> NDArray[np.void]:
    """Convert keys N,3 to N opaque values, which numpy's set functions compare."""
    return np.ascontiguousarray(keys).view(np.dtype((np.void, 24))).ravel()


def _as_set(keys: Keys) -> NDArray[np.void]:
    """Convert keys N,3 to a sorted set of at most N opaque values."""
    return np.unique(_opaque(keys))
