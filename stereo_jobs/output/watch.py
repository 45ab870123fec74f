"""Watching a job from anywhere: look at its output again and again, until the job ends.

A run is alive while its objects change; the lease decides by the same rule. The clock of another machine is never read.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from stereo_jobs.data.storage import Storage
from stereo_jobs.errors import InterruptedRunError, StorageError, StorageUnavailableError
from stereo_jobs.output import layout, lease, progress
from stereo_jobs.output.plan import Job, load_job
from stereo_jobs.output.progress import Status, Throughput

EVERY_S = 5.0
"""Seconds between two looks."""

PATIENCE_S = 60.0
"""Seconds without a change after which no run is alive; as long as a lease holds by default."""

State = Literal["done", "running", "quiet", "stopped", "unreachable"]
"""State of a job.

quiet: nothing has changed since the watch began, so a run may be alive or not. stopped: no run is at work.
unreachable: the store did not answer.
"""


@dataclass(frozen=True)
class OutputSnapshot:
    """Result of one look at the output.

    Attributes:
        state: whether the job is done, and whether a run is at work.
        status: progress of the job.
        throughput: last reported speed of the run, if one is at work.
        note: what else to know or do, for people.
    """

    state: State
    status: Status
    throughput: Throughput | None = None
    note: str = ""

    @property
    def exit_code(self) -> int | None:
        """Exit code of a watch that ends with this snapshot; None if the watch continues."""
        return {"done": 0, "stopped": InterruptedRunError.exit_code}.get(self.state)

    def as_json(self) -> dict[str, Any]:
        """Return the status and the other fields as plain JSON values; the key of `throughput` is `pace`."""
        pace = self.throughput and vars(self.throughput)
        return self.status.as_json() | {"state": self.state, "pace": pace, "note": self.note}


def look(storage: Storage) -> OutputSnapshot:
    """Look once. Whether a run that holds the output is alive needs two looks: until then the state is `quiet`."""
    snapshot, _, _ = _look(storage)
    return snapshot


def watch(
    storage: Storage,
    *,
    every_s: float,
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[OutputSnapshot]:
    """Look repeatedly, until the job is done or no run works on it any more; the last snapshot has an exit code.

    Args:
        storage: storage of the output.
        every_s: seconds between two looks.
        patience_s: seconds without a change after which the run counts as dead, or as never started.
        sleep: function that waits for some seconds.
        clock: function that returns monotonic seconds of this machine.
    """
    before, changed, alive = "", clock(), False
    snapshot: OutputSnapshot | None = None
    sums: _Sums | None = None
    while True:
        try:
            snapshot, pulse, sums = _look(storage, sums)
        except StorageUnavailableError as error:
            if snapshot is None:
                raise
            changed = clock()  # a store that does not answer says nothing about the run
            yield OutputSnapshot("unreachable", snapshot.status, note=f"trying again: {error}")
            sleep(every_s)
            continue
        if before and pulse != before:
            changed, alive = clock(), True
        before = pulse
        snapshot = _judged(snapshot, alive, unchanged_s=clock() - changed, patience_s=patience_s)
        yield snapshot
        if snapshot.exit_code is not None:
            return
        sleep(every_s)


def _judged(snapshot: OutputSnapshot, alive: bool, unchanged_s: float, patience_s: float) -> OutputSnapshot:
    """Refine the state of a single look by what earlier looks have shown."""
    if snapshot.state == "stopped" and not alive and unchanged_s < patience_s:
        return OutputSnapshot("quiet", snapshot.status, note="no run is at work; waiting for one")
    if snapshot.state == "quiet" and unchanged_s >= patience_s:
        return _stopped(snapshot.status, f"its run has shown no sign of life for {unchanged_s:.0f} s")
    if snapshot.state == "quiet" and alive:
        return replace(snapshot, state="running", note="")
    if snapshot.state == "quiet":
        return replace(snapshot, note="waiting for a sign of life of its run")
    return snapshot


class _Sums(NamedTuple):
    """What a look has read: the next one goes on from there if `progress.json` is missing."""

    job: Job
    totals: progress.Totals


def _look(storage: Storage, before: _Sums | None = None) -> tuple[OutputSnapshot, str, _Sums]:
    """Return a snapshot, a text that differs from the last one whenever a run has done something, and what was read."""
    job = load_job(storage)
    if not job.plans:
        raise StorageError(f"{storage.uri}: no job is planned here; check the path, or whether it was removed")
    sums = _Sums(job, progress.totals(storage, job, before.totals if before and job.continues(before.job) else None))
    status = progress.status(job, sums.totals)
    held, tag = lease.look(storage)
    throughput = progress.throughput(storage) if held is not False else None
    pulse = f"{tag} {status.shards_done} {status.shards_planned} {throughput}"
    if status.complete and all(storage.exists(layout.success(plan.generation)) for plan in job.plans):
        return OutputSnapshot("done", status), pulse, sums
    if held or throughput:
        note = "one look cannot show whether its run is alive; --watch can"
        return OutputSnapshot("quiet", status, throughput, note), pulse, sums
    return _stopped(status, "no run is at work"), pulse, sums


def _stopped(status: Status, why: str) -> OutputSnapshot:
    missing = status.shards_planned - status.shards_done
    remedy = (
        f"{missing} {'shard is' if missing == 1 else 'shards are'} missing: run again to go on"
        if missing
        else "all shards are there, but the job is not marked as done: too many rows failed, or the run was killed at "
        "its end; run again to see which"
    )
    return OutputSnapshot("stopped", status, note=f"{why}; {remedy}")
