"""Commits of shards. A shard object, created only if its name is free, IS the commit; the rest can be rebuilt from it.

Per shard there are also a record and, if rows failed, an errors file: both are copies of what the footer of the shard
object says. A process may die between any two of these writes. The next run finds the object and writes the missing
ones again.
"""

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stereo_jobs.data.shards import Footer, read_footer, read_table
from stereo_jobs.data.storage import AlreadyExistsError, NotFoundError, Storage
from stereo_jobs.errors import DamagedError, DriftError
from stereo_jobs.output import layout
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.plan import Plan
from stereo_jobs.output.reading import in_threads, intact, read_json
from stereo_jobs.output.shard_set import ShardSet
from stereo_jobs.records import ERROR_COLUMNS, RowError, ShardRecord

log = logging.getLogger(__name__)

PAGE_KEYS = 1000
"""Names that S3 lists in one request."""
MOST_SPANS = 6
"""Requests that `recorded_beyond` makes at least; of what lies farther apart, a look of `status` leaves out a part."""


def commit(storage: Storage, plan: Plan, shard: int, data: bytes) -> ShardRecord:
    """Publish one finished shard; returns the record of the attempt that was first.

    Raises:
        DriftError: a shard of another plan has this name.
    """
    key = (plan.generation, shard)
    try:
        storage.create(layout.data(key), data)
    except AlreadyExistsError:
        log.info("shard %s was committed by another worker; keeping that one", key)
        data = storage.read(layout.data(key))
    return complete(storage, plan, shard, data)


def complete(storage: Storage, plan: Plan, shard: int, data: bytes) -> ShardRecord:
    """Write the errors file and the record of a committed object, unless they exist. Safe to repeat at any time.

    Raises:
        DriftError: the object is not this shard of this plan.
    """
    key = (plan.generation, shard)
    footer = _footer_of(storage, plan, key, data)
    if footer.errors:
        storage.replace(layout.errors(key), _errors_file(footer.errors))
    record = record_of(footer, data)
    content = record.model_dump_json().encode()
    try:
        storage.create(layout.record(key), content)
    except AlreadyExistsError:
        if storage.read(layout.record(key)) != content:
            # The object was lost or moved away, and generated again: the record follows the object.
            log.warning("record %s described another object; replacing it", key)
            storage.replace(layout.record(key), content)
    return record


def record_of(footer: Footer, data: bytes) -> ShardRecord:
    """Return the record in an object's footer, with checksum and size of the object added."""
    return footer.record.model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})


def _footer_of(storage: Storage, plan: Plan, key: ShardKey, data: bytes) -> Footer:
    where = storage.locate(layout.data(key))
    with intact(storage, layout.data(key)):
        footer = read_footer(data)
    record = footer.record
    if record.fingerprint != plan.fingerprint or (record.generation, record.shard) != key:
        raise DriftError(
            f"{where}: belongs to another plan (fingerprint {record.fingerprint[:12]}, this job's is "
            f"{plan.fingerprint[:12]}); choose another output"
        )
    return footer


def remake(storage: Storage, plan: Plan, shard: int) -> ShardRecord:
    """Make the record and the errors file of a committed shard from the object, which is read as a whole first.

    Raises:
        DamagedError: the object is damaged.
        DriftError: the object is not this shard of this plan.
    """
    name = layout.data((plan.generation, shard))
    data = storage.read(name)
    with intact(storage, name):
        if read_table(data).num_rows != read_footer(data).record.succeeded:
            raise ValueError("its rows differ from the counts in its footer")
    return complete(storage, plan, shard, data)


class Committed(NamedTuple):
    """The shards of an output, by one listing of each folder.

    Attributes:
        objects: shards whose object exists: those that are committed.
        records: shards whose record exists.
        bytes: size of all shard objects together.
    """

    objects: ShardSet
    records: ShardSet
    bytes: int


def committed(storage: Storage) -> Committed:
    """List the shards whose object exists, and those whose record exists."""
    objects, size = ShardSet(), 0
    for key, length in sizes(storage):
        objects.add(key)
        size += length
    return Committed(objects, ShardSet(key for key, _ in _listed(storage, layout.RECORDS_PREFIX)), size)


def sizes(storage: Storage) -> Iterator[tuple[ShardKey, int]]:
    """List the committed shards and the size of each."""
    return _listed(storage, layout.DATA_PREFIX)


def keys_with_errors(storage: Storage) -> ShardSet:
    """List the shards that have an errors file, which are those with failed or rejected rows."""
    return ShardSet(key for key, _ in _listed(storage, layout.ERRORS_PREFIX))


def recorded_beyond(storage: Storage, plans: Sequence[Plan], known: ShardSet) -> Iterator[ShardKey]:
    """List the shards that have a record and are not in a set.

    Only the gaps of the set are listed. Shards are dispatched in order, so that the set has one large gap at its end
    and a few small ones: those near each other are listed together, and of many that lie far apart, as shards do that
    failed and wait to be retried, the widest.
    """
    spans: list[_Span] = []
    for plan in plans:
        spans += _spans(plan.generation, known.gaps(plan.generation, plan.shards))
    if known and len(spans) > MOST_SPANS:
        spans = sorted(sorted(spans, key=lambda span: -span.missing)[:MOST_SPANS])
    for generation, first, last, _ in spans:
        for key, _ in _listed(storage, layout.RECORDS_PREFIX, layout.before_record((generation, first))):
            if key > (generation, last):
                break
            if key not in known:
                yield key


