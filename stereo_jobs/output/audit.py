"""What a run checks of the shards that are committed already, so that a damaged output is not called done.

The size of every shard is compared with its record: first their sum, which the listing of the run gives, and shard by
shard only if that differs. The footers of up to `FOOTERS` shards are read and compared with their records.
`stereo-jobs verify` reads everything.
"""

import itertools
import logging
from functools import partial

from stereo_jobs.data.storage import NotFoundError, Storage
from stereo_jobs.errors import DamagedError
from stereo_jobs.output.commits import Committed, read_footer_at, read_record, read_records, remake, sizes
from stereo_jobs.output.layout import ShardKey
from stereo_jobs.output.plan import Job
from stereo_jobs.output.progress import Totals, add, rolled_up
from stereo_jobs.output.reading import in_threads
from stereo_jobs.records import ShardRecord

log = logging.getLogger(__name__)

FOOTERS = 1000
"""Largest number of footers that a run reads before it begins; of more shards, evenly spaced ones are read."""


def checked_totals(storage: Storage, job: Job, found: Committed) -> Totals:
    """Sum up all records of a job, and check that they agree with the shards.

    A record that is damaged or of another size than its shard is made again from the shard.

    Args:
        storage: the storage of the output.
        job: its plans.
        found: its committed shards, each of which has a record.

    Raises:
        DamagedError: a shard is damaged.
        DriftError: a shard belongs to another plan.
    """
    done = found.objects
    step = -(-len(done) // FOOTERS) or 1
    for _ in in_threads(partial(_compare_record, storage, job), itertools.islice(done, 0, None, step), 16):
        pass
    sums = rolled_up(storage, job)
    add(sums, job, read_records(storage, done.without(sums.shards)))
    if sums.shards == done and sums.bytes == found.bytes:
        return sums
    log.info("records and shards differ in size: all records are read")
    again = Totals(wasted_seconds=sums.wasted_seconds)
    work = ((key, size) for key, size in sizes(storage) if key in done)
    add(again, job, in_threads(lambda item: _record_of_size(storage, job, *item), work, 16))
    return again


def _compare_record(storage: Storage, job: Job, key: ShardKey) -> None:
    """Compare the record of a shard with its footer; if they differ, or it is damaged, it is made again."""
    footer = read_footer_at(storage, key)
    try:
        if read_record(storage, key).model_copy(update={"sha256": "", "bytes": 0}) == footer.record:
            return
    except (NotFoundError, DamagedError) as error:
        log.warning("%s", error)
    remake(storage, job.plans[key[0]], key[1])


def _record_of_size(storage: Storage, job: Job, key: ShardKey, size: int) -> ShardRecord:
    """Read the record of a shard. If it is damaged or has another size, the shard itself is read."""
    try:
        record = read_record(storage, key)
        if record.bytes == size:
            return record
    except (NotFoundError, DamagedError) as error:
        log.warning("%s", error)
    return remake(storage, job.plans[key[0]], key[1])
