"""The exceptions that end a command, each with its exit code.

* StereoJobsError (1): base class; 1 is also the exit code of an unexpected internal error
  + SpecError (2): the job spec breaks a rule
  + ManifestError (2): a manifest file cannot be used
  + ModelError (2): a model cannot be used
  + StorageError (2): the object store or file system refuses
    - StorageUnavailableError (75): the store does not answer at the moment
    - DamagedError (2): an object of the output is not what its name says
    - OutputGoneError (2): the output was removed or replaced during a run
  + ClusterError (2): a Ray cluster cannot be used
  + DriftError (2): the output belongs to another recipe, manifest or model revision
  + TooManyFailuresError (3): more rows failed than the spec allows
  + OutputHeldError (5): another run is working on this output
  + DeviceLostError (75): the GPU cannot be used again by this process
  + InterruptedRunError (75): the run was stopped before its end

Exit code 4 is no exception: `stereo-jobs verify` ends with it when its report finds a problem, which is the result of
that command. A row that fails is data (`records.RowError`), and a shard that fails is retried; neither ends a run.

A message names the field, file or row, the rule, the value and the remedy. A password in it is replaced by `***`,
since messages end up in logs and datasets.
"""

import re

_IN_URL = re.compile(r"(?<=://)[^\s/@]+@|(?<![\w/.%+-])[\w.%+-]+:[^\s/@:]+@")


def hide_passwords(text: str) -> str:
    """Replace `user:password@` and `token@` in addresses by `***@`."""
    return _IN_URL.sub("***@", text)


class StereoJobsError(Exception):
    """Base of every error that this package raises on purpose. Passwords in its message are hidden."""

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
    """A model cannot be used: not found, only available as a pickle file, unknown family, unknown depth polarity."""

    exit_code = 2


class StorageError(StereoJobsError):
    """The object store or file system refuses: credentials, bucket, endpoint, space, permissions."""

    exit_code = 2


class StorageUnavailableError(StorageError):
    """The store does not answer at the moment. Unlike other storage errors, this one may pass by itself."""

    exit_code = 75


class DamagedError(StorageError):
    """An object of the output is not what its name says: empty, cut off, overwritten, or of another kind."""


class OutputGoneError(StorageError):
    """The output was removed during a run, or another job's output is in its place. Nothing is written to it."""


class ClusterError(StereoJobsError):
    """A Ray cluster cannot be used: not reachable, no access, a submission id that was used before."""

    exit_code = 2


class DriftError(StereoJobsError):
    """The output was started with another recipe, manifest content or model revision."""

    exit_code = 2


class TooManyFailuresError(StereoJobsError):
    """More rows failed than `runtime.max_failure_ratio` allows. Finished shards are kept."""

    exit_code = 3


class OutputHeldError(StereoJobsError):
    """Another run holds the lease of this output."""

    exit_code = 5


class DeviceLostError(StereoJobsError):
    """The GPU fails every call from now on; only a new process can use it again."""

    exit_code = 75


class InterruptedRunError(StereoJobsError):
    """A run was stopped before its end; running it again resumes where it left off."""

    exit_code = 75
