"""Objects on S3, and what its errors mean to a user."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow.fs
import tenacity
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    InfiniteLoopConfigError,
    InvalidConfigError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)

from stereo_jobs.data import s3_access
from stereo_jobs.data.objects import AlreadyExistsError, ChangedError, NotFoundError, ObjectInfo, Storage
from stereo_jobs.data.s3_access import S3Access
from stereo_jobs.errors import StorageError, StorageUnavailableError
from stereo_jobs.spec import StorageSpec

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DIRECT = "if a proxy stands between here and the store, set the endpoint to the store itself"
_CHANGED_BODY = (
    "the store received another body than was sent, or cannot read the checksum sent with it (aws-chunked): "
    "{checksums}; " + _DIRECT
)
_LACKING = (
    "the store lacks a part of S3 that this needs: conditional writes (IfNoneMatch, IfMatch), for which use AWS S3 or "
    "another store that has them, or checksums after bodies (aws-chunked): {checksums}"
)
_CLOCK = "the clock of this machine is wrong; set it (NTP) and run again"
_REGION = (
    "the bucket is in another region, or at another endpoint; set region in runtime.storage (or AWS_REGION) to the "
    "bucket's, and endpoint_url, if it is set, to that of this region"
)
_TOKEN = "renew the credentials"
_PUBLIC = "if the bucket is public, set runtime.storage.anonymous (or, without a spec, --anonymous)"
_DENIED = f"access denied; check the credentials and the bucket policy, or, {_PUBLIC}"
_NOT_PUBLIC = (
    "access denied without credentials, which runtime.storage.anonymous says of this bucket; if it is not public, take "
    "it out there and give credentials"
)
_FORBIDDEN = {"AccessDenied", "403"}
_REMEDIES = {
    "NoSuchBucket": "the bucket does not exist; create it or fix the URI",
    "InvalidBucketName": "not a valid bucket name; fix the URI",
    "InvalidAccessKeyId": "the access key is unknown; check the credentials",
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "404": "no such bucket or object",
    "EntityTooLarge": "larger than one PUT may be (5 GB); lower runtime.shard_rows and choose a new output",
    "ExpiredToken": f"the session token has expired; {_TOKEN}",
    "TokenRefreshRequired": f"the session token has expired; {_TOKEN}",
    "InvalidToken": f"the session token is not valid; {_TOKEN}",
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "BadDigest": _CHANGED_BODY,
    "InvalidDigest": _CHANGED_BODY,
    "XAmzContentSHA256Mismatch": _CHANGED_BODY,
    "IncompleteBody": _CHANGED_BODY,
    "MissingContentLength": (
        "the request came without its length, as bodies with checksums do (aws-chunked): {checksums}; " + _DIRECT
    ),
    "NotImplemented": _LACKING,
    "501": _LACKING,
    "MethodNotAllowed": "no S3 server answers there; check endpoint_url",
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
}
_WRONG_SECRET = "the secret key is wrong; check the credentials"
_OTHER_SIGNATURE = (
    f"the signature does not match, mostly because {_WRONG_SECRET}. If they are right, the clock of this machine may "
    "be wrong, a proxy may change headers, or the store lacks Signature Version 4 or checksums after bodies "
    "(aws-chunked): {checksums}"
)
"""Stores other than AWS's answer SignatureDoesNotMatch to whatever they cannot check."""
_SSO = "the sign-in of the AWS profile has expired; run `aws sso login` with this profile"
_PROFILE = "the AWS profile is not complete or not valid; fix it in the AWS configuration files"
_HINTS = {
    "NoCredentialsError": (
        f"no credentials; the standard AWS chain found none (environment, profile, role); {_PUBLIC}"
    ),
    "CredentialRetrievalError": (
        "the command or service that gives credentials failed; try it by itself (`credential_process` or role of the "
        "AWS profile)"
    ),
    "UnauthorizedSSOTokenError": _SSO,
    "SSOTokenLoadError": _SSO,
    "TokenRetrievalError": _SSO,
    "InvalidConfigError": _PROFILE,
    "PartialCredentialsError": _PROFILE,
    "InfiniteLoopConfigError": _PROFILE,
    "UnknownCredentialError": _PROFILE,
    "ConfigParseError": _PROFILE,
    "EndpointConnectionError": "the endpoint cannot be reached; check endpoint_url and the network",
    "ConnectTimeoutError": "the endpoint does not answer; check endpoint_url and the network",
    "SSLError": "no secure connection; check endpoint_url, or name the store's certificate in AWS_CA_BUNDLE",
    "ResponseParserError": "the answer is not an S3 server's; check endpoint_url",
    "ProfileNotFound": "the AWS profile does not exist; check storage.profile and AWS_PROFILE",
    "ParamValidationError": "not a valid bucket or object name; fix the URI",
}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_PASSING = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "429"}
_PERMANENT = (
    *(NoCredentialsError, PartialCredentialsError, ProfileNotFound, ParamValidationError, InvalidConfigError),
    *(InfiniteLoopConfigError, UnknownCredentialError, ConfigParseError, SSOError, TokenRetrievalError),
)
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}
_DAMAGED = {"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"}


