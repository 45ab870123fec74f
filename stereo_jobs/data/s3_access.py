"""Access to S3, shared by all storage of a process: one boto3 client per endpoint and credentials, not one per shard.

A client of its own costs 12 MB and 100 to 220 ms, and connections that are opened anew. boto3's clients may be used by
many threads; what makes them may not, hence the lock.
"""

import contextlib
import os
import re
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.session
import pyarrow.fs
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError

from stereo_jobs.spec import StorageSpec

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHECKSUM_SETTINGS = {
    "request_checksum_calculation": "AWS_REQUEST_CHECKSUM_CALCULATION",
    "response_checksum_validation": "AWS_RESPONSE_CHECKSUM_VALIDATION",
}
"""Settings of botocore about checksums: the name in the AWS configuration file, and the environment variable."""

_AWS_DEFAULT = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com")
"""Endpoints that Arrow finds by itself from the region."""
_KEPT = 32
"""Accesses that a process keeps. A run needs two: with usual patience, and with the lease's."""

Environment = tuple[tuple[str, str], ...]


class S3Access:
    """A boto3 client and pyarrow's file systems, for one endpoint and one set of credentials.

    Bodies go out plain to any endpoint but AWS's own, unless the user's AWS configuration says otherwise: many stores
    refuse the checksums that botocore appends to bodies (aws-chunked), or keep them as if they were content.

    Args:
        settings: endpoint and credentials.
        patience_s: seconds that one request may take; below a minute, it is also retried fewer times.

    Attributes:
        client: the client, for any number of threads.
        is_aws: whether the endpoint is AWS's own.

    Raises:
        BotoCoreError: these settings give no client.
    """

    def __init__(self, settings: StorageSpec, patience_s: float) -> None:
        keys: dict[str, Any] = {}
        if settings.access_key_id and settings.secret_access_key:
            keys["aws_access_key_id"] = settings.access_key_id.get_secret_value()
            keys["aws_secret_access_key"] = settings.secret_access_key.get_secret_value()
        core = botocore.session.Session(profile=settings.profile)
        configured = core.get_scoped_config()
        plain = {
            name: "when_required"
            for name, variable in _CHECKSUM_SETTINGS.items()
            if name not in configured and variable not in os.environ
        }
        session = boto3.Session(botocore_session=core, region_name=settings.region, **keys)
        self._anonymous = bool(settings.anonymous)
        self._credentials = None if self._anonymous else _found(session)

        def connect(**checksums: Any) -> "S3Client":
            return session.client(
                "s3",
                region_name=settings.region or session.region_name or "us-east-1",
                endpoint_url=settings.endpoint_url,
                config=Config(
                    retries={"mode": "standard", "max_attempts": 6 if patience_s >= 60 else 2},
                    connect_timeout=min(5, patience_s),
                    read_timeout=patience_s,
                    max_pool_connections=32,
                    s3={"addressing_style": "path"} if settings.endpoint_url else None,
                    signature_version=UNSIGNED if settings.anonymous else None,
                    **checksums,
                ),
            )

        # Only a client knows its endpoint, which may be set here, in the environment or in a profile.
        self.client = connect(**plain)
        self.is_aws = _is_aws(self.client.meta.endpoint_url)
        if plain and self.is_aws:
            self.client = connect()
        self._ca_bundle = core.get_config_variable("ca_bundle")
        self._regions: dict[str, str] = {}
        self._file_systems: dict[str, tuple[Any, pyarrow.fs.S3FileSystem]] = {}
        self._lock = threading.Lock()

    @property
    def has_credentials(self) -> bool:
        """Whether any were found, or none are needed."""
        return self._anonymous or self._credentials is not None

    @property
    def sends_checksums(self) -> bool:
        """Whether bodies go out with checksums, which may stand in the bodies themselves (aws-chunked)."""
        config: Any = self.client.meta.config
        return bool(config.request_checksum_calculation != "when_required")

    def file_system(self, bucket: str) -> pyarrow.fs.S3FileSystem:
        """Return pyarrow's file system for a bucket; a new one whenever the credentials were renewed.

        Raises:
            BotoCoreError: there are no credentials, or they cannot be renewed.
        """
        if not self.has_credentials:
            raise NoCredentialsError  # Arrow would look for some in its own way, and may find others
        region = self._region(bucket)
        frozen = self._credentials.get_frozen_credentials() if self._credentials else None
        with self._lock:
            made_for, file_system = self._file_systems.get(region, (None, None))
            if file_system is None or made_for != frozen:
                file_system = self._open_file_system(region, frozen)
                self._file_systems[region] = frozen, file_system
            return file_system

    def _open_file_system(self, region: str, frozen: Any) -> pyarrow.fs.S3FileSystem:
        options: dict[str, Any] = {"region": region, "anonymous": frozen is None}
        if frozen:
            options |= {
                "access_key": frozen.access_key,
                "secret_key": frozen.secret_key,
                "session_token": frozen.token,
            }
        endpoint = self.client.meta.endpoint_url
        if not _AWS_DEFAULT.fullmatch(endpoint):
            options |= {
                "scheme": endpoint.split("://")[0],
                "endpoint_override": endpoint.split("://")[-1],
            }
        if self._ca_bundle:
            with contextlib.suppress(TypeError):  # older versions of pyarrow know only the system's certificates
                return pyarrow.fs.S3FileSystem(**options, tls_ca_file_path=self._ca_bundle)
        return pyarrow.fs.S3FileSystem(**options)

    def _region(self, bucket: str) -> str:
        """Find the region of a bucket: boto3 follows redirects between AWS regions, Arrow does not."""
        if bucket not in self._regions and _AWS_DEFAULT.fullmatch(self.client.meta.endpoint_url):
            with contextlib.suppress(KeyError, BotoCoreError):
                self._regions[bucket] = self._head_bucket(bucket)["x-amz-bucket-region"]
        return self._regions.get(bucket, self.client.meta.region_name)

    def _head_bucket(self, bucket: str) -> dict[str, str]:
        """Return the headers of an answer about a bucket: a refusal names its region, too."""
        try:
            answer: Any = self.client.head_bucket(Bucket=bucket)
        except ClientError as error:
            answer = error.response
        headers: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
        return headers


def _found(session: boto3.Session) -> Any:
    """Return what gives the session's credentials, or None. Raises CredentialRetrievalError."""
    try:
        return session.get_credentials()
    except (OSError, ValueError) as error:  # its `credential_process` cannot be started, or prints no JSON
        raise CredentialRetrievalError(provider="custom-process", error_msg=type(error).__name__) from None


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


_accesses: dict[tuple[int, StorageSpec, float, Environment], S3Access] = {}
_lock = threading.Lock()


def environment() -> Environment:
    """Return what the environment says about AWS: a client depends on it."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


def shared(settings: StorageSpec, patience_s: float, seen: Environment, opening: bool = False) -> S3Access:
    """Return this process's access with these settings; the first call makes it.

    Args:
        settings: endpoint and credentials.
        patience_s: seconds that one request may take.
        seen: what `environment` returned when the storage was opened.
        opening: look for credentials again if none were found before: the service that gives them may have been away.

    Raises:
        BotoCoreError: these settings give no client.
    """
    # A forked process must not write into the connections of its parent.
    key = os.getpid(), settings, patience_s, seen
    with _lock:
        access = _accesses.get(key)
        if access is None or (opening and not access.has_credentials):
            access = S3Access(settings, patience_s)
            if key not in _accesses and len(_accesses) >= _KEPT:
                del _accesses[next(iter(_accesses))]
            _accesses[key] = access
        return access


# A thread that a forked process does not have must not hold its lock for ever.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
