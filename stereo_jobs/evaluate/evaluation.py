"""Runs all methods on all data sets as jobs, one after the other; then writes their tables and pictures.

An evaluation that was interrupted resumes where it left off.

```
<output>/<data set>/scenes/<kind>/          scenes as manifests
<output>/<data set>/<protocol>/<method>/    a job like any other, with its own records and report
<output>/tables/<table>.md .csv .tex        and README.md with all of them
<output>/pictures/                          worst, mean and best scene
```
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stereo_jobs.data.storage import Storage
from stereo_jobs.errors import SpecError
from stereo_jobs.evaluate.datasets import Dataset, Problem, open_dataset, photos, toyscapes
from stereo_jobs.evaluate.experiments import (
    ExperimentRunner,
    Rows,
    RunJob,
    case_key,
    photo_case_key,
    slug,
)
from stereo_jobs.evaluate.methods import BEST, TABLES, Method, by_name, chosen, folders, sweep
from stereo_jobs.evaluate.protocols import PROTOCOLS, Protocol, ProtocolName
from stereo_jobs.evaluate.tables import cost, depth, inpaint
from stereo_jobs.evaluate.tables.compare import parts_tables, scores_table, worst_mean_best_sheet
from stereo_jobs.evaluate.tables.cost import cost_table
from stereo_jobs.evaluate.tables.depth import depth_table
from stereo_jobs.evaluate.tables.formats import FORMATS, Table, markdown
from stereo_jobs.evaluate.tables.inpaint import inpaint_table
from stereo_jobs.run import driver
from stereo_jobs.toyscapes.scenes import Level

_WITHOUT_PROTOCOL = {"depth", "cost", "inpaint"}
"""Tables of other modes than photos to pairs: the first two render their own ToyScapes, the last one masks photos."""
_PHOTO_SIZE, _TOYSCAPES_SIZE = 512, 128


@dataclass(frozen=True)
class Options:
    """What to evaluate.

    Attributes:
        data: folders of Middlebury or KITTI, recognised by their layout.
        photos: folder of photos, for protocol `cycle` alone.
        toyscapes: number of rendered scenes.
        levels: levels of the rendered scenes, in turn.
        protocols: names of protocols; empty for `paper` and `metric`, and `cycle` for photos.
        tables: names of `TABLES`.
        methods: names of methods; empty for all methods of the tables.
        sweeps: switches with the values to compare, `FIELD=VALUE,...`.
        folders: right views of other programs, `NAME=DIR`.
        size: width and height of the images, and the longest side of photos; None for 512, and 128 for ToyScapes.
        slow_scenes: number of scenes that slow methods run on.
        cost_pairs: number of pairs for each cell of the table `cost`.
        depth_model: depth-conditioned Stable Diffusion for the tables `cost` and `depth`; None for that of the base.
    """

    data: tuple[Path, ...] = ()
    photos: Path | None = None
    toyscapes: int = 0
    levels: tuple[Level, ...] = ("plain", "structured")
    protocols: tuple[ProtocolName, ...] = ()
    tables: tuple[str, ...] = ("methods",)
    methods: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    size: int | None = None
    slow_scenes: int = 32
    cost_pairs: int = 4
    depth_model: str | None = None


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        tables: tables of scores and costs, in order.
        parts: detailed tables: all means of each data set and level.
        files: URIs of all written files; the last one has all tables on one page.
        problems: scenes without a score, by data set or case.
    """

    tables: list[Table] = field(default_factory=list)
    parts: list[Table] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    problems: dict[str, list[Problem]] = field(default_factory=dict)


class SizedDataset(NamedTuple):
    """A data set, and the width and height of its images in pixels."""

    dataset: Dataset
    size: int


class Comparison(NamedTuple):
    """A table of scores: its name, and its methods."""

    name: str
    methods: Sequence[Method]