class _RepeatableError(StorageError):
    """Nothing was written: another writer used the same key at the same time, or the body was damaged on its way."""


class _BrokenReadError(StorageUnavailableError):
    """The body of a response ended early, or is another one than a moment later."""


def _is_md5(tag: str, data: bytes) -> bool:
    """Whether an ETag is the MD5 of these bytes, as it is in most stores unless they encrypt or were sent parts."""
    return tag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


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
        self._settings = settings.for_bucket(self.bucket)
        self._patience_s = patience_s
        self._environment = s3_access.environment()
        with self._errors(""):
            s3_access.shared(self._settings, patience_s, self._environment, opening=True)

    def __reduce__(self) -> tuple[type["S3Storage"], tuple[str, StorageSpec, float]]:
        """Pickle what it was opened with, and neither a client nor this process's environment."""
        return S3Storage, (self.uri, self._settings, self._patience_s)

    @property
    def _access(self) -> S3Access:
        return s3_access.shared(self._settings, self._patience_s, self._environment)

    @property
    def _client(self) -> "S3Client":
        return self._access.client

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
        """Read an object and its ETag, and make sure that these are its bytes.

        An ETag that is the MD5 of the bytes proves it, and botocore checks those that AWS sends. Other objects are read
        twice. What breaks off or differs is read again: botocore retries failed requests only.
        """
        data, tag = self._get(key)
        if not (_is_md5(tag, data) or self._access.is_aws or self._get(key) == (data, tag)):
            raise _BrokenReadError(f"{self.locate(key)}: the store gives other bytes each time it is read")
        return data, tag

    def _get(self, key: str) -> tuple[bytes, str]:
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

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """List all objects whose key starts with `prefix` and sorts after `after`, in key order."""
        skip = len(self._key(""))
        where: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self._key(prefix)}
        if after:
            where["StartAfter"] = self._key(after)
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(**where)
            for page in pages:
                for item in page.get("Contents", []):
                    yield ObjectInfo(item["Key"][skip:], item["Size"])

    def create(self, key: str, data: bytes) -> None:
        """Put a new object, with the condition `IfNoneMatch`, and make sure that it has these bytes.

        An ETag that is the MD5 of the bytes proves it, and AWS checks them itself. Other objects are read back.

        Raises:
            AlreadyExistsError: the name is taken.
            StorageError: the store keeps other bytes.
        """
        try:
            tag = self._put(key, data, IfNoneMatch="*")
        except ChangedError:
            raise AlreadyExistsError(key) from None
        if not (_is_md5(tag, data) or self._access.is_aws or self._holds(key, data)):
            raise StorageError(f"{self._altered(key)}. Move the object away before the next run")

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read(key) == data
        except NotFoundError:
            return False

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
        with self._errors(key):
            return self._access.file_system(self.bucket), f"{self.bucket}/{self._key(key)}"

    def _altered(self, key: str) -> str:
        return (
            f"{self.locate(key)}: other bytes come back than were written. A store that keeps the framing of checksums "
            f"(aws-chunked) does so: {self._about_checksums()}; {_DIRECT}, or use another store"
        )

    def _about_checksums(self) -> str:
        if self._access.sends_checksums:
            return "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required, so that bodies go out without checksums"
        return "bodies go out without checksums here, so the cause is another"

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(_RepeatableError),
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
                raise _RepeatableError(f"{where}: {code}") from None
            if code in _MISSING:
                raise NotFoundError(where) from None
            said = f"{where}: {self._reason(code, str(details.get('Message', '')))}"
            if code in _DAMAGED:
                raise _RepeatableError(said) from None
            passing = code in _PASSING or ((status or 0) >= 500 and status != 501)
            raise (StorageUnavailableError if passing else StorageError)(said) from None
        except BotoCoreError as error:
            # Never show the request itself: it may hold credentials.
            name = type(error).__name__
            kind = StorageError if isinstance(error, _PERMANENT) else StorageUnavailableError
            raise kind(f"{where}: {_HINTS.get(name, name)}") from None

    def _reason(self, code: str, message: str) -> str:
        """Return what an error code means and what to do about it; the store's own words if that is not known."""
        if code == "SignatureDoesNotMatch":
            remedy = _WRONG_SECRET if self._access.is_aws else _OTHER_SIGNATURE
        elif code in _FORBIDDEN and self._settings.anonymous:
            remedy = _NOT_PUBLIC
        elif code in _REMEDIES:
            remedy = _REMEDIES[code]
        else:
            return f"{code}: {' '.join(message.split())[:300]}".strip(": ")
        return remedy.format(checksums=self._about_checksums())
