"""Opens storage by its URI, and keeps objects in a local folder. `objects` has the contract, `s3` the other kind."""

import contextlib
import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs

from stereo_jobs.data.objects import AlreadyExistsError, ChangedError, NotFoundError, ObjectInfo, Storage
from stereo_jobs.data.s3 import S3Storage
from stereo_jobs.errors import StorageError
from stereo_jobs.local_files import local_path, refuse_special
from stereo_jobs.spec import StorageSpec

__all__ = [
    "AlreadyExistsError",
    "ChangedError",
    "LocalStorage",
    "NotFoundError",
    "ObjectInfo",
    "S3Storage",
    "Storage",
    "open_storage",
]


def open_storage(uri: str, settings: StorageSpec | None = None, patience_s: float = 60.0) -> Storage:
    """Open a local folder, a `file://` URI or an `s3://bucket/prefix`.

    Args:
        uri: where the objects are; the folder need not exist.
        settings: S3 access; by default the standard AWS credential chain.
        patience_s: seconds that one S3 request may take.

    Raises:
        StorageError: the URI has another form, or S3 cannot be set up with these settings.
    """
    if uri.startswith("s3://"):
        return S3Storage(uri, settings or StorageSpec(), patience_s)
    try:
        return LocalStorage(local_path(uri))
    except ValueError as error:
        raise StorageError(f"{uri}: {error}") from None


class LocalStorage(Storage):
    """A local folder. Files start with a dot until they are complete, and listings leave such files out."""

    def __init__(self, folder: str | Path) -> None:
        # One spelling per place, without following symbolic links: plans compare file names.
        self.root = Path(os.path.normpath(Path(folder).expanduser().absolute()))
        self.uri = str(self.root)
        self._kept: set[Path] | None = None

    def hold(self) -> None:
        """From now on the folder and those in it exist: writing fails where one was removed, instead of creating it."""
        self._kept = {self.root}
        with contextlib.suppress(OSError):  # a folder that cannot be listed cannot be written, which says more
            self._kept.update(path for path in self.root.iterdir() if path.is_dir())

    def read(self, key: str) -> bytes:
        """Read a file. Raises NotFoundError; a folder is no object."""
        with _local_errors(self.root / key):
            refuse_special(self.root / key)
            try:
                return (self.root / key).read_bytes()
            except IsADirectoryError:
                raise NotFoundError(str(self.root / key)) from None

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """Read a file and its SHA-256. Raises NotFoundError."""
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def size(self, key: str) -> int:
        """Return the size of a file in bytes. Raises NotFoundError; a folder is no object."""
        with _local_errors(self.root / key):
            path = self.root / key
            if path.is_dir():
                raise NotFoundError(str(path))
            refuse_special(path)
            return path.stat().st_size

    def content_tag(self, key: str) -> str:
        """Return the SHA-256 of a file. Raises NotFoundError."""
        with _local_errors(self.root / key), (self.root / key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def version(self, key: str) -> str:
        """Return what a file system knows of a file. A program can set the time of change back, but not `ctime`."""
        with _local_errors(self.root / key):
            found = (self.root / key).stat()
        return f"{found.st_dev}/{found.st_ino}/{found.st_size}/{found.st_mtime_ns}/{found.st_ctime_ns}"

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """List all files below the folder whose key starts with `prefix` and sorts after `after`, in key order."""
        folder = self.root / prefix if prefix.endswith("/") or not prefix else (self.root / prefix).parent
        found: list[str] = []
        with _local_errors(folder):
            for parent, folders, names in os.walk(folder, onerror=_raise_unless_missing):
                folders[:] = [name for name in folders if not name.startswith(".")]
                inside = Path(parent).relative_to(self.root).as_posix() + "/" if parent != self.uri else ""
                keys = (inside + name for name in names if not name.startswith("."))
                found += (key for key in keys if key.startswith(prefix) and key > after)
            for key in sorted(found):
                with contextlib.suppress(FileNotFoundError):
                    yield ObjectInfo(key, (self.root / key).stat().st_size)

    def create(self, key: str, data: bytes) -> None:
        """Write a new file. A hard link gives it its final name, atomically and only if the name is free."""
        path = self.root / key
        with _local_errors(path, writing=True), self._temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, "a folder has this name") from None
                raise AlreadyExistsError(key) from None
            except OSError as error:
                # NFS may lose the reply to a successful link: then the file has two names.
                if temporary.stat().st_nlink != 2:
                    if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                        raise StorageError(
                            f"{path}: this file system has no hard links, without which two workers could "
                            "overwrite each other's shards; choose an output on another file system or on S3"
                        ) from error
                    raise
            _sync_folder(path.parent)

    def replace(self, key: str, data: bytes) -> None:
        """Write a file and move it to its name, atomically."""
        path = self.root / key
        with _local_errors(path, writing=True), self._temporary(path, data) as temporary:
            temporary.replace(path)
            _sync_folder(path.parent)

    def swap(self, key: str, data: bytes, tag: str) -> str:
        """Replace a version of a file, under a file lock that the system releases if its holder dies."""
        if not self.exists(key):
            raise ChangedError(key)
        with _local_errors(self.root / key), self._locked(key):
            try:
                _, current = self.read_tagged(key)
            except NotFoundError:
                raise ChangedError(key) from None
            if current != tag:
                raise ChangedError(key)
            self.replace(key, data)
            return hashlib.sha256(data).hexdigest()

    def for_pyarrow(self, key: str) -> tuple[pyarrow.fs.FileSystem, str]:
        """Return pyarrow's local file system and the path. Raises StorageError for what is no regular file."""
        with _local_errors(self.root / key), contextlib.suppress(FileNotFoundError):
            refuse_special(self.root / key)
        return pyarrow.fs.LocalFileSystem(), str(self.root / key)

    @contextlib.contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            self._make_folder(path.parent)
            file = temporary.open("xb")
        except FileNotFoundError:
            if self._kept is not None:
                raise
            raise StorageError(f"{path.parent}: nothing can be created here; choose another output") from None
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder. Once the root is held, a folder that was there is never created again, not at any moment."""
        if self._kept is None:
            folder.mkdir(parents=True, exist_ok=True)
            return
        for missing in [path for path in (*reversed(folder.parents), folder) if path.is_relative_to(self.root)]:
            if missing not in self._kept:
                missing.mkdir(exist_ok=True)
                self._kept.add(missing)

    @contextlib.contextmanager
    def _locked(self, key: str, timeout_s: float = 10.0) -> Iterator[None]:
        path = self.root / key
        with path.with_name(f".{path.name}.lock").open("a") as lock:
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # A process that is suspended while it holds the lock must not block all others.
                    if time.monotonic() > deadline:
                        raise ChangedError(key) from None
                    time.sleep(0.01)
            yield


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextlib.contextmanager
def _local_errors(path: Path, *, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if writing:
            raise StorageError(f"{path}: its folder is gone, and is not created again; restore it") from error
        raise NotFoundError(str(path)) from error
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free space and run again; nothing written so far is lost",
            errno.EDQUOT: "free space or raise the quota and run again; nothing written so far is lost",
            errno.EROFS: "choose a writable output",
            errno.EACCES: "choose a writable output or fix its permissions",
            errno.EPERM: "choose a writable output or fix its permissions",
            errno.EISDIR: "move this folder away and run again",
        }.get(error.errno or 0, "fix the cause and run again")
        raise StorageError(f"{path}: {error.strerror or error}; {remedy}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
