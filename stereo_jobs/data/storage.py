"""Objects under one URI, local or on S3. Publishing each shard exactly once depends on two of these operations.

`create` writes an object only if its name is free. `swap` replaces an object only if it is still the version that the
caller has seen. `replace` is for objects that may be rewritten (card, progress, report). Each of them writes the
complete object or nothing.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pyarrow.fs
import tenacity
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from stereo_jobs.errors import StorageError, StorageUnavailableError
from stereo_jobs.spec import StorageSpec


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
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List all complete objects whose key starts with `prefix`, in key order."""

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
        """Check that `create` and `swap` do not overwrite what they must keep, by trying both on a probe object.

        Raises:
            StorageError: the store cannot be written to, or it ignores the conditions of these operations.
        """
        with contextlib.suppress(AlreadyExistsError):
            self.create(key, b"create-if-absent probe")
        try:
            self.create(key, b"this must be refused")
        except AlreadyExistsError:
            pass
        else:
            raise StorageError(
                f"{self.uri}: the store ignores create-if-absent (IfNoneMatch) and would let two workers "
                "overwrite each other's shards; use AWS S3 or another store that honours it"
            )
        try:
            self.swap(key, b"this must be refused too", '"00000000000000000000000000000000"')
        except ChangedError:
            return
        raise StorageError(
            f"{self.uri}: the store ignores conditional overwrites (IfMatch), which the lease needs; use "
            "AWS S3 or another store that honours it"
        )


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
    if "://" in uri and not uri.startswith("file://"):
        raise StorageError(f"{uri}: unknown scheme; use a local path or s3://bucket/prefix")
    return LocalStorage(uri.removeprefix("file://"))


# --- Local file system ---


class LocalStorage(Storage):
    """A local folder. Files start with a dot until they are complete, and listings leave such files out."""

    def __init__(self, folder: str | Path) -> None:
        # One spelling per place, without following symbolic links: plans compare file names.
        self.root = Path(os.path.normpath(Path(folder).expanduser().absolute()))
        self.uri = str(self.root)

    def read(self, key: str) -> bytes:
        """Read a file. Raises NotFoundError."""
        with _local_errors(self.root / key):
            return (self.root / key).read_bytes()

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

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List all files below the folder whose key starts with `prefix`, in key order."""
        folder = self.root / prefix if prefix.endswith("/") or not prefix else (self.root / prefix).parent
        found = []
        with _local_errors(folder):
            for parent, folders, names in os.walk(folder, onerror=_raise_unless_missing):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    path = Path(parent, name)
                    key = path.relative_to(self.root).as_posix()
                    if not name.startswith(".") and key.startswith(prefix):
                        with contextlib.suppress(FileNotFoundError):
                            found.append(ObjectInfo(key, path.stat().st_size))
        yield from sorted(found)

    def create(self, key: str, data: bytes) -> None:
        """Write a new file. A hard link gives it its final name, atomically and only if the name is free."""
        path = self.root / key
        with _local_errors(path), self._temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
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
        with _local_errors(path), self._temporary(path, data) as temporary:
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
        """Return pyarrow's local file system and the path."""
        return pyarrow.fs.LocalFileSystem(), str(self.root / key)

    @contextlib.contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            raise StorageError(f"{path.parent}: this folder cannot be created; choose another output") from None
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

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
def _local_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(str(path)) from error
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free space and run again; nothing written so far is lost",
            errno.EDQUOT: "free space or raise the quota and run again; nothing written so far is lost",
            errno.EROFS: "choose a writable output",
            errno.EACCES: "choose a writable output or fix its permissions",
            errno.EPERM: "choose a writable output or fix its permissions",
        }.get(error.errno or 0, "fix the cause and run again")
        raise StorageError(f"{path}: {error.strerror or error}; {remedy}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- S3 ---

_REMEDIES = {
    "NoSuchBucket": "the bucket does not exist; create it or fix the URI",
    "InvalidAccessKeyId": "the access key is unknown; check the credentials",
    "SignatureDoesNotMatch": "the secret key is wrong; check the credentials",
    "AccessDenied": "access denied; check the credentials and the bucket policy",
    "403": "access denied; check the credentials and the bucket policy",
    "404": "no such bucket or object",
    "EntityTooLarge": "larger than one PUT may be (5 GB); lower runtime.shard_rows and choose a new output",
    "ExpiredToken": "the session token has expired; renew the credentials",
}
_AWS_DEFAULT = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com")
_MISSING = {"NoSuchKey", "404", "NotFound"}
_PASSING = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "429"}
_PERMANENT = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, ParamValidationError)
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}


class _ConflictError(StorageError):
    """409: another writer used the same key at the same time; the request can be repeated."""


class _BrokenReadError(StorageUnavailableError):
    """The body of a response ended early."""


