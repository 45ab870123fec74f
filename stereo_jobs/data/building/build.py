"""Makes a manifest: opens the source, chooses columns, gives ids, checks, writes."""

import hashlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stereo_jobs.data.building import publish
from stereo_jobs.data.building.delimited import Delimited
from stereo_jobs.data.building.json_rows import JsonRows
from stereo_jobs.data.building.pictures import Distinct, Pictures, clean
from stereo_jobs.data.building.rows import Lines
from stereo_jobs.data.building.source import LeftOut, Source, SourceFile, is_hidden, listing
from stereo_jobs.data.building.tables import TABLE_SUFFIXES, Tables, dataset_files, table_files
from stereo_jobs.data.images import IMAGE_SUFFIXES
from stereo_jobs.data.manifest import KNOWN, MAX_PROMPT, check_schema
from stereo_jobs.data.manifest_files import split_uri
from stereo_jobs.errors import ManifestError
from stereo_jobs.local_files import local_path
from stereo_jobs.logs import names_shown
from stereo_jobs.records import ID_RULE, valid_id
from stereo_jobs.spec import Mode, Recipe, StorageSpec

CONTENT = "content"
"""Value of `Options.id_from` that makes ids from prompts and images."""


class Options(NamedTuple):
    """How a source is read.

    Attributes:
        id_from: column that becomes `id`, or `content`: a hash of prompt and image, unless a column has this name.
        prompt_column: column that becomes `prompt`.
        image_column: column that becomes `image`.
        delimiter: what separates the cells of a CSV file, where the first row does not tell.
    """

    id_from: str | None = None
    prompt_column: str | None = None
    image_column: str | None = None
    delimiter: str | None = None

    def columns(self) -> dict[str, str]:
        """Return the column of the source for each column of the manifest that is given one."""
        given = {"id": self.id_from, "prompt": self.prompt_column, "image": self.image_column}
        return {name: column for name, column in given.items() if column is not None}


class Built(NamedTuple):
    """What became a manifest.

    Attributes:
        rows: number of its rows.
        mode: mode of a job that its columns suit.
        left_out: what the source has beside.
        warnings: what will go wrong with some rows, a sentence each.
        outside: folder of the pictures, if it is not below the manifest's own: a job must be allowed to read it.
    """

    rows: int
    mode: Mode
    left_out: list[LeftOut]
    warnings: list[str]
    outside: str | None


def build(source: str | Path, target: str, settings: StorageSpec, options: Options | None = None) -> Built:
    """Write a manifest. An existing one is never overwritten.

    Ids, and the new file in its compressed form, are held in memory; all else is read in parts, but for JSON arrays.

    Args:
        source: path or s3:// URI of a file or folder. Text has a prompt in each line. CSV, TSV and JSON, which may end
            in .gz, Parquet, Arrow and folders of `datasets` have a column `prompt` or `image`. A folder of pictures is
            searched with all folders inside it; their names become the ids.
        target: path or s3:// URI of the Parquet file.
        settings: S3 access.
        options: how the source is read.

    Raises:
        ManifestError: the source is missing, empty or of another kind, cannot be read, has neither prompts nor images,
            has an id that is not valid or appears twice, or a column that no plan accepts; or the target exists.
    """
    where = str(source)
    options = options or Options()
    try:
        found = _open(where, settings, options)
        publish.refuse_existing(target, settings)
        return _build(found, target, settings, options)
    except FileNotFoundError:
        raise ManifestError(f"{where}: no such file") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeError):
            reason = "a name in it is not UTF-8; rename it"
        raise ManifestError(f"{where}: cannot be read ({reason})") from None


