"""Plans: which pairs are in which shard. Pairs n*shard_rows to (n+1)*shard_rows - 1 of a plan are its shard n.

A plan is small and never changes; a job has several generations of them. Generation 0 is the manifest when it was
first planned, `--extend` adds a generation with the new files, and `retry-failed` one with the failed rows. Planning
reads the footers of the manifest files and streams their `id` columns once.
"""

import base64
import bisect
import io
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from stereo_jobs import interrupts
from stereo_jobs.data import manifest
from stereo_jobs.data.arrow_types import CarriedColumns, named
from stereo_jobs.data.manifest_files import ManifestFile, partitions, split_uri
from stereo_jobs.data.manifest_reader import ManifestReader
from stereo_jobs.data.shards import read_table
from stereo_jobs.data.storage import AlreadyExistsError, NotFoundError, Storage
from stereo_jobs.errors import DamagedError, DriftError, InterruptedRunError, ManifestError, StorageError
from stereo_jobs.output import layout
from stereo_jobs.output.id_hashes import find_duplicate, hash_ids
from stereo_jobs.output.reading import intact, read_json
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.spec import JobSpec, Recipe, StorageSpec, digest

log = logging.getLogger(__name__)

_LARGEST = 2**40
_UNDECLARED = (256, 1)
"""Scales that versions without `disparity_scale` read disparities by: 16-bit PNG, and other integers."""


MAX_PAIRS = 10**9
"""Most pairs of a generation: while it is planned, the ids of its rows take 32 bytes each in memory."""
MAX_SHARDS = 10**7
"""Most shards of a generation: their names have seven digits, which sort as the numbers do."""

Ended = Callable[[], bool]
"""Tells whether the run was told to stop; planning a large manifest takes minutes."""


class RowRef(NamedTuple):
    """Origin of one planned pair: manifest file, row in it (from 0), and variant of that row."""

    uri: str
    row: int
    variant: int


