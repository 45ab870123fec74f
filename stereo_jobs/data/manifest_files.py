"""Finds the files of a manifest and opens them.

Folders are read as Spark, Hive, Dask and pyarrow.dataset do: names that begin with `_` or `.` hold no data, and a
folder `key=value` is a column of the files below it.
"""

import fnmatch
import re
import urllib.parse
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field

from stereo_jobs.data.row_groups import UNREADABLE, RowGroups
from stereo_jobs.data.storage import NotFoundError, Storage, open_storage
from stereo_jobs.errors import ManifestError, StereoJobsError, StorageError, StorageUnavailableError
from stereo_jobs.spec import StorageSpec

_WILDCARDS = "*?["
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value of a partition whose column is null."""
_OUTPUT = re.compile(r"(.*/|)_job/")
_SHARD = re.compile(r"(.*/|)data/train-[^/]*\.parquet")
"""Shards of an output, wherever it lies: an output is a folder that has `_job/` in it."""


class ManifestFile(BaseModel):
    """One Parquet file of a manifest, as plans list it."""

    model_config = ConfigDict(frozen=True)

    uri: str
    size: int
    tag: str = Field(description="Changes with the content: S3 ETag, or SHA-256 of a local file.")
    rows: int
    partitions: dict[str, str | None] = Field(
        default_factory=dict,
        exclude_if=lambda partitions: not partitions,  # plans without any have the fingerprint that they always had
        description="Columns that the file's folders give it: `split=train` is `train` in the column `split`.",
    )


def split_uri(uri: str, settings: StorageSpec) -> tuple[Storage, str]:
    """Split the URI of an object into the storage of its folder and its name there. Raises StorageError."""
    if not uri.startswith("s3://"):
        whole = open_storage(uri).uri  # checks the name, too
        uri = whole + "/" * uri.endswith("/") if uri.startswith("file:") else uri
    folder, _, name = uri.rpartition("/")
    return open_storage(folder or ("/" if uri.startswith("/") else "."), settings), name


def find(patterns: Sequence[str], settings: StorageSpec) -> list[str]:
    """Find the Parquet files of a manifest; returns their URIs, sorted, each once.

    Below a folder, names that begin with `_` or `.` do not count. A glob finds such a name if its part for it begins
    with the same character. Shards of an output that lies there never count.

    Args:
        patterns: files, globs, folders or prefixes.
        settings: S3 access.

    Raises:
        ManifestError: a pattern matches no file.
    """
    found: set[str] = set()
    for pattern in patterns:
        matches = _glob(pattern, settings) if _is_glob(pattern) else _named(pattern, settings)
        if not matches:
            raise ManifestError(
                f"manifest {pattern}: no Parquet file there; name a Parquet file, a glob or a folder with such files "
                "(names that begin with _ or . and the shards of an output do not count)"
            )
        found.update(matches)
    return sorted(found)


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in _WILDCARDS)


def _named(pattern: str, settings: StorageSpec) -> list[str]:
    """Find the file of this name, or all Parquet files below the folder of this name."""
    storage, name = split_uri(pattern, settings)
    if name and storage.exists(name):
        return [storage.locate(name)]
    folder = open_storage(pattern, settings)
    try:
        keys = [key for key in _listed(folder) if key.endswith(".parquet")]
    except NotFoundError:
        return []
    return [folder.locate(key) for key in keys if not any(part[:1] in ("_", ".") for part in key.split("/"))]


def _glob(pattern: str, settings: StorageSpec) -> list[str]:
    """Find the files that match a glob; `*` and `?` do not match a slash."""
    pattern = open_storage(pattern).uri if pattern.startswith("file:") else pattern
    fixed = pattern[: min(pattern.index(c) for c in _WILDCARDS if c in pattern)].rpartition("/")[0]
    storage = open_storage(fixed or ".", settings)
    wanted = pattern[len(fixed) :].lstrip("/").split("/")
    return [
        storage.locate(key)
        for key in _listed(storage)
        if len(parts := key.split("/")) == len(wanted) and all(map(_matches, parts, wanted))
    ]


def _matches(part: str, wanted: str) -> bool:
    hidden = part[:1] in ("_", ".") and part[:1] != wanted[:1]
    return not hidden and fnmatch.fnmatchcase(part, wanted)


def _listed(storage: Storage) -> Iterator[str]:
    """List the keys below a folder, without the shards of outputs."""
    outputs: set[str] = set()
    for key, _ in storage.list():  # in key order: `_job/` comes before `data/`
        if found := _OUTPUT.match(key):
            outputs.add(found[1])
        shard = _SHARD.fullmatch(key)
        if shard is None or shard[1] not in outputs:
            yield key


def partitions(uri: str, patterns: Sequence[str]) -> dict[str, str | None]:
    """Return the columns that a file's folders give it, as Hive writes them: `split=train/` is `train` in `split`.

    Args:
        uri: a file that `find` found.
        patterns: what the spec names. Only folders below a folder that it names count, and none of a glob.

    Raises:
        ManifestError: a folder's name is not UTF-8 behind its percent signs.
    """
    named = (pattern for pattern in patterns if not _is_glob(pattern))
    folders = (pattern if pattern.startswith("s3://") else open_storage(pattern).uri for pattern in named)
    bases = [folder.rstrip("/") + "/" for folder in folders]
    base = min((base for base in bases if uri.startswith(base)), key=len, default=None)
    if base is None:
        return {}
    pairs = [folder.partition("=") for folder in uri.removeprefix(base).split("/")[:-1]]
    try:
        found = {_unquoted(key): _unquoted(value) for key, equals, value in pairs if key and equals}
    except UnicodeDecodeError:
        raise ManifestError(f"manifest {uri}: a folder in its name is not UTF-8 behind %; rename it") from None
    return {key: None if value == _HIVE_NULL else value for key, value in found.items()}


def _unquoted(text: str) -> str:
    return urllib.parse.unquote(text, errors="strict")


def open_file(uri: str, settings: StorageSpec) -> RowGroups:
    """Open one manifest file. Raises ManifestError if it is missing or not Parquet."""
    storage, name = split_uri(uri, settings)
    filesystem, path = storage.for_pyarrow(name)
    try:
        return RowGroups(filesystem.open_input_file(path))
    except FileNotFoundError:
        raise ManifestError(f"manifest {uri}: no such file") from None
    except UNREADABLE as error:
        raise unreadable(uri, settings, "not a readable Parquet file", error) from None


def unreadable(uri: str, settings: StorageSpec, what: str, error: Exception) -> StereoJobsError:
    """Explain a failed read: the store does not answer or refuses, or the file is damaged."""
    if "AWS Error" in str(error):  # Arrow does not tell S3 errors apart; boto3 does
        storage, name = split_uri(uri, settings)
        try:
            storage.exists(name)
        except StorageError as problem:
            return problem
        return StorageUnavailableError(f"manifest {uri}: {what} just now ({_first_line(error)})")
    return ManifestError(f"manifest {uri}: {what} ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
