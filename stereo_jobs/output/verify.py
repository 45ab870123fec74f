"""Verification: every planned id exactly once in data/, or else in errors; every object whole.

Needs the output only: planned ids are known by their hashes, so the manifest may be gone.
"""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stereo_jobs.data.shards import read_footer, read_table
from stereo_jobs.data.storage import NotFoundError, Storage
from stereo_jobs.output import layout
from stereo_jobs.output.commits import committed
from stereo_jobs.output.id_hashes import hash_ids
from stereo_jobs.output.plan import Job, Plan, known_hashes
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.records import REJECTED, ShardRecord
from stereo_jobs.spec import StorageSpec

log = logging.getLogger(__name__)


@dataclass
class Verdict:
    """The result. `problems` names what is wrong, the first hundred of it."""

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
        """Nothing missing, nothing twice, nothing broken."""
        return not (self.missing or self.duplicated or self.corrupt)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with `ok`."""
        return vars(self) | {"ok": self.ok}

    def complain(self, text: str) -> None:
        """Note one problem."""
        log.info("%s", text)
        if len(self.problems) < 100:
            self.problems.append(text)


class _Ids(NamedTuple):
    """The ids of a shard by what became of them."""

    succeeded: list[str]
    failed: list[str]
    rejected: list[str]


def verify(storage: Storage, job: Job, settings: StorageSpec) -> Verdict:
    """Read every object of an output and compare it with its plans."""
    verdict = Verdict(planned=job.pairs)
    objects, records = committed(storage)
    planned = ShardSet(job.shard_keys())
    found = ShardSet([*objects, *records])
    for key in found.without(planned):
        verdict.corrupt += 1
        verdict.complain(f"{layout.data(key)}: no plan has this shard")
    succeeded: list[NDArray[np.uint64]] = []
    failed: list[NDArray[np.uint64]] = []
    rejected: list[NDArray[np.uint64]] = []

    def check(key: layout.ShardKey) -> _Ids | None:
        return _check_object(storage, job.plans[key[0]], key, key in records, verdict)

    with ThreadPoolExecutor(4) as threads:
        for ids in threads.map(check, (key for key in found if key in planned)):
            if ids:
                succeeded.append(_keys(ids.succeeded))
                failed.append(_keys(ids.failed))
                rejected.append(_keys(ids.rejected))
    _count(verdict, _expected(storage, job, settings), _stack(succeeded), _stack(failed), _stack(rejected))
    return verdict


def _check_object(
    storage: Storage, plan: Plan, key: layout.ShardKey, has_record: bool, verdict: Verdict
) -> _Ids | None:
    """What became of the ids of one shard; None (and a complaint) if the object is not whole."""
    name = layout.data(key)
    try:
        data = storage.read(name)
        footer = read_footer(data)
        record = footer.record
        table = read_table(data)
        ids = table["id"].to_pylist()
        if (record.generation, record.shard) != key or record.fingerprint != plan.fingerprint:
            raise ValueError("belongs to another plan")
        rejected = [error.id for error in footer.errors if error.error_type == REJECTED]
        failed = [error.id for error in footer.errors if error.error_type != REJECTED]
        if (len(ids), len(failed), len(rejected)) != (record.succeeded, record.failed, record.rejected):
            raise ValueError("its rows are not those its footer counts")
        if record.succeeded + record.failed + record.rejected != plan.pairs_in(key[1]):
            raise ValueError("it has not the number of rows that is planned")
        if has_record:
            noted = ShardRecord.model_validate_json(storage.read(layout.record(key)))
            if noted.sha256 != hashlib.sha256(data).hexdigest():
                raise ValueError("its checksum is not the recorded one")
    except NotFoundError:
        verdict.corrupt += 1
        verdict.complain(f"{name}: recorded as committed, but gone")
        return None
    except (ValueError, OSError, pa.ArrowException) as error:
        verdict.corrupt += 1
        verdict.complain(f"{name}: {error}")
        return None
    return _Ids(ids, failed, rejected)


def _keys(ids: list[str]) -> NDArray[np.uint64]:
    """Hash of the manifest id, and the variant: N,3."""
    bases, variants = [], []
    for value in ids:
        base, _, variant = value.partition("~")
        bases.append(base)
        variants.append(int(variant or 0))
    hashes = hash_ids(pa.array(bases, pa.string()))
    return np.concatenate([hashes, np.array(variants, np.uint64)[:, None]], axis=1)


def _expected(storage: Storage, job: Job, settings: StorageSpec) -> NDArray[np.uint64]:
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
    verdict: Verdict,
    expected: NDArray[np.uint64],
    succeeded: NDArray[np.uint64],
    failed: NDArray[np.uint64],
    rejected: NDArray[np.uint64],
) -> None:
    """A finished pair, kept or rejected, outranks an error of the same id (a retry made it good)."""
    wanted, made, lost, left_out = (_as_set(keys) for keys in (expected, succeeded, failed, rejected))
    finished = np.union1d(made, left_out)
    verdict.succeeded = len(np.intersect1d(made, wanted))
    verdict.rejected = len(np.intersect1d(left_out, wanted))
    verdict.failed = len(np.setdiff1d(np.intersect1d(lost, wanted), finished))
    verdict.missing = len(np.setdiff1d(wanted, np.union1d(finished, lost)))
    verdict.duplicated = len(succeeded) + len(rejected) - len(finished)
    strangers = len(np.setdiff1d(np.union1d(finished, lost), wanted))
    verdict.corrupt += strangers
    for count, text in (
        (verdict.missing, "planned rows are neither in data/ nor in errors"),
        (verdict.duplicated, "rows are in data/ more than once"),
        (strangers, "rows were never planned"),
    ):
        if count:
            verdict.complain(f"{count} {text}")


def _as_set(keys: NDArray[np.uint64]) -> NDArray[np.void]:
    """N,3 numbers as a sorted set of N opaque values."""
    return np.unique(np.ascontiguousarray(keys).view(np.dtype((np.void, 24))).ravel())
