"""Threads for what no model does of a row: reading, scoring, encoding. A deadline or an error costs the row alone."""

import atexit
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stereo_jobs.errors import StereoJobsError, hide_passwords
from stereo_jobs.records import RowError

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMED_OUT = "TimedOut"
"""Error type of a row whose reading, scoring or encoding missed its deadline."""
EXIT_PATIENCE_S = 3.0
"""Seconds that the end of the process waits for threads in the middle of a row."""

_threads: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()
"""All threads of this module."""
_owners: "weakref.WeakSet[TimedThreads]" = weakref.WeakSet()
"""Objects whose threads wait for work."""


@atexit.register
def _end_all() -> None:
    """Have threads end before Python does: one that ends at the same time can abort a process whose work is done."""
    for owner in list(_owners):
        owner.end()
    deadline = time.monotonic() + EXIT_PATIENCE_S
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))


@dataclass(frozen=True)
class _Work(Generic[T]):
    """A piece of work on one row.

    Attributes:
        row: id of the row.
        stage: what is done, for messages.
        do: does it.
        future: its result, or the row's error.
    """

    row: str
    stage: str
    do: Callable[[], T]
    future: "Future[T | RowError]"

    def settle(self, result: T | RowError) -> bool:
        """Set the result. False: it was set before."""
        try:
            self.future.set_result(result)
        except InvalidStateError:
            return False
        return True

    def error(self, kind: str, message: str) -> RowError:
        log.warning("row %s: %s: %s", self.row, self.stage, message, extra={"row": self.row})
        return RowError(self.row, kind, f"{self.stage}: {message}")


class TimedThreads:
    """Threads that work on rows in turn, with a deadline for each row and a bound on the bytes that wait.

    Python cannot end a thread. One that misses its deadline is left alone: its row becomes an error, and another thread
    takes its place. The threads do not keep the process from ending.

    Args:
        threads: how many rows are worked on at a time.
        name: prefix of the threads' names.
        timeout_s: the deadline, counted from when work on the row begins.
        most_bytes: bytes of the rows that are worked on or wait; a single row may have more.
    """

    def __init__(self, threads: int, name: str, timeout_s: float, most_bytes: int = 2**62) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._room = threading.Condition()
        self._queue: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        for _ in range(threads):
            _start(self._queue, name, timeout_s)
        self.end = weakref.finalize(self, _end, self._queue, threads)
        """Tells the threads to end; called when nothing refers to this object any more."""
        _owners.add(self)

    def submit(self, row: str, stage: str, do: Callable[[], T], size: int = 0) -> "Future[T | RowError]":
        """Have a piece of work done. Waits until there is room for its bytes.

        Args:
            row: id of the row.
            stage: what is done, as messages name it.
            do: does it. A StereoJobsError that it raises is raised by the future, too; any other error is the row's.
            size: bytes that the work keeps in memory until it is done.

        Returns:
            What `do` returns, or the row's error.
        """
        with self._room:
            self._room.wait_for(lambda: not self._bytes or self._bytes + size <= self._most_bytes)
            self._bytes += size
        future: Future[T | RowError] = Future()
        future.add_done_callback(lambda _: self._release(size))
        self._queue.put(_Work(row, stage, do, future))
        return future

    def _release(self, size: int) -> None:
        with self._room:
            self._bytes -= size
            self._room.notify_all()


def _start(works: "queue.SimpleQueue[_Work[Any] | None]", name: str, timeout_s: float) -> None:
    """Start a thread that works until it is told to end, or misses a deadline."""

    def give_up(work: _Work[Any]) -> None:
        message = f"took more than {timeout_s:g} s; raise runtime.batch_timeout_s and shard_timeout_s, or leave it out"
        if not work.future.done() and work.settle(work.error(TIMED_OUT, message)):
            _start(works, name, timeout_s)

    def serve() -> None:
        while (work := works.get()) is not None:
            timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), give_up, [work])
            timer.daemon = True
            timer.start()
            in_time = _do(work)
            timer.cancel()
            del work  # while it waits for the next, the thread keeps no images
            if not in_time:
                return

    thread = threading.Thread(target=serve, name=name, daemon=True)
    _threads.add(thread)
    thread.start()


def _do(work: _Work[Any]) -> bool:
    """Do a piece of work; returns whether it was in time."""
    try:
        return work.settle(work.do())
    except StereoJobsError as error:
        try:
            work.future.set_exception(error)
        except InvalidStateError:
            return False
        return True
    except Exception as error:
        kind = "MemoryError" if _out_of_memory(error) else type(error).__name__
        return not work.future.done() and work.settle(work.error(kind, hide_passwords(str(error)[:2000]) or kind))


def _out_of_memory(error: Exception) -> bool:
    """Whether an error is a failed allocation, as Python, torch or OpenCV report it."""
    text = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "Insufficient memory" in text


def _end(works: "queue.SimpleQueue[_Work[Any] | None]", threads: int) -> None:
    for _ in range(threads):
        works.put(None)


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
