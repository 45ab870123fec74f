"""The lease keeps two runs off one output. Exactly-once never rests on it: `commits` holds without.

The lease is an object that its holder rewrites all the time. It is stale when its version has not changed for
`ttl_s` on the OBSERVER's own monotonic clock; no two clocks are ever compared.
"""

import contextlib
import json
import logging
import math
import secrets
import threading
import time
from contextvars import copy_context
from types import TracebackType

from stereo_jobs.data.storage import AlreadyExistsError, ChangedError, NotFoundError, Storage
from stereo_jobs.errors import OutputHeldError, StorageError
from stereo_jobs.output import layout

log = logging.getLogger(__name__)


class Lease:
    """Held between `with` and its end; renewed by a thread of its own.

    Args:
        storage: of the output.
        ttl_s: seconds of silence after which another run may take over; 0 holds nothing.
        patience_s: seconds without a renewal after which a holder gives up, though nobody has taken over.

    Raises:
        OutputHeldError: on entry, when another run is alive.
    """

    def __init__(self, storage: Storage, ttl_s: float, patience_s: float = math.inf) -> None:
        self.storage = storage
        self.ttl_s = ttl_s
        self.patience_s = patience_s
        self.holder = secrets.token_hex(8)
        self._tag = ""
        self._count = 0
        self._renewed = 0.0
        self._failing = False
        """Whether the store refused the last renewal."""
        self._lost = ""
        self.taken = False
        """Once lost: whether it went to another run, or just could not be kept."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._keep,), name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        if self.ttl_s:
            self._acquire()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self.ttl_s:
            self._thread.join()
            if self.lost() is None:
                try:
                    self.storage.swap(layout.LEASE, self._content(free=True), self._tag)
                except (ChangedError, StorageError) as problem:
                    log.debug("the lease could not be given back: %s", problem)

    def fresh(self) -> bool:
        """Whether this run may deal shards now. Asked before every deal.

        A holder that was frozen, or whose store is away, sees here, on its own clock, that it did not renew in time.
        Once it has renewed, nobody has taken over, and it goes on.
        """
        return not self.ttl_s or (not self._lost and time.monotonic() <= self._renewed + self.ttl_s / 2)

    def lost(self) -> str | None:
        """Why this run will never deal shards again, or None."""
        return self._lost or None

    def _acquire(self) -> None:
        self._renewed = time.monotonic()
        try:
            self.storage.create(layout.LEASE, self._content())
            _, self._tag = self.storage.read_tagged(layout.LEASE)
        except AlreadyExistsError:
            self._take_over()

    def _take_over(self) -> None:
        """Watch the other's lease until it changes (held) or was silent for `ttl_s` (stale)."""
        data, tag = self.storage.read_tagged(layout.LEASE)
        seen = time.monotonic()
        told = False
        while not _is_free(data) and not _is_held_by(data, self.holder):
            waited = time.monotonic() - seen
            if waited >= self.ttl_s:
                log.warning("the run that held this output is silent for %.0f s: taking over", waited)
                break
            if not told:
                log.warning("this output was held by another run; watching up to %g s for life", self.ttl_s)
                told = True
            time.sleep(min(self.ttl_s / 20, 2.0))
            try:
                data, current = self.storage.read_tagged(layout.LEASE)
            except NotFoundError:
                break
            if current != tag and not _is_free(data):
                raise OutputHeldError(
                    f"{self.storage.uri}: another run is at work here; wait for it, or choose another output"
                )
            tag = current
        self._renewed = time.monotonic()
        try:
            self._tag = self.storage.swap(layout.LEASE, self._content(), tag)
        except ChangedError:
            raise OutputHeldError(f"{self.storage.uri}: another run has just started here; wait for it") from None

    def _keep(self) -> None:
        usual = pause = self.ttl_s / 8
        while not self._end.wait(pause):
            pause = usual if self._renew() else min(1.0, usual)
            silent = time.monotonic() - self._renewed
            if silent > self.patience_s and not self._lost:
                self._lost = f"the lease could not be renewed for {silent:.0f} s"
            if self._lost:
                return

    def _renew(self) -> bool:
        """Try once; whether that went well. Notices that another run has taken over."""
        started = time.monotonic()
        try:
            self._tag = self.storage.swap(layout.LEASE, self._content(), self._tag)
        except ChangedError:
            # A write whose reply was lost also changes the tag: it is ours if it names us.
            with contextlib.suppress(NotFoundError, StorageError):
                data, self._tag = self.storage.read_tagged(layout.LEASE)
                self.taken = not _is_held_by(data, self.holder)
                self._lost = "another run has taken over" if self.taken else ""
            return False
        except StorageError as problem:
            if not self._failing:
                log.warning("the lease could not be renewed, trying again: %s", problem)
            self._failing = True
            return False
        if self._failing:
            log.warning("the lease was renewed again after %.0f s", started - self._renewed)
        self._renewed, self._failing = started, False
        return True

    def _content(self, free: bool = False) -> bytes:
        self._count += 1
        return json.dumps({"holder": None if free else self.holder, "renewal": self._count}).encode()


def look(storage: Storage) -> tuple[bool | None, str]:
    """Whether a run holds the output (None: no run has ever held it), and a tag that every renewal changes.

    A holder that died still holds; only a tag that stands still for long shows it.
    """
    try:
        data, tag = storage.read_tagged(layout.LEASE)
    except NotFoundError:
        return None, ""
    return not _is_free(data), tag


def _is_free(data: bytes) -> bool:
    return bool(json.loads(data)["holder"] is None)


def _is_held_by(data: bytes, holder: str) -> bool:
    return bool(json.loads(data)["holder"] == holder)
