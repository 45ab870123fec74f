"""What all kinds of sources have in common, and where their bytes lie."""

import codecs
import gzip
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa

from stereo_jobs.data.manifest_files import split_uri
from stereo_jobs.data.storage import open_storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.local_files import local_path, refuse_special
from stereo_jobs.logs import names_shown
from stereo_jobs.spec import StorageSpec

BATCH_ROWS = 10_000
"""Most rows that are in memory at a time: a row group of the manifest."""
BATCH_BYTES = 32 * 1024**2
"""Size of cells from which fewer rows are taken at a time."""

_NAMES_KEPT = 5
_READ_BYTES = 4 * 1024**2
"""Bytes of text read at a time: each read of a file on S3 is a request."""
_LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"}
"""Files and folders that systems leave behind, in lower case."""
_BAD = "\ud800"
"""Stands for bytes that are no text. No encoding decodes anything else to it."""
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _BAD, error.end


codecs.register_error("stereo_jobs.mark", _mark)


@dataclass
class LeftOut:
    """What a source has that becomes no row or column.

    Attributes:
        noun: what it is, in the singular.
        rule: why it is left out, as the end of a sentence about it.
        count: how many of them.
        first: names of the first few.
    """

    noun: str
    rule: str
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.count += 1
        if self.count <= _NAMES_KEPT:
            self.first.append(name)

    @property
    def what(self) -> str:
        """What was left out, and why."""
        return f"{self.noun}{'s' if self.count != 1 else ''} {self.rule}"

    def line(self) -> str:
        """Say it in one line."""
        more = ", ..." if self.count > len(self.first) else ""
        return f"left out {self.count} {self.what}: {names_shown(self.first)}{more}"


def sorted_out(names: Iterable[str], suffixes: tuple[str, ...], kind: str) -> tuple[list[str], list[LeftOut]]:
    """Choose the files of a folder that become rows.

    Args:
        names: what is below the folder, as `listing` names it.
        suffixes: endings of the files that are wanted, in lower case.
        kind: what such a file is, for messages.

    Returns:
        the names of these files, in the order that was given, and what is left out.
    """
    wanted = []
    hidden = LeftOut("file", "with a hidden name")
    links = LeftOut("folder", "behind a link")
    others = LeftOut("file", f"whose name does not end as that of {kind}")
    for name in names:
        if is_hidden(name):
            hidden.add(name)
        elif name.endswith("/"):
            links.add(name.rstrip("/"))
        elif name.lower().endswith(suffixes):
            wanted.append(name)
        else:
            others.add(name)
    return wanted, [hidden, links, others]


class Source(ABC):
    """Something that can become the rows of a manifest.

    Attributes:
        where: path or URI, for messages.
        columns: names of its columns.
        left_out: what it has beside; complete once all tables were read.
    """

    where: str
    columns: list[str]
    left_out: list[LeftOut]

    @abstractmethod
    def count(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def schema(self, chosen: Mapping[str, str]) -> pa.Schema:
        """Return the types of the manifest's columns.

        Args:
            chosen: the source's column for each of the manifest's.
        """

    @abstractmethod
    def tables(self, chosen: Mapping[str, str], schema: pa.Schema) -> Iterator[pa.Table]:
        """Read all rows, as tables of this schema that fit into memory.

        Raises:
            ManifestError: a row cannot be read; the message names it.
        """


@dataclass(frozen=True)
class SourceFile:
    """One file, local or on S3; what ends in `.gz` is unpacked while it is read."""

    where: str
    settings: StorageSpec

    @property
    def suffix(self) -> str:
        """Its ending in lower case, without `.gz`."""
        return self._plain.suffix.lower()

    @property
    def stem(self) -> str:
        """Its name without ending."""
        return self._plain.stem

    @property
    def _plain(self) -> PurePosixPath:
        name = PurePosixPath(self.where)
        return name.with_suffix("") if name.suffix.lower() == ".gz" else name

    def open_for_arrow(self) -> pa.NativeFile:
        """Open it as it lies, without a Python object that Arrow's threads would hold. Raises OSError, StorageError."""
        if self.where.startswith("s3://"):
            storage, name = split_uri(self.where, self.settings)
            filesystem, path = storage.for_pyarrow(name)
            return filesystem.open_input_file(path)
        local = local_path(self.where)
        refuse_special(local)
        return pa.OSFile(str(local))

    def open(self) -> BinaryIO:
        """Open it for reading. Raises OSError, StorageError."""
        raw = _Ahead(cast(io.RawIOBase, self.open_for_arrow()), _READ_BYTES)
        is_packed = self.where.lower().endswith(".gz")
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw) if is_packed else raw)

    def lines(self) -> Iterator[str]:
        """Read it as text, line by line, with line ends of any system: UTF-8, or what a byte order mark says.

        Raises:
            ManifestError: a line is no text in this encoding; the message names it.
        """
        with self.open() as file:
            start = file.read(4)
        encoding = next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8")
        with (
            self.open() as file,
            io.TextIOWrapper(file, encoding, errors="stereo_jobs.mark", newline="") as text,
        ):
            for number, line in enumerate(text, 1):
                if not line.isascii() and _BAD in line:
                    name = encoding.removesuffix("-sig").upper()
                    raise ManifestError(f"{self.where} line {number}: not {name}; save the file as UTF-8")
                yield line


class _Ahead(io.BufferedReader):
    """Reads ahead, also for text, which asks for 8 KiB at a time past the buffer."""

    def read1(self, size: int = -1, /) -> bytes:
        """Return bytes from the buffer, which is filled as a whole."""
        return self.read(size)


def listing(folder: str, settings: StorageSpec) -> Iterator[str]:
    """List the names of all files below a folder, relative to it, hidden ones too.

    A link to a folder is not followed, since it may lead back; its name ends in a slash here.
    """
    if folder.startswith("s3://"):
        yield from (info.key for info in open_storage(folder, settings).list() if not info.key.endswith("/"))
        return
    root = local_path(folder)
    for parent, folders, names in os.walk(root, onerror=_raise):
        yield from (Path(parent, name).relative_to(root).as_posix() for name in names)
        links = (Path(parent, name) for name in folders if Path(parent, name).is_symlink())
        yield from (f"{link.relative_to(root).as_posix()}/" for link in links)


def _raise(error: OSError) -> None:
    raise error


def is_hidden(name: str) -> bool:
    """Tell whether a file, or a folder on the way to it, is one that systems hide or leave behind."""
    return any(part.startswith(".") or part.lower() in _LITTER for part in name.split("/"))