def _open(where: str, settings: StorageSpec, options: Options) -> Source:
    if _is_folder(where, settings):
        return _open_folder(where.rstrip("/") or "/", settings)
    file = SourceFile(where, settings)
    kinds: dict[str, Callable[[], Source]] = {
        ".txt": lambda: Lines(file),
        **dict.fromkeys((".csv", ".tsv"), lambda: Delimited(file, options.delimiter, options.columns().values())),
        **dict.fromkeys((".jsonl", ".ndjson", ".json"), lambda: JsonRows(file)),
    }
    if not where.lower().endswith(".gz"):
        kinds |= dict.fromkeys(TABLE_SUFFIXES, lambda: Tables(where, [file], []))
    if file.suffix not in kinds:
        raise ManifestError(
            f"{where}: must be a .txt, .csv, .tsv, .jsonl or .json file, also with .gz, a .parquet, .arrow or .feather "
            "file, or a folder of images or tables"
        )
    return kinds[file.suffix]()


def _is_folder(where: str, settings: StorageSpec) -> bool:
    if not where.startswith("s3://"):
        return local_path(where).is_dir()
    storage, name = split_uri(where, settings)
    return not (name and storage.exists(name))


def _open_folder(folder: str, settings: StorageSpec) -> Source:
    names = list(listing(folder, settings))
    if folder.startswith("s3://") and not names:
        raise FileNotFoundError(folder)
    if (files := dataset_files(folder, names, settings)) is not None:
        return Tables(folder, files, [])
    seen = [name.lower() for name in names if not is_hidden(name)]
    if any(name.endswith(TABLE_SUFFIXES) for name in seen) and not any(name.endswith(IMAGE_SUFFIXES) for name in seen):
        return Tables(folder, *table_files(folder, names, settings))
    return Pictures(folder, names, settings)


def _build(source: Source, target: str, settings: StorageSpec, options: Options) -> Built:
    if not source.columns:
        raise _nothing_in(source)
    chosen, displaced = _choose(source, options)
    if not {"prompt", "image"} & chosen.keys():
        raise ManifestError(
            f"{source.where}: has neither a column 'prompt' nor 'image', but {names_shown(source.columns)}; "
            f"rename one, or name it with {_column_options(source.columns)}"
        )
    rows = _Rows(source, chosen, by_content=options.id_from is not None)
    try:
        check_schema(rows.schema, Recipe(mode="text" if "prompt" in chosen else "image"))
    except ValueError as error:
        raise ManifestError(f"{source.where}: {error}") from None
    data = publish.encode(rows.schema, rows.tables())
    if rows.total == 0:
        raise _nothing_in(source)
    publish.create(data, target, settings)
    left_out = [each for each in (*source.left_out, displaced) if each.count]
    outside = source.root if isinstance(source, Pictures) and not source.is_below(target) else None
    return Built(rows.total, _mode(chosen), left_out, rows.warnings(), outside)


def _mode(columns: Collection[str]) -> Mode:
    """Mode that uses most of these columns."""
    if "image" in columns:
        return "inpaint" if "mask" in columns else "image"
    return "depth" if "depth" in columns else "text"


def _column_options(columns: Iterable[str]) -> str:
    """Name the options that choose a column, with its name where one differs from ours in capitals only."""
    alike = [f"--{name.lower()}-column {name}" for name in columns if name.lower() in ("prompt", "image")]
    return " or ".join(alike or ("--prompt-column", "--image-column"))


def _nothing_in(source: Source) -> ManifestError:
    beside = "".join(f"; {each.line()}" for each in source.left_out if each.count)
    return ManifestError(f"{source.where}: has nothing in it that could become a row{beside}")


def _choose(source: Source, options: Options) -> tuple[dict[str, str], LeftOut]:
    """Return the column of the source for each of the manifest, `id` first, and which of them are left out."""
    given = options.columns()
    displaced = LeftOut("column", "whose place another one was given")
    makes_ids = given.get("id") == CONTENT and CONTENT not in source.columns
    for name, column in given.items():
        if column not in source.columns and not (name == "id" and makes_ids):
            raise ManifestError(f"{source.where}: has no column {column!r}, but {names_shown(source.columns)}")
    chosen = {}
    for column in source.columns:
        if given.get(column, column) != column:
            displaced.add(column)
        elif column in KNOWN or column not in given.values():
            chosen[column] = column
    chosen |= given
    if makes_ids:
        del chosen["id"]
    first = {"id": chosen["id"]} if "id" in chosen else {}
    return first | chosen, displaced


