"""Watching a job from anywhere: what its output shows, again and again, until the job ends.

Whether a run is alive is seen as the lease sees it: its objects change. No clock of another machine is read.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stereo_jobs.data.storage import Storage
from stereo_jobs.errors import InterruptedRunError, StorageUnavailableError
from stereo_jobs.output import layout, lease, progress
from stereo_jobs.output.plan import load_job
from stereo_jobs.output.progress import Status, Throughput

EVERY_S = 5.0
PATIENCE_S = 60.0
"""Without a change for so long, no run is alive: as long as a lease holds by default."""

State = Literal["done", "running", "quiet", "stopped", "unreachable"]
"""quiet: nothing has changed since the watch began, which does not yet say much. stopped: no run is at work."""


@dataclass(frozen=True)
class OutputSnapshot:
    """What one look at the output shows.

    Attributes:
        state: see `State`.
        status: how far the job is.
        pace: how fast, if a run is at work.
        note: what to know or do beyond that, for people.
    """

    state: State
    status: Status
    pace: Throughput | None = None
    note: str = ""

    @property
    def exit_code(self) -> int | None:
        """Of a watch that ends with this; None: it goes on."""
        return {"done": 0, "stopped": InterruptedRunError.exit_code}.get(self.state)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.status.as_json() | {"state": self.state, "pace": self.pace and vars(self.pace), "note": self.note}


def look(storage: Storage) -> OutputSnapshot:
    """One look. Whether a run that holds the output is alive takes two: then the state is `quiet`."""
    sight, _ = _look(storage)
    return sight


def watch(
    storage: Storage,
    *,
    every_s: float,
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[OutputSnapshot]:
    """Look until the job is done or no run is at work on it any more; the last sight has an exit code.

    Args:
        storage: of the output.
        every_s: between two looks.
        patience_s: how long nothing may change before the run counts as dead, or as never begun.
        sleep: waits.
        clock: monotonic seconds of this machine.
    """
    before, changed, alive = "", clock(), False
    sight: OutputSnapshot | None = None
    while True:
        try:
            sight, pulse = _look(storage)
        except StorageUnavailableError as error:
            if sight is None:
                raise
            changed = clock()  # a store that does not answer says nothing about the run
            yield OutputSnapshot("unreachable", sight.status, note=f"trying again: {error}")
            sleep(every_s)
            continue
        if before and pulse != before:
            changed, alive = clock(), True
        before = pulse
        if sight.state == "stopped" and not alive and clock() - changed < patience_s:
            sight = OutputSnapshot("quiet", sight.status, note="no run is at work; waiting for one")
        elif sight.state == "quiet" and clock() - changed >= patience_s:
            sight = _stopped(sight.status, f"its run fell silent {clock() - changed:.0f} s ago")
        elif sight.state == "quiet" and alive:
            sight = OutputSnapshot("running", sight.status, sight.pace)
        yield sight
        if sight.exit_code is not None:
            return
        sleep(every_s)


def _look(storage: Storage) -> tuple[OutputSnapshot, str]:
    """A sight, and a text that is another one whenever a run has done something."""
    job = load_job(storage)
    status = progress.status(job, progress.totals(storage, job))
    held, tag = lease.look(storage)
    pace = progress.pace(storage) if held is not False else None
    pulse = f"{tag} {status.shards_done} {status.shards_planned} {pace}"
    if status.complete and all(storage.exists(layout.success(plan.generation)) for plan in job.plans):
        return OutputSnapshot("done", status), pulse
    if held or pace:
        return OutputSnapshot("quiet", status, pace, "it cannot be told from one look whether its run is alive"), pulse
    return _stopped(status, "no run is at work"), pulse


def _stopped(status: Status, why: str) -> OutputSnapshot:
    missing = status.shards_planned - status.shards_done
    todo = (
        f"{missing} shards are missing: run again to go on"
        if missing
        else "all shards are there, but not marked as done: too many rows failed, or it was killed; run again to see"
    )
    return OutputSnapshot("stopped", status, note=f"{why}; {todo}")
