"""The lease keeps two runs from working on one output at the same time.

It saves wasted work only: without it, `commits` still publishes each shard exactly once.

The lease is an object that its holder rewrites at short intervals. It is stale when its version has not changed for
`ttl_s` on the OBSERVER's own monotonic clock; clocks of two machines are never compared.
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

from pydantic import BaseModel

from stereo_jobs.data.storage import AlreadyExistsError, ChangedError, NotFoundError, Storage
from stereo_jobs.errors import OutputHeldError, StorageError
from stereo_jobs.output import layout

log = logging.getLogger(__name__)

DAMAGED = "damaged"
"""Holder of a lease whose content cannot be read; it is taken over like that of a run that was killed."""


class Lease:
    """The lease of one output, held inside a `with` block and renewed by a background thread.

    Args:
        storage: storage of the output.
        ttl_s: seconds without a renewal after which another run may take over; 0 disables the lease.
        patience_s: seconds without a renewal after which the holder gives up, even if no other run has taken over.

    Attributes:
        taken: once the lease is lost: True if another run has taken over, False if it could not be renewed.

    Raises:
        OutputHeldError: on entry, if another run is alive.
    """

    def __init__(self, storage: Storage, ttl_s: float, patience_s: float = math.inf) -> None:
        self.storage = storage
        self.ttl_s = ttl_s
        self.patience_s = patience_s
        self.holder = secrets.token_hex(8)
        self._tag = ""
        self._count = 0
        self._renewed = 0.0
        self._failing = False  # whether the store refused the last renewal
        self._lost = ""
        self.taken = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._keep,), name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        if self.ttl_s:
            self._acquire()
            self.storage.hold()  # a renewal must not create an output again that was removed
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
                    log.debug("the lease could not be released: %s", problem)

    def fresh(self) -> bool:
        """Return whether this run may dispatch shards now; call it before each dispatch.

        A holder that was suspended, or whose store does not answer, sees here on its own clock that it did not renew
        in time. After a successful renewal it may continue: that renewal proves that no other run has taken over.
        """
        return not self.ttl_s or (not self._lost and time.monotonic() <= self._renewed + self.ttl_s / 2)

    def lost(self) -> str | None:
        """Return why this run may never dispatch shards again, or None while it may."""
        return self._lost or None

    def _acquire(self) -> None:
        self._renewed = time.monotonic()
        try:
            self.storage.create(layout.LEASE, self._content())
            _, self._tag = self.storage.read_tagged(layout.LEASE)
        except AlreadyExistsError:
            self._take_over()

    def _take_over(self) -> None:
        """Watch the lease of another run until it changes (held) or has not changed for `ttl_s` (stale)."""
        data, tag = self.storage.read_tagged(layout.LEASE)
        seen = time.monotonic()
        told = False
        while not _is_free(data) and not _is_held_by(data, self.holder):
            waited = time.monotonic() - seen
            if waited >= self.ttl_s:
                log.warning("the run that holds this output has shown no sign of life for %.0f s: taking over", waited)
                break
            if not told:
                log.warning(
                    "this output was held by another run; watching for up to %g s whether that run is alive", self.ttl_s
                )
                told = True
            time.sleep(min(self.ttl_s / 20, 2.0))
            try:
                data, current = self.storage.read_tagged(layout.LEASE)
            except NotFoundError:
                break
            if current != tag and not _is_free(data):
                raise OutputHeldError(
                    f"{self.storage.uri}: another run is at work here; wait until it ends, or choose another output"
                )
            tag = current
        self._renewed = time.monotonic()
        try:
            self._tag = self.storage.swap(layout.LEASE, self._content(), tag)
        except ChangedError:
            raise OutputHeldError(
                f"{self.storage.uri}: another run has just started here; wait until it ends, or choose another output"
            ) from None

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
        """Try to renew once; returns whether it succeeded. Detects that another run has taken over."""
        started = time.monotonic()
        try:
            self._tag = self.storage.swap(layout.LEASE, self._content(), self._tag)
        except ChangedError:
            # A write whose reply was lost also changes the tag: the lease is still ours if it names us.
            # Damaged content is of nobody: the next renewal replaces it.
            with contextlib.suppress(StorageError):
                try:
                    data, self._tag = self.storage.read_tagged(layout.LEASE)
                except NotFoundError:
                    self._lost = f"{layout.LEASE} was removed"
                    return False
                self.taken = _holder(data) not in (self.holder, DAMAGED)
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
    """Return whether a run holds the output (None: no run ever held it), and a tag that every renewal changes.

    A run that was killed still holds its lease: only a tag that does not change for a long time reveals this.
    """
    try:
        data, tag = storage.read_tagged(layout.LEASE)
    except NotFoundError:
        return None, ""
    return not _is_free(data), tag


class _Content(BaseModel):
    """The content of the lease: who holds it, None after it was given back."""

    holder: str | None
    renewal: int


def _holder(data: bytes) -> str | None:
    """Return who holds a lease. Nobody can have written damaged content: it has a holder that never renews it."""
    try:
        return _Content.model_validate_json(data).holder
    except ValueError:
        return DAMAGED


def _is_free(data: bytes) -> bool:
    return _holder(data) is None


def _is_held_by(data: bytes, holder: str) -> bool:
    return _holder(data) == holder