class _Span(NamedTuple):
    """Shards that are listed together: the numbers of the first and the last, and how many of them are in gaps."""

    generation: int
    first: int
    last: int
    missing: int


def _spans(generation: int, gaps: Iterable[range]) -> list[_Span]:
    spans: list[_Span] = []
    for gap in gaps:
        if spans and gap.stop - spans[-1].first <= PAGE_KEYS:
            _, first, _, missing = spans.pop()
            spans.append(_Span(generation, first, gap.stop - 1, missing + len(gap)))
        else:
            spans.append(_Span(generation, gap.start, gap.stop - 1, len(gap)))
    return spans


def read_records(storage: Storage, keys: Iterable[ShardKey]) -> Iterator[ShardRecord]:
    """Read records by key, 16 at a time; those that were removed meanwhile are left out.

    In place of a damaged record the one in the shard's footer is read, which has no checksum.

    Raises:
        DamagedError: the shard is damaged, too.
    """
    return (record for record in in_threads(partial(_read_record, storage), keys, 16) if record)


def _read_record(storage: Storage, key: ShardKey) -> ShardRecord | None:
    try:
        return read_record(storage, key)
    except NotFoundError:
        return None
    except DamagedError as error:
        log.warning("%s", error)
    try:
        record = read_footer_at(storage, key).record
        return record.model_copy(update={"bytes": storage.size(layout.data(key))})
    except NotFoundError:
        return None


def read_record(storage: Storage, key: ShardKey) -> ShardRecord:
    """Read the record of one shard.

    Raises:
        NotFoundError: it has none.
        DamagedError: it is not a record of this shard.
    """
    name = layout.record(key)
    with intact(storage, name):
        record = read_json(storage, name, ShardRecord)
        check_record(record, key)
    return record


def check_record(record: ShardRecord, key: ShardKey) -> None:
    """Check that a record is one of this shard, and that its counts are possible. Raises ValueError."""
    counts = (record.succeeded, record.failed, record.rejected)
    amounts = (record.seconds, record.bytes, record.unet_evaluations, record.planned)
    if (record.generation, record.shard) != key:
        raise ValueError(f"it is of shard {record.generation}-{record.shard}")
    if min(counts) < 0 or sum(counts) != record.planned or not all(0 <= n < 2**63 for n in amounts):
        raise ValueError("its counts contradict each other")
    if not all(abs(mean.mean) < 2.0**63 and mean.count >= 0 for mean in record.quality.means.values()):
        raise ValueError("a mean is no number")


def read_footer_at(storage: Storage, key: ShardKey) -> Footer:
    """Read the footer of one shard, and not the rest of it.

    Raises:
        DamagedError: the shard is damaged, gone, or another one.
    """
    try:
        with intact(storage, layout.data(key)):
            filesystem, path = storage.for_pyarrow(layout.data(key))
            with filesystem.open_input_file(path) as file:
                return _possible(read_footer(pq.ParquetFile(file)), key)
    except DamagedError:
        # Nothing vouches for bytes that a store gives by range. A whole object is compared with its ETag.
        with intact(storage, layout.data(key)):
            return _possible(read_footer(storage.read(layout.data(key))), key)


def _possible(footer: Footer, key: ShardKey) -> Footer:
    """Check that a footer can be that of a shard. Raises ValueError."""
    check_record(footer.record, key)
    if not all(-1 <= error.row < footer.record.planned for error in footer.errors):
        raise ValueError("a failed row has no place in it")
    return footer


def failed_rows(storage: Storage, keys: Iterable[ShardKey]) -> Iterator[tuple[ShardKey, list[RowError]]]:
    """Read the failed rows of shards from their footers alone, 16 shards at a time. Raises DamagedError."""
    return in_threads(lambda key: (key, read_footer_at(storage, key).errors), sorted(keys), 16)


def repair(storage: Storage, plans: Sequence[Plan]) -> Committed:
    """Complete the commits that were interrupted; returns what it has found.

    Raises:
        DriftError: data/ has an object that belongs to none of the plans.
    """
    found = committed(storage)
    for key in found.objects.without(found.records):
        generation, shard = key
        if generation >= len(plans) or shard >= plans[generation].shards:
            raise DriftError(
                f"{storage.locate(layout.data(key))}: no plan of this output has such a shard; move it away and run "
                "again"
            )
        log.info("shard %s has no record yet; writing it from the object", key)
        remake(storage, plans[generation], shard)
    return found


def _listed(storage: Storage, prefix: str, after: str = "") -> Iterator[tuple[ShardKey, int]]:
    with contextlib.suppress(NotFoundError):
        for info in storage.list(prefix, after):
            if key := layout.shard_key(info.key):
                yield key, info.size


def _errors_file(errors: Sequence[RowError]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([vars(e) for e in errors], schema=ERROR_COLUMNS), buffer)
    return buffer.getvalue()
