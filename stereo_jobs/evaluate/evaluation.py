"""Data sets x methods as jobs, one after the other; then their tables and pictures. Goes on where it stopped.

```
<output>/<data set>/scenes/<kind>/          scenes as manifests
<output>/<data set>/<protocol>/<method>/    a job like any other, with its own records and report
<output>/tables/<table>.md .csv .tex        and README.md with all of them
<output>/pictures/                          worst, mean and best scene
```
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stereo_jobs.errors import SpecError
from stereo_jobs.evaluate.datasets import Dataset, Problem, open_dataset, toyscapes
from stereo_jobs.evaluate.experiments import Case, ExperimentRunner, Run, slug
from stereo_jobs.evaluate.methods import BEST, TABLES, Method, Protocol, by_name, chosen, folders, sweep
from stereo_jobs.evaluate.tables.compare import parts_tables, scores_table, worst_mean_best_sheet
from stereo_jobs.evaluate.tables.cost import cost_table
from stereo_jobs.evaluate.tables.depth import depth_table
from stereo_jobs.evaluate.tables.formats import FORMATS, Table, markdown
from stereo_jobs.run import driver

_OF_RENDERED = {"depth", "cost"}
"""Tables of ToyScapes in modes that have no true right view."""


@dataclass(frozen=True)
class Options:
    """What is evaluated.

    Attributes:
        data: folders of Middlebury or KITTI, told by their layout.
        toyscapes: how many rendered scenes.
        protocols: geometries.
        tables: names of `TABLES`.
        methods: names; none: all of the tables.
        sweeps: `FIELD=VALUE,...`.
        folders: `NAME=DIR`, right views of other programs.
        size: of the pictures; None: 512, and 128 for ToyScapes.
        slow_scenes: how many scenes slow methods see.
        cost_pairs: pairs of each cell of the table `cost`.
        depth_model: depth-conditioned Stable Diffusion for it and `depth`; None: that of the base.
    """

    data: tuple[Path, ...] = ()
    toyscapes: int = 0
    protocols: tuple[Protocol, ...] = ("paper", "metric")
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
    """What came out.

    Attributes:
        tables: of scores and costs, in order.
        parts: what stands behind them: all means of each data set and level.
        files: URIs of all that was written.
        problems: scenes without a score, by data set or case.
    """

    tables: list[Table] = field(default_factory=list)
    parts: list[Table] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    problems: dict[str, list[Problem]] = field(default_factory=dict)


def evaluate(output: str, base: Mapping[str, Any], options: Options, run: Run = driver.run) -> Evaluation:
    """Run every case that is not done yet, and write tables and pictures of all of them.

    Args:
        output: folder or s3:// prefix; may hold an evaluation that was cut off, or one with other methods.
        base: parts of a job spec that hold for all cases (models, runtime, storage), as plain data.
        options: what is evaluated.
        run: runs one job.

    Raises:
        StereoJobsError: options that break a rule, a data set that is none, or what a run raises.
    """
    _check(options)
    source, result = ExperimentRunner(output, base, options.slow_scenes, run, options.depth_model), Evaluation()

    def put(name: str, data: bytes) -> None:
        source.storage.replace(name, data)
        result.files.append(source.storage.locate(name))

    def write(table: Table, among: list[Table]) -> None:
        among.append(table)
        for suffix, render in FORMATS.items():
            put(f"tables/{table.name}.{suffix}", render(table).encode())

    datasets = _datasets(options)
    for name, methods in _comparisons(options):
        for protocol in ("paper",) if name == "techniques" else options.protocols:
            cases = _cases(source, datasets, protocol, methods)
            if not cases:
                continue
            scores = {case.key: source.scores(case) for case in cases}
            write(scores_table(name, protocol, cases, scores), result.tables)
            for dataset, _ in datasets:
                own = [case for case in cases if case.dataset == dataset.name]
                details = {case.key: source.details(case) for case in own} if name == "switches" else None
                for table in parts_tables(name, protocol, own, {case.key: scores[case.key] for case in own}, details):
                    write(table, result.parts)
                picture = worst_mean_best_sheet(own, scores, source)
                if picture:
                    put(f"pictures/{slug(f'{name} {protocol} {dataset.name}')}.png", picture)
    size = options.size or 128
    if "depth" in options.tables:
        write(depth_table(source, chosen("depth", options.methods), scenes=options.toyscapes, size=size), result.tables)
    if "cost" in options.tables:
        costs = cost_table(source, chosen("cost", options.methods), pairs=options.cost_pairs, size=size)
        write(costs, result.tables)
    result.problems = {key: problems for key, problems in source.problems.items() if problems}
    put("tables/README.md", _summary(result).encode())
    return result


def _check(options: Options) -> None:
    for name in options.tables:
        if name not in TABLES:
            raise SpecError(f"table {name!r}: not known; there are: {', '.join(TABLES)}")
    for name in options.methods:
        by_name(name)
    if not (options.data or options.toyscapes) and (options.sweeps or set(options.tables) - {"cost"}):
        raise SpecError("nothing to evaluate on: give --data DIR or --toyscapes N")
    if "depth" in options.tables and not options.toyscapes:
        raise SpecError("table 'depth': its depth maps and prompts are those of ToyScapes; give --toyscapes N")
    _check_names(options)


def _check_names(options: Options) -> None:
    """A method's folder and scores are found by its name: two that share one would have each other's figures."""
    taken = {slug(method.name): method for methods in TABLES.values() for method in methods}
    for method in (*folders(options.folders), *(m for _, methods in _comparisons(options) for m in methods)):
        key = slug(method.name)
        if not key:
            raise SpecError(f"--folder {method.name!r}: the name needs a letter or a digit")
        if taken.setdefault(key, method) != method:
            raise SpecError(
                f"--folder {method.name!r}: {taken[key].name!r} has the folder {key}, too; choose another name"
            )


def _datasets(options: Options) -> list[tuple[Dataset, int]]:
    """Data sets and the size of their pictures."""
    found = [(open_dataset(folder), options.size or 512) for folder in options.data]
    if options.toyscapes:
        size = options.size or 128
        found.append((toyscapes(options.toyscapes, size), size))
    names = [dataset.name for dataset, _ in found]
    if len(set(names)) < len(names):
        raise SpecError(f"--data: one folder of each kind, got {', '.join(names)}; evaluate the others elsewhere")
    return found


def _comparisons(options: Options) -> list[tuple[str, Sequence[Method]]]:
    """Tables of scores: name and methods."""
    given = folders(options.folders)
    found: list[tuple[str, Sequence[Method]]] = [
        (name, [*chosen(name, options.methods), *(given if name == "methods" else [])])
        for name in options.tables
        if name not in _OF_RENDERED
    ]
    for text in options.sweeps:
        for base in [by_name(name) for name in options.methods] or [BEST]:
            found.append((f"sweep {text.partition('=')[0].strip()} {base.name}", sweep(text, base)))
    return found


def _cases(
    source: ExperimentRunner, datasets: Sequence[tuple[Dataset, int]], protocol: Protocol, methods: Sequence[Method]
) -> list[Case]:
    """Methods x data sets; an estimator knows no pixels, so its disparity has no protocol `metric`."""
    return [
        source.case(dataset, size, protocol, method)
        for dataset, size in datasets
        for method in methods
        if protocol == "paper" or method.disparity == "true"
    ]


def _summary(result: Evaluation) -> str:
    """All tables on one page, and what has no score."""
    parts = ["# Evaluation\n", *map(markdown, (*result.tables, *result.parts))]
    problems = [f"- {key}: {p.id}: {p.message}" for key, listed in result.problems.items() for p in listed]
    if problems:
        parts.append("\n".join(["### Without a score", "", *problems, ""]))
    return "\n".join(parts)
