"""The exceptions that end a command, each with its exit code.

A row that fails is data (`records.RowError`), a shard that fails is dealt again; only what is listed here
ends a run. A message names the field, file or row, the rule, the value and the remedy; a password in that value is
blotted out, since messages end up in logs and datasets.
"""

import re

_IN_URL = re.compile(r"(?<=://)[^\s/@]+@|(?<![\w/.%+-])[\w.%+-]+:[^\s/@:]+@")


def hide_passwords(text: str) -> str:
    """The same with `***@` in place of `user:password@` or `token@` of an address."""
    return _IN_URL.sub("***@", text)


class StereoJobsError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(hide_passwords(message))


class SpecError(StereoJobsError):
    """The job spec breaks a rule: an unknown key, a wrong unit, an impossible value."""

    exit_code = 2


class ManifestError(StereoJobsError):
    """A manifest file cannot be used: missing column, wrong type, duplicate id, no rows."""

    exit_code = 2


class ModelError(StereoJobsError):
    """A model cannot be used: not found, pickle only, unknown family, unknown depth polarity."""

    exit_code = 2


class StorageError(StereoJobsError):
    """The object store or file system refuses: credentials, bucket, endpoint, space, permissions."""

    exit_code = 2


class StorageUnavailableError(StorageError):
    """The store does not answer, or not now; may go away by itself, unlike the other storage errors."""

    exit_code = 75


class ClusterError(StereoJobsError):
    """A Ray cluster cannot be used: not reached, no access, an id used before."""

    exit_code = 2


class DriftError(StereoJobsError):
    """The output was begun with another recipe, manifest content or model revision."""

    exit_code = 2


class TooManyFailuresError(StereoJobsError):
    """More rows failed than `runtime.max_failure_ratio` allows; what was made is kept."""

    exit_code = 3


class VerifyError(StereoJobsError):
    """`verify` found rows missing, doubled or corrupt."""

    exit_code = 4


class OutputHeldError(StereoJobsError):
    """Another run holds the lease of this output."""

    exit_code = 5


class DeviceLostError(StereoJobsError):
    """The GPU gives errors for everything from now on; only a new process can use it again."""

    exit_code = 75


class InterruptedRunError(StereoJobsError):
    """A signal ended the run early; `run` again goes on where it stopped."""

    exit_code = 75