class _Rows:
    """The rows of a manifest: those of a source, with ids.

    Args:
        source: where they come from.
        chosen: the source's column for each of the manifest's.
        by_content: whether ids that are lacking are hashes of prompts and images; else they are numbers.

    Attributes:
        schema: columns of the manifest, `id` first.
        total: number of rows read so far.
    """

    def __init__(self, source: Source, chosen: dict[str, str], *, by_content: bool) -> None:
        self._source, self._chosen = source, chosen
        fields = [pa.field(field.name, _without_null(field)) for field in source.schema(chosen)]
        self._read_schema = pa.schema(fields)
        self.schema = self._read_schema if "id" in chosen else pa.schema([pa.field("id", pa.string()), *fields])
        self.total = self._blank = self._long = 0
        self._by_content = by_content
        self._digits = 0 if "id" in chosen or by_content else max(6, len(str(source.count())))
        self._seen: set[str] = set()
        self._distinct = Distinct()

    def tables(self) -> Iterator[pa.Table]:
        """Read all rows. Raises ManifestError for an id that is not valid or appears twice, naming the row (from 0)."""
        for read in self._source.tables(self._chosen, self._read_schema):
            lacks_ids = "id" not in self._chosen
            table = read.add_column(0, "id", pa.array(self._new_ids(read), pa.string())) if lacks_ids else read
            self._check_ids(table["id"])
            self._count_prompts(table)
            self.total += len(table)
            yield table

    def warnings(self) -> list[str]:
        """Tell what will go wrong with rows that were read."""
        found = {"an empty prompt": self._blank, f"a prompt of more than {MAX_PROMPT} characters": self._long}
        return [f"{count} of {self.total} rows will fail: they have {what}" for what, count in found.items() if count]

    def _new_ids(self, table: pa.Table) -> list[str]:
        if not self._by_content:
            name = clean(SourceFile(self._source.where, StorageSpec()).stem)
            return [f"{name}-{i:0{self._digits}d}" for i in range(self.total, self.total + len(table))]
        parts = [table[name].to_pylist() for name in ("prompt", "image") if name in table.schema.names]
        return [self._distinct(_hash(cells)) for cells in zip(*parts, strict=True)]

    def _check_ids(self, ids: pa.ChunkedArray) -> None:
        for row, value in enumerate(ids.to_pylist(), self.total):
            where = f"{self._source.where} row {row}"
            if value is None or not valid_id(value):
                raise ManifestError(f"{where}: id {value!r} must be {ID_RULE}")
            if value in self._seen:
                raise ManifestError(f"{where}: id {value!r} appears twice; ids must differ")
            self._seen.add(value)

    def _count_prompts(self, table: pa.Table) -> None:
        texts = [table[name].to_pylist() for name in ("prompt", "negative_prompt") if name in table.schema.names]
        self._long += sum(any(len(text or "") > MAX_PROMPT for text in row) for row in zip(*texts, strict=True))
        if "prompt" in self._chosen and "image" not in self._chosen:
            self._blank += sum(not (text or "").strip() for text in texts[0])


def _hash(cells: tuple[Any, ...]) -> str:
    """Return 16 hexadecimal digits that belong to this prompt and image."""
    digest = hashlib.blake2b(digest_size=8)
    for each in cells:
        cell = each.get("bytes") or each.get("path") if isinstance(each, dict) else each  # a picture with its name
        data = cell.encode() if isinstance(cell, str) else cell or b""
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _without_null(field: pa.Field) -> pa.DataType:
    """Return the type of a column; text, where no value of it or of a part of it tells. Raises ValueError."""

    def replaced(dtype: pa.DataType) -> pa.DataType:
        if pa.types.is_null(dtype):
            return pa.string()
        if pa.types.is_list(dtype):
            return pa.list_(replaced(dtype.value_type))
        if pa.types.is_struct(dtype):
            inner = [dtype.field(i) for i in range(dtype.num_fields)]
            if not inner:
                raise ValueError(f"column {field.name!r} holds empty objects only; drop it")
            return pa.struct([(each.name, replaced(each.type)) for each in inner])
        return dtype

    return replaced(field.type)