class S3Storage(Storage):
    """An S3 prefix. botocore retries requests after transient errors, with jitter and a bounded number of times.

    Args:
        uri: `s3://bucket/prefix`.
        settings: endpoint and credentials.
        patience_s: seconds that one request may take; below a minute, it is also retried fewer times.
    """

    def __init__(self, uri: str, settings: StorageSpec, patience_s: float = 60.0) -> None:
        match = re.fullmatch(r"s3://([^/]+)/?(.*?)/?", uri)
        if not match:
            raise StorageError(f"{uri}: write it as s3://bucket/prefix")
        self.bucket, self.prefix = match.groups()
        self.uri = uri.rstrip("/")
        keys: dict[str, Any] = {}
        if settings.access_key_id and settings.secret_access_key:
            keys["aws_access_key_id"] = settings.access_key_id.get_secret_value()
            keys["aws_secret_access_key"] = settings.secret_access_key.get_secret_value()
        with self._errors(""):
            session = boto3.Session(profile_name=settings.profile, region_name=settings.region, **keys)
            self._session = session
            self._client = session.client(
                "s3",
                region_name=settings.region or session.region_name or "us-east-1",
                endpoint_url=settings.endpoint_url,
                config=Config(
                    retries={"mode": "standard", "max_attempts": 6 if patience_s >= 60 else 2},
                    connect_timeout=min(5, patience_s),
                    read_timeout=patience_s,
                    max_pool_connections=32,
                    s3={"addressing_style": "path"} if settings.endpoint_url else None,
                ),
            )

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def read(self, key: str) -> bytes:
        """Read an object. Raises NotFoundError."""
        return self.read_tagged(key)[0]

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(_BrokenReadError),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        stop=tenacity.stop_after_attempt(4),
        reraise=True,
    )
    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """Read an object and its ETag. botocore retries failed requests, but not a response that breaks off."""
        with self._errors(key):
            response = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
            try:
                return response["Body"].read(), response["ETag"]
            except BotoCoreError as error:
                raise _BrokenReadError(f"{self.locate(key)}: the response broke off ({type(error).__name__})") from None

    def size(self, key: str) -> int:
        """Return the size of an object in bytes. Raises NotFoundError."""
        with self._errors(key):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]

    def content_tag(self, key: str) -> str:
        """Return the ETag of an object. Raises NotFoundError."""
        with self._errors(key):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ETag"].strip('"')

    def version(self, key: str) -> str:
        """Return the ETag of an object. Raises NotFoundError."""
        return self.content_tag(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List all objects whose key starts with `prefix`, in key order."""
        skip = len(self._key(""))
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            for page in pages:
                for item in page.get("Contents", []):
                    yield ObjectInfo(item["Key"][skip:], item["Size"])

    def create(self, key: str, data: bytes) -> None:
        """Put a new object, with the condition `IfNoneMatch`. Raises AlreadyExistsError."""
        try:
            self._put(key, data, IfNoneMatch="*")
        except ChangedError:
            raise AlreadyExistsError(key) from None

    def replace(self, key: str, data: bytes) -> None:
        """Put an object without a condition."""
        self._put(key, data)

    def swap(self, key: str, data: bytes, tag: str) -> str:
        """Put an object, with the condition `IfMatch` on its ETag. Raises ChangedError."""
        try:
            return self._put(key, data, IfMatch=tag)
        except NotFoundError:
            raise ChangedError(key) from None

    def for_pyarrow(self, key: str) -> tuple[pyarrow.fs.FileSystem, str]:
        """Return pyarrow's S3 file system, with the credentials and endpoint that boto3 found, and the path."""
        endpoint = self._client.meta.endpoint_url
        credentials = self._session.get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials else None
        options: dict[str, Any] = {"region": self._region()}
        if frozen:
            options |= {
                "access_key": frozen.access_key,
                "secret_key": frozen.secret_key,
                "session_token": frozen.token,
            }
        if not _AWS_DEFAULT.fullmatch(endpoint):
            options |= {
                "scheme": endpoint.split("://")[0],
                "endpoint_override": endpoint.split("://")[-1],
            }
        return pyarrow.fs.S3FileSystem(**options), f"{self.bucket}/{self._key(key)}"

    @functools.cache  # noqa: B019  (a process opens few storages, and keeps them)
    def _region(self) -> str:
        """Find the region of the bucket: boto3 follows redirects between AWS regions, Arrow does not."""
        if _AWS_DEFAULT.fullmatch(self._client.meta.endpoint_url):
            with contextlib.suppress(ClientError, BotoCoreError):
                return self._client.head_bucket(Bucket=self.bucket)["BucketRegion"]
        return self._client.meta.region_name

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(_ConflictError),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        stop=tenacity.stop_after_attempt(10),
        reraise=True,
    )
    def _put(self, key: str, data: bytes, **conditions: Any) -> str:
        with self._errors(key):
            # One PUT per object: a body that breaks off leaves nothing. S3 accepts up to 5 GB this way.
            response = self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **conditions)
            return response["ETag"]

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        where = self.locate(key) if key else self.uri
        try:
            yield
        except ClientError as error:
            details = error.response.get("Error", {})
            code = str(details.get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code == "PreconditionFailed" or status == 412:
                raise ChangedError(key) from None
            if code in _CONFLICT:
                raise _ConflictError(f"{where}: {code}") from None
            if code in _MISSING:
                raise NotFoundError(where) from None
            reason = _REMEDIES.get(code, f"{code}: {details.get('Message', '')}".strip(": "))
            kind = StorageUnavailableError if code in _PASSING or (status or 0) >= 500 else StorageError
            raise kind(f"{where}: {reason}") from None
        except BotoCoreError as error:
            # Never show the request itself: it may hold credentials.
            hint = {
                "NoCredentialsError": "no credentials; the standard AWS chain found none (environment, profile, role)",
                "EndpointConnectionError": "the endpoint cannot be reached; check endpoint_url and the network",
                "ConnectTimeoutError": "the endpoint does not answer; check endpoint_url and the network",
                "ProfileNotFound": "the AWS profile does not exist; check storage.profile",
                "ParamValidationError": "not a valid bucket or object name; fix the URI",
            }.get(type(error).__name__, type(error).__name__)
            kind = StorageError if isinstance(error, _PERMANENT) else StorageUnavailableError
            raise kind(f"{where}: {hint}") from None