def evaluate(
    output: str,
    base: Mapping[str, Any],
    options: Options,
    run: RunJob = driver.run,
    begin: Callable[[int, int, str], None] = lambda done, cases, name: None,
) -> Evaluation:
    """Run every case that is not done yet, and write tables and pictures of all cases.

    Args:
        output: folder or s3:// prefix; it may hold an interrupted evaluation, or one with other methods.
        base: parts of a job spec that apply to all cases (models, runtime, storage), as plain data.
        options: what to evaluate.
        run: runs one job.
        begin: called before each case with the number of cases that are done, of all cases, and its name.

    Raises:
        StereoJobsError: an option breaks a rule, a folder has no data set, or a run fails.
    """
    _check(options)
    keys: list[str] = []
    runner = ExperimentRunner(
        *(output, base, options.slow_scenes, run),
        depth_model=options.depth_model,
        begin=lambda key: begin(keys.index(key), len(keys), key),
    )
    writer = _Writer(runner.storage)
    datasets = _datasets(options)
    keys += _keys(options, datasets)
    for comparison, protocol in _protocols(options):
        _compare(runner, writer, datasets, comparison, protocol)
    if "inpaint" in options.tables:
        for dataset, size in datasets:
            table, picture = inpaint_table(runner, dataset, size, chosen("inpaint", options.methods))
            writer.table(table)
            if picture:
                writer.put(f"pictures/{table.name}.png", picture)
    size = options.size or _TOYSCAPES_SIZE
    if "depth" in options.tables:
        methods = chosen("depth", options.methods)
        writer.table(depth_table(runner, methods, scenes=options.toyscapes, size=size))
    if "cost" in options.tables:
        methods = chosen("cost", options.methods)
        writer.table(cost_table(runner, methods, pairs=options.cost_pairs, size=size))
    result = writer.result
    result.problems = {key: problems for key, problems in runner.problems.items() if problems}
    writer.put("tables/README.md", _summary(result).encode())
    return result


class _Writer:
    """Writes tables and pictures below the output, and collects them in the result."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.result = Evaluation()

    def put(self, name: str, data: bytes) -> None:
        """Write one file."""
        self.storage.replace(name, data)
        self.result.files.append(self.storage.locate(name))

    def table(self, table: Table) -> None:
        """Write a table of scores or costs."""
        self.result.tables.append(table)
        self._put_table(table)

    def part(self, table: Table) -> None:
        """Write a detailed table."""
        self.result.parts.append(table)
        self._put_table(table)

    def _put_table(self, table: Table) -> None:
        for suffix, render in FORMATS.items():
            self.put(f"tables/{table.name}.{suffix}", render(table).encode())


def _compare(
    runner: ExperimentRunner,
    writer: _Writer,
    datasets: Sequence[SizedDataset],
    comparison: Comparison,
    protocol: Protocol,
) -> None:
    """Run the cases of one comparison under one protocol; write their tables, and pictures of each data set."""
    name = comparison.name
    cases = [
        runner.case(dataset, size, protocol, method)
        for dataset, size, method in _within(datasets, comparison, protocol)
    ]
    if not cases:
        return
    scores = {case.key: runner.scores(case) for case in cases}
    writer.table(scores_table(name, protocol, cases, scores))
    for dataset in dict.fromkeys(case.dataset for case in cases):
        own = [case for case in cases if case.dataset == dataset]
        own_scores: dict[str, Rows] = {case.key: scores[case.key] for case in own}
        details = {case.key: runner.details(case) for case in own} if name == "switches" else None
        for table in parts_tables(name, protocol, own, own_scores, details):
            writer.part(table)
        picture = worst_mean_best_sheet(name, own, own_scores, runner)
        if picture:
            writer.put(f"pictures/{slug(f'{name} {protocol.name} {dataset}')}.png", picture)


def _check(options: Options) -> None:
    """Raise SpecError if an option breaks a rule; before anything is read or rendered."""
    for name in options.tables:
        if name not in TABLES:
            raise SpecError(f"table {name!r}: not known; there are: {', '.join(TABLES)}")
    for name in options.methods:
        by_name(name)
    some = options.data or options.toyscapes or options.photos
    if not some and (options.sweeps or set(options.tables) - {"cost"}):
        raise SpecError("nothing to evaluate on: give --data DIR, --photos DIR or --toyscapes N")
    if options.photos and options.protocols and "cycle" not in options.protocols:
        raise SpecError("--photos: photos have no true right view, which these protocols need; add --protocol cycle")
    if "depth" in options.tables and not options.toyscapes:
        raise SpecError("table 'depth': its depth maps and prompts are those of ToyScapes; give --toyscapes N")
    _check_names(options)


def _check_names(options: Options) -> None:
    """Raise SpecError if two methods share a folder: each would be given the other's scores."""
    taken = {slug(method.name): method for methods in TABLES.values() for method in methods}
    for method in (*folders(options.folders), *(m for _, methods in _comparisons(options) for m in methods)):
        key = slug(method.name)
        if not key:
            raise SpecError(f"--folder {method.name!r}: the name needs a letter or a digit")
        if taken.setdefault(key, method) != method:
            raise SpecError(
                f"--folder {method.name!r}: {taken[key].name!r} has the folder {key}, too; choose another name"
            )


