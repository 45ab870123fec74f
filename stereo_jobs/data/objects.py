"""The contract of storage: objects under one URI. Publishing each shard exactly once depends on two operations.

`create` writes an object only if its name is free. `swap` replaces an object only if it is still the version that the
caller has seen. `replace` is for objects that may be rewritten (card, progress, report). Each of them writes the
complete object or nothing. `probe` proves at the start of a run that a store keeps to this, and that it gives back the
bytes that it was given.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow.fs

from stereo_jobs.errors import StorageError

_PROBE = b"create-if-absent probe"
_PROBE_BODY = bytes(range(256)) * 256
"""Every byte, line ends included, and long enough for a proxy to compress it."""
_PROBE_TRIES = 10
"""Runs that start at the same time probe the same object: each may lose some swaps to the others."""


class AlreadyExistsError(Exception):
    """`create` wrote nothing: an object of this name exists."""


class ChangedError(Exception):
    """`swap` wrote nothing: the object is no longer the version that the caller has seen."""


class NotFoundError(Exception):
    """There is no object of this name."""


class ObjectInfo(NamedTuple):
    """One entry of a listing: key, relative to the URI of the storage, and size in bytes."""

    key: str
    size: int


class Storage(ABC):
    """Objects below `uri`; their keys are relative to it, with forward slashes."""

    uri: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the content of an object. Raises NotFoundError."""

    @abstractmethod
    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """Return the content of an object and the version tag that `swap` compares. Raises NotFoundError."""

    @abstractmethod
    def content_tag(self, key: str) -> str:
        """Return a tag that changes with the content, if possible without reading it. Raises NotFoundError."""

    @abstractmethod
    def version(self, key: str) -> str:
        """Return what changes whenever an object may have changed, without reading it. Raises NotFoundError."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """List all complete objects whose key starts with `prefix` and sorts after `after`, in key order.

        They are looked up as they are asked for: on S3, each thousand of them is a request.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Write a new object, completely or not at all. Raises AlreadyExistsError."""

    @abstractmethod
    def replace(self, key: str, data: bytes) -> None:
        """Write an object, completely or not at all; one that exists is overwritten."""

    @abstractmethod
    def swap(self, key: str, data: bytes, tag: str) -> str:
        """Replace the version `tag` of an object by `data`; returns the new tag. Raises ChangedError."""

    @abstractmethod
    def for_pyarrow(self, key: str) -> tuple[pyarrow.fs.FileSystem, str]:
        """Return the file system and the path with which pyarrow opens the object."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the size of an object in bytes, without reading it. Raises NotFoundError."""

    def hold(self) -> None:  # noqa: B027  (a store without folders has nothing to hold)
        """From now on the place exists: if it is removed, writing fails instead of creating it again."""

    def exists(self, key: str) -> bool:
        """Return whether an object exists."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def locate(self, key: str) -> str:
        """Return the full URI of an object, for messages."""
        return f"{self.uri}/{key}"

    def probe(self, key: str) -> None:
        """Check that the store keeps what `create` and `swap` must keep, and gives back what it is given.

        All of it is tried on a probe object, which other runs may be probing at the same time.

        Raises:
            StorageError: the store cannot be written to, ignores the conditions of these operations, or changes bodies.
        """
        with contextlib.suppress(AlreadyExistsError):
            self.create(key, _PROBE)
        try:
            self.create(key, b"this must be refused")
        except AlreadyExistsError:
            pass
        else:
            raise StorageError(
                f"{self.uri}: the store ignores create-if-absent (IfNoneMatch) and would let two workers "
                "overwrite each other's shards; use AWS S3 or another store that honours it"
            )
        with contextlib.suppress(ChangedError):
            self.swap(key, b"this must be refused too", '"00000000000000000000000000000000"')
            raise StorageError(
                f"{self.uri}: the store ignores conditional overwrites (IfMatch), which the lease needs; use "
                "AWS S3 or another store that honours it"
            )
        for content in (_PROBE_BODY, _PROBE):
            self._swap_newest(key, content)
            if self.read(key) not in (_PROBE_BODY, _PROBE):
                raise StorageError(self._altered(key))

    def _swap_newest(self, key: str, data: bytes) -> None:
        """Replace whatever version of an object is the newest. Raises StorageError if no version can be replaced."""
        for _ in range(_PROBE_TRIES):
            with contextlib.suppress(ChangedError):
                self.swap(key, data, self.read_tagged(key)[1])
                return
        raise StorageError(
            f"{self.uri}: the store refuses conditional overwrites (IfMatch) with the tag (ETag) that it has just "
            "given, and the lease needs them; if a proxy between here and the store changes tags, set the endpoint to "
            "the store itself, or use AWS S3 or another store that honours IfMatch"
        )

    def _altered(self, key: str) -> str:
        """Return what to say about an object that comes back with other bytes than were written."""
        return f"{self.locate(key)}: other bytes come back than were written; use another output"