class Plan(BaseModel):
    """One generation of a job. It is written once and never changed; docs/dataset.md describes its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generation: int
    kind: Literal["manifest", "retry"] = "manifest"
    recipe: dict[str, Any] = Field(description="Resolved recipe in canonical form, with versions.")
    files: tuple[ManifestFile, ...]
    carried: dict[str, str] = Field(description="Further manifest columns and their Arrow types.")
    carried_schema: str | None = Field(None, description="The same as an Arrow schema in base64; null in older plans.")
    variants: int = Field(description="Pairs per manifest row.")
    shard_rows: int
    retry: tuple[int, ...] = Field((), description="For kind retry: indices of pairs among all files.")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the plan, as hex. Every shard carries the fingerprint of its plan."""
        # The schema says in Arrow's form, which may change with its version, what `carried` says.
        return digest(self.model_dump(mode="json", exclude={"carried_schema"}))

    @cached_property
    def arrow_schema(self) -> pa.Schema | None:
        """Names and types of the carried columns; None in older plans. Raises ValueError if it is damaged."""
        if self.carried_schema is None:
            return None
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.carried_schema, validate=True)))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"carried_schema must be an Arrow schema ({error})") from None
        if named(schema) != self.carried:
            raise ValueError("carried_schema must have the columns and types of carried")
        return schema

    @cached_property
    def pairs(self) -> int:
        """Number of pairs in this generation."""
        if self.kind == "retry":
            return len(self.retry)
        return sum(file.rows for file in self.files) * self.variants

    @property
    def shards(self) -> int:
        """Number of shards in this generation."""
        return -(-self.pairs // self.shard_rows)

    def pairs_in(self, shard: int) -> int:
        """Return the number of pairs in one shard; the last shard may have fewer than `shard_rows`."""
        return min(self.shard_rows, self.pairs - shard * self.shard_rows)

    def refs(self, shard: int) -> list[RowRef]:
        """Return the origin of each pair of one shard, in order."""
        span = range(shard * self.shard_rows, shard * self.shard_rows + self.pairs_in(shard))
        return [self._ref(self.retry[i] if self.kind == "retry" else i) for i in span]

    def rows_by_file(self, shard: int) -> list[tuple[ManifestFile, list[int]]]:
        """Return the manifest files that one shard needs, each with its rows in ascending order."""
        rows: dict[str, set[int]] = {}
        for ref in self.refs(shard):
            rows.setdefault(ref.uri, set()).add(ref.row)
        return [(self._file_by_uri[uri], sorted(indices)) for uri, indices in rows.items()]

    def _ref(self, index: int) -> RowRef:
        row, variant = divmod(index, self.variants)
        at = bisect.bisect_right(self._file_ends, row)
        return RowRef(self.files[at].uri, row - (self._file_ends[at] - self.files[at].rows), variant)

    @cached_property
    def _file_by_uri(self) -> dict[str, ManifestFile]:
        return {file.uri: file for file in self.files}

    @cached_property
    def _file_ends(self) -> list[int]:
        return list(itertools.accumulate(file.rows for file in self.files))


@dataclass(frozen=True)
class Job:
    """All plan generations of one output, in order."""

    plans: tuple[Plan, ...]

    @property
    def pairs(self) -> int:
        """Number of planned pairs; an id that a retry generation repeats is counted once."""
        return sum(plan.pairs for plan in self.plans if plan.kind == "manifest")

    def continues(self, earlier: "Job") -> bool:
        """Whether these are the plans of an earlier reading, and perhaps later ones."""
        return self.plans[: len(earlier.plans)] == earlier.plans

    def shard_keys(self) -> Iterator[layout.ShardKey]:
        """Iterate over the keys of all planned shards."""
        for plan in self.plans:
            for shard in range(plan.shards):
                yield plan.generation, shard


def load_job(storage: Storage) -> Job:
    """Read all plans of an output; a new output has none.

    Raises:
        StorageError: a plan is missing or cannot be read.
    """
    try:
        names = [info.key for info in storage.list(layout.PLANS_PREFIX)]
    except NotFoundError:
        names = []
    for name in names:
        folder, _, inside = name.removeprefix("_job/").partition("/")
        if inside:
            raise DamagedError(f"{storage.locate('_job/' + folder)}: a folder has the name of a plan; move it away")
    listed = map(layout.plan_generation, names)
    generations = sorted(generation for generation in listed if generation is not None)
    for expected, generation in enumerate(generations):
        if generation != expected:
            raise StorageError(
                f"{storage.locate(layout.plan(expected))}: missing, although later plans exist; restore it from "
                "a backup, or choose another output"
            )
    return Job(tuple(load_plan(storage, generation) for generation in generations))


def load_plan(storage: Storage, generation: int) -> Plan:
    """Read one plan of an output.

    Raises:
        NotFoundError: there is no such plan.
        DamagedError: it is not a valid plan of this generation.
    """
    name, remedy = layout.plan(generation), "restore it from a backup, or choose another output"
    with intact(storage, name, remedy):
        plan = read_json(storage, name, Plan, remedy)
        _check_whole(plan, generation)
    return plan


def _check_whole(plan: Plan, generation: int) -> None:
    """Check what arithmetic on a plan relies on. Raises ValueError with the rule that it breaks."""
    QualityConfig.model_validate(plan.recipe["quality"])  # what reports take from it
    _ = plan.arrow_schema
    rows = [file.rows for file in plan.files]
    planned = sum(rows) * plan.variants
    rules = {
        f"generation must be {generation}": plan.generation == generation,
        "files must not be empty": len(plan.files) > 0,
        f"rows must be from 0 to {_LARGEST}": all(0 <= n <= _LARGEST for n in rows),
        "variants and shard_rows must be positive": 0 < plan.variants <= _LARGEST and 0 < plan.shard_rows <= _LARGEST,
        "retry must be indices of planned pairs": all(0 <= i < planned for i in plan.retry),
    }
    if broken := [rule for rule, kept in rules.items() if not kept]:
        raise ValueError(broken[0])
    if plan.shards > layout.MOST_SHARDS:
        raise ValueError(f"{plan.shards} shards, more than {layout.MOST_SHARDS}")


# --- Making plans ---


def make_plan(
    spec: JobSpec,
    recipe: Recipe,
    files: Iterable[str],
    earlier: Job,
    storage: Storage,
    *,
    ended: Ended = lambda: False,
) -> tuple[Plan, NDArray[np.uint64]]:
    """Check the manifest files and make the next generation from them; writes nothing.

    Returns the plan and the hashes of its ids.

    Args:
        spec: the job spec; the manifest, `shard_rows` and the storage settings are used.
        recipe: the resolved recipe.
        files: URIs of manifest files that are in no earlier generation.
        earlier: earlier generations; their ids may not appear again.
        storage: storage of the output; hashes of earlier ids are read from it.
        ended: whether the run was told to stop.

    Raises:
        InterruptedRunError: the run was told to stop.
        EmptyManifestError: no file has a row.
        ManifestError: a file breaks a rule; the message names file, row and rule.
    """
    settings = spec.runtime.storage
    listings, carried = _inspected(spec, recipe, files, earlier, ended)
    plan = Plan(
        generation=len(earlier.plans),
        recipe=recipe.canonical(),
        files=tuple(listings),
        carried=named(carried),
        carried_schema=base64.b64encode(carried.serialize()).decode(),
        variants=recipe.variants.per_row,
        shard_rows=spec.runtime.shard_rows,
    )
    _check_size(plan)
    hashes = planned_hashes(plan, settings, ended)
    _refuse_duplicates(plan, hashes, earlier, storage, settings)
    return plan, hashes


class EmptyManifestError(ManifestError):
    """No file of a manifest has a row."""


def _inspected(
    spec: JobSpec, recipe: Recipe, files: Iterable[str], earlier: Job, ended: Ended
) -> tuple[list[ManifestFile], pa.Schema]:
    """Check the columns of all files. Returns their listings and the carried columns of the dataset."""
    settings = spec.runtime.storage
    listings: list[ManifestFile] = []
    planned = _planned_columns(earlier, settings)
    columns = CarriedColumns(planned)
    for uri in files:
        _stop_if(ended)
        listing, carried = manifest.inspect(
            uri, recipe, settings, partitions(uri, spec.manifests), spec.runtime.shard_rows
        )
        if planned is None and earlier.plans and listing.rows:
            planned = _same_columns(uri, carried, earlier)
            columns = CarriedColumns(planned)
        columns.add(uri, {field.name: field.type for field in carried})
        listings.append(listing)
    if not any(listing.rows for listing in listings):
        raise EmptyManifestError(_where(listings) + ": has no rows; add some, or leave the file out")
    for name, uri in columns.left_out.items():
        log.warning("column %r of %s is left out: columns of a dataset do not change once it is begun", name, uri)
    return listings, columns.schema


def _where(files: Sequence[ManifestFile]) -> str:
    return "manifest " + files[0].uri + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _planned_columns(earlier: Job, settings: StorageSpec) -> pa.Schema | None:
    """Return the carried columns of a dataset; None if it is a new one, or a plan of an older version cannot tell."""
    if not earlier.plans:
        return None
    first = earlier.plans[0]
    for plan in earlier.plans:
        if plan.arrow_schema is not None:
            return plan.arrow_schema
    if not first.carried:
        return pa.schema([])
    try:
        schema = manifest.carried_schema(first.files[0].uri, settings)
    except (ManifestError, StorageError):
        return None  # all its rows may be done
    return schema if named(schema) == first.carried else None


def _same_columns(uri: str, carried: pa.Schema, earlier: Job) -> pa.Schema:
    """Return the carried columns of a file if they are those of the dataset to the letter. Raises ManifestError."""
    first = earlier.plans[0]
    if named(carried) != first.carried:
        raise ManifestError(
            f"manifest {uri}: its further columns {named(carried)} differ from those of the dataset, {first.carried}; "
            f"give it the same ones, or restore {first.files[0].uri}, which says whether these can be converted"
        )
    return carried


def _check_size(plan: Plan) -> None:
    """Refuse a plan that is too large to be carried out, before its ids are read. Raises ManifestError."""
    where = _where(plan.files)
    rows = sum(file.rows for file in plan.files)
    if plan.pairs > MAX_PAIRS:
        raise ManifestError(
            f"{where}: {rows} rows of {plan.variants} variants are {plan.pairs} pairs, and at most {MAX_PAIRS} can be "
            "planned at once; add part of the files later with --extend, or use several outputs"
        )
    if plan.shards > MAX_SHARDS:
        raise ManifestError(
            f"{where}: {plan.pairs} pairs in shards of {plan.shard_rows} are {plan.shards} shards, and at most "
            f"{MAX_SHARDS} can be planned at once; raise runtime.shard_rows"
        )


def _stop_if(ended: Ended) -> None:
    if ended() or interrupts.told():
        raise InterruptedRunError("interrupted while the manifest was planned; run again to go on")


def publish(storage: Storage, plan: Plan, hashes: NDArray[np.uint64] | None = None) -> Plan:
    """Write a plan, unless another run has just written the same one. The plan counts once its object exists.

    Raises:
        DriftError: another run has written a different plan for this generation.
    """
    if hashes is not None:
        storage.replace(layout.ids(plan.generation), _ids_file(plan, hashes))
    try:
        storage.create(layout.plan(plan.generation), plan.model_dump_json(indent=1).encode())
    except AlreadyExistsError:
        there = load_plan(storage, plan.generation)
        if there.fingerprint != plan.fingerprint:
            raise DriftError(
                f"{storage.uri}: another run has just planned generation {plan.generation} from other input; compare "
                f"`recipe` and `files` in {layout.plan(plan.generation)} with your spec and manifest, then run again"
            ) from None
    return plan


def retry_plan(spec: JobSpec, job: Job, failed: dict[int, list[int]]) -> Plan | None:
    """Make the next generation from the rows whose latest state is failed; None if there are none.

    Args:
        spec: the job spec; `shard_rows` is used.
        job: all plans so far; retry generations among them must be finished.
        failed: generation -> positions of its failed pairs, from 0.
    """
    first = job.plans[0]
    pending: set[int] = set()
    offset = 0
    for plan in job.plans:
        positions = failed.get(plan.generation, [])
        if plan.kind == "manifest":
            pending |= {offset + position for position in positions}
            offset += plan.pairs
        else:
            pending -= set(plan.retry)
            pending |= {plan.retry[position] for position in positions}
    if not pending:
        return None
    return Plan(
        generation=len(job.plans),
        kind="retry",
        recipe=first.recipe,
        files=tuple(file for plan in job.plans if plan.kind == "manifest" for file in plan.files),
        carried=first.carried,
        carried_schema=first.carried_schema,
        variants=first.variants,
        shard_rows=spec.runtime.shard_rows,
        retry=tuple(sorted(pending)),
    )


# --- Drift ---


def refuse_drift(job: Job, recipe: Recipe) -> None:
    """Check that recipe and method are those that the output was started with. Raises DriftError with the changes."""
    old, new = job.plans[0].recipe, recipe.canonical()
    begun, present = (kept.get("method_version") for kept in (old, new))
    if begun != present:
        raise DriftError(
            f"this output was started by a version of stereo-jobs with method_version {begun}, and this one makes "
            f"other pixels (method_version {present}); finish the output with the version that started it, or choose a "
            "new output"
        )
    if "disparity_scale" not in old and new["disparity_scale"] in _UNDECLARED:
        del new["disparity_scale"]
    changed = list(_differences(old, new, Recipe().canonical(), "recipe"))
    if changed:
        raise DriftError(
            "this output was started with another recipe; choose a new output, or restore these fields:\n"
            + "\n".join(f"  {line}" for line in changed)
        )


def refuse_changed_files(job: Job, settings: StorageSpec, unfinished: set[int], ended: Ended = lambda: False) -> None:
    """Check that the content of the manifest files has not changed since they were planned.

    Args:
        job: all plans of the output.
        settings: S3 access.
        unfinished: generations that still need their files; files of other generations may be gone.
        ended: whether the run was told to stop.

    Raises:
        InterruptedRunError: the run was told to stop.
        DriftError: a file has changed, or is gone but still needed; the message names it.
    """
    seen: set[str] = set()
    for plan in job.plans:
        for file in plan.files:
            if file.uri in seen:
                continue
            seen.add(file.uri)
            _stop_if(ended)
            storage, name = split_uri(file.uri, settings)
            try:
                same = storage.content_tag(name) == file.tag
            except NotFoundError:
                if plan.generation not in unfinished:
                    log.warning("manifest %s is gone; all its rows are done, so the run continues", file.uri)
                    continue
                raise DriftError(
                    f"manifest {file.uri}: planned in generation {plan.generation} and still needed, but gone; "
                    "restore it and run again"
                ) from None
            if not same:
                raise DriftError(
                    f"manifest {file.uri}: its content changed since generation {plan.generation} was planned; "
                    "restore it, put new rows into a new file and use --extend, or choose a new output"
                )


def _differences(old: Any, new: Any, default: Any, path: str) -> Iterator[str]:
    """Compare a planned recipe with one of today; what an older version did not know was as its default is."""
    if isinstance(old, dict) and isinstance(new, dict):
        defaults = default if isinstance(default, dict) else {}
        for key in sorted(old.keys() | new.keys()):
            usual = defaults.get(key)
            yield from _differences(old.get(key, usual), new.get(key, usual), usual, f"{path}.{key}")
    elif old != new:
        yield f"{path}: {json.dumps(old)} then, {json.dumps(new)} now"


# --- Ids ---


def planned_hashes(plan: Plan, settings: StorageSpec, ended: Ended = lambda: False) -> NDArray[np.uint64]:
    """Hash the manifest ids of a plan: N,2 uint64, in manifest order."""
    parts = []
    for file in plan.files:
        for ids in manifest.stream_ids(file, settings):
            _stop_if(ended)
            parts.append(hash_ids(ids))
    return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


def known_hashes(storage: Storage, plan: Plan, settings: StorageSpec) -> NDArray[np.uint64]:
    """Return the hashes of a plan's manifest ids, N,2 uint64.

    They are read from the ids file of the output, sorted. If that is missing, damaged or belongs to another plan, they
    are computed from the manifest, in manifest order.
    """
    name = layout.ids(plan.generation)
    try:
        with intact(storage, name):
            table = read_table(storage.read(name))
            if (table.schema.metadata or {}).get(b"fingerprint") == plan.fingerprint.encode():
                hashes = np.stack([table["high"].to_numpy(), table["low"].to_numpy()], axis=1)
                if hashes.dtype != np.uint64 or len(hashes) != sum(file.rows for file in plan.files):
                    raise ValueError(f"{len(hashes)} hashes of type {hashes.dtype}")
                return hashes
    except NotFoundError:
        pass
    except DamagedError as error:
        log.warning("%s; reading the ids from the manifest", str(error).partition(";")[0])
    return planned_hashes(plan, settings)


def _ids_file(plan: Plan, hashes: NDArray[np.uint64]) -> bytes:
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    table = pa.table(
        {"high": hashes[order, 0], "low": hashes[order, 1]},
    ).replace_schema_metadata({"fingerprint": plan.fingerprint})
    buffer = io.BytesIO()
    # Hashes do not repeat and do not compress: dictionaries and compression would only cost time.
    pq.write_table(table, buffer, row_group_size=100_000, use_dictionary=False, compression="none")
    return buffer.getvalue()


def _refuse_duplicates(
    plan: Plan, new: NDArray[np.uint64], earlier: Job, storage: Storage, settings: StorageSpec
) -> None:
    old = [known_hashes(storage, p, settings) for p in earlier.plans if p.kind == "manifest"]
    count = sum(len(part) for part in old)
    hit = find_duplicate(np.concatenate([*old, new]) if old else new)
    if hit is None:
        return
    first, second = hit
    uri, row = _locate(plan, second - count)
    file = next(file for file in plan.files if file.uri == uri)
    value = ManifestReader(settings).read(file, [row], frozenset({"id"}), ())[0]["id"]
    if first < count:
        raise ManifestError(
            f"manifest {uri} row {row}: id {value!r} was already planned in an earlier generation; "
            "give the row a new id or drop it"
        )
    other, other_row = _locate(plan, first)
    raise ManifestError(
        f"manifest {uri} row {row}: id {value!r} appears twice, first in {other} row {other_row}; give one of the rows "
        "another id"
    )


def _locate(plan: Plan, row: int) -> tuple[str, int]:
    for file in plan.files:
        if row < file.rows:
            return file.uri, row
        row -= file.rows
    raise IndexError(row)