def _datasets(options: Options) -> list[SizedDataset]:
    found = [SizedDataset(open_dataset(folder), options.size or _PHOTO_SIZE) for folder in options.data]
    if options.photos:
        found.append(SizedDataset(photos(options.photos), options.size or _PHOTO_SIZE))
    if options.toyscapes:
        size = options.size or _TOYSCAPES_SIZE
        found.append(SizedDataset(toyscapes(options.toyscapes, size, options.levels), size))
    names = [dataset.name for dataset, _ in found]
    if len(set(names)) < len(names):
        raise SpecError(
            f"--data: takes one folder of each kind, got {', '.join(names)}; evaluate the others in another output"
        )
    return found


def _comparisons(options: Options) -> list[Comparison]:
    """The tables of scores: chosen ones of `TABLES`, then sweeps."""
    given = folders(options.folders)
    found = [
        Comparison(name, [*chosen(name, options.methods), *(given if name == "methods" else [])])
        for name in options.tables
        if name not in _WITHOUT_PROTOCOL
    ]
    for text in options.sweeps:
        for base in [by_name(name) for name in options.methods] or [BEST]:
            found.append(Comparison(f"sweep {text.partition('=')[0].strip()} {base.name}", sweep(text, base)))
    return found


def _within(
    datasets: Sequence[SizedDataset], comparison: Comparison, protocol: Protocol
) -> Iterator[tuple[Dataset, int, Method]]:
    """Everything that a protocol can measure of a comparison: data set, size and method of each case."""
    for dataset, size in datasets:
        for method in protocol.measurable(comparison.methods) if protocol.applies_to(dataset) else ():
            yield dataset, size, method


def _protocols(options: Options) -> Iterator[tuple[Comparison, Protocol]]:
    """All tables of scores with each of their protocols."""
    usual: tuple[ProtocolName, ...] = ("paper", "metric", *(("cycle",) if options.photos else ()))
    for comparison in _comparisons(options):
        for name in ("paper",) if comparison.name == "techniques" else options.protocols or usual:
            yield comparison, PROTOCOLS[name]


def _keys(options: Options, datasets: Sequence[SizedDataset]) -> list[str]:
    """Keys of all cases, in the order in which they are run; those that several tables share stand once."""
    keys: list[str] = []
    for comparison, protocol in _protocols(options):
        within = list(_within(datasets, comparison, protocol))
        if protocol.frame == "cycle":
            keys += [photo_case_key(dataset) for dataset, _, _ in within]
        keys += [case_key(dataset, protocol, method) for dataset, _, method in within]
    if "inpaint" in options.tables:
        keys += [
            inpaint.case_key(dataset, method, share)
            for dataset, _ in datasets
            for method in chosen("inpaint", options.methods)
            for share in inpaint.SHARES
        ]
    if "depth" in options.tables:
        keys += map(depth.case_key, chosen("depth", options.methods))
    if "cost" in options.tables:
        keys += [cost.case_key(mode, method) for mode in cost.MODES for method in chosen("cost", options.methods)]
    return list(dict.fromkeys(keys))


def _summary(result: Evaluation) -> str:
    """All tables on one page, and the scenes without a score."""
    parts = ["# Evaluation\n", *map(markdown, (*result.tables, *result.parts))]
    problems = [f"- {key}: {p.id}: {p.message}" for key, listed in result.problems.items() for p in listed]
    if problems:
        parts.append("\n".join(["### Without a score", "", *problems, ""]))
    return "\n".join(parts)
