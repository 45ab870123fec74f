"""Methods compared on data sets: tables of scores (the paper's Tables 1 and 2), and pictures (Fig. 3 and 4)."""

import math
from collections.abc import Iterator, Mapping, Sequence

from stereo_jobs.evaluate.experiments import Case, ExperimentRunner, Rows, decode, slug, values
from stereo_jobs.evaluate.methods import BEST, TECHNIQUES
from stereo_jobs.evaluate.pictures import sheet, worst_mean_best
from stereo_jobs.evaluate.protocols import Protocol
from stereo_jobs.evaluate.tables import paper
from stereo_jobs.evaluate.tables.formats import METRICS, Table, counts, figure
from stereo_jobs.pixels import Image

SCORES = ("psnr", "ssim", "lpips")
PARTS = ("psnr_nonocc", "ssim_nonocc", "lpips_nonocc", "psnr_occ", "ssim_occ", "lpips_occ")
DETAILS = ("sharpness", "change", "bad_1")
WORK = ("left_psnr", "evaluations")
_NOT_COMPARED = (*WORK, "scale_percent")
TITLES = {"middlebury": "Middlebury", "kitti": "KITTI", "photos": "Photos", "toyscapes": "ToyScapes"}


def scores_table(name: str, protocol: Protocol, cases: Sequence[Case], scores: Mapping[str, Rows]) -> Table:
    """Means with the offsets of the best and the worst scene, laid out like the paper's Tables 1 and 2.

    Args:
        name: name of the table; `techniques` has a label column for each technique.
        protocol: protocol of all cases.
        cases: one case for each method and data set.
        scores: scores by the key of a case.
    """
    methods = list(dict.fromkeys(case.method.name for case in cases))
    datasets = list(dict.fromkeys(case.dataset for case in cases))
    techniques = name == "techniques"
    table = Table(
        slug(f"{name} {protocol.name}"),
        f"{name.capitalize()}, protocol {protocol.name}",
        ("true", "estimated", "attention", "SPSMD", "deblur") if techniques else ("method",),
        [_technique_labels(method) if techniques else (method,) for method in methods],
        [(TITLES[dataset], metric) for dataset in datasets for metric in SCORES],
    )
    published = paper.PUBLISHED.get(protocol.name, {})
    for case in cases:
        theirs = published.get(case.method.name, {}).get(case.dataset)
        row, first = methods.index(case.method.name), datasets.index(case.dataset) * len(SCORES)
        for i, metric in enumerate(SCORES):
            cell = figure(values(scores[case.key], metric), metric, offsets=True, paper=theirs[i] if theirs else None)
            if cell:
                table.cells[row, first + i] = cell
    if table.has_paper:
        table.notes.append(paper.IN_BRACKETS[protocol.name])
    table.notes.extend(_of_others(published, methods, datasets))
    table.notes.extend(counts(table))
    return table


def parts_tables(
    name: str,
    protocol: Protocol,
    cases: Sequence[Case],
    scores: Mapping[str, Rows],
    details: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> Iterator[Table]:
    """All means of one data set, with intervals of the paired differences to `best`; then a table of each level.

    Args:
        name: name of the table.
        protocol: protocol of all cases.
        cases: the cases of one data set.
        scores: scores by the key of a case.
        details: `score_details` by the key of a case and by scene; None leaves their columns out.
    """
    if details is not None:
        scores = {
            key: {scene: {**row, **details[key][scene]} for scene, row in rows.items()} for key, rows in scores.items()
        }
    levels = sorted({row["level"] for case in cases for row in scores[case.key].values() if row["level"]})
    for level in ["", *levels]:
        of_level = {
            case.key: {s: row for s, row in scores[case.key].items() if level in ("", row["level"])} for case in cases
        }
        scale = ("scale_percent",) if protocol.scales else ()
        metrics = (*SCORES, *PARTS, *(DETAILS if details is not None else ()), *scale, *WORK)
        words = [*name.split(), protocol.name, cases[0].dataset, *level.split()]
        title = f"{', '.join(words).capitalize()}: all, visible and hidden pixels"
        yield paired_table(slug(" ".join(words)), title, cases, of_level, metrics)


def paired_table(
    name: str, title: str, cases: Sequence[Case], scores: Mapping[str, Rows], metrics: Sequence[str]
) -> Table:
    """Means of one data set, with intervals of the paired differences to `best`, except for costs and scales.

    Args:
        name: name of the table's files.
        title: title of the table, one line.
        cases: one case for each row.
        scores: scores by the key of a case.
        metrics: one metric for each column.
    """
    table = Table(
        name,
        title,
        ("method",),
        [(case.method.name,) for case in cases],
        [("", metric) for metric in metrics],
    )
    best = next((scores[case.key] for case in cases if case.method.name == BEST.name), None)
    for i, case in enumerate(cases):
        compared = best is not None and case.method.name != BEST.name
        for j, metric in enumerate(metrics):
            reference = values(best, metric) if best is not None and compared and metric not in _NOT_COMPARED else None
            cell = figure(values(scores[case.key], metric), metric, reference=reference)
            if cell:
                table.cells[i, j] = cell
    if best is not None:
        table.notes.append("±: half the 95 % interval of the difference to `best`, scene by scene.")
    table.notes.extend(counts(table))
    return table


def worst_mean_best_sheet(
    name: str, cases: Sequence[Case], scores: Mapping[str, Rows], runner: ExperimentRunner
) -> bytes | None:
    """The worst, mean and best scene by the SSIM of `best`, as each method makes it: a PNG like Fig. 4 (or 3, or 5).

    Args:
        name: name of the table; the methods of `techniques` are named by the letters of Fig. 5.
        cases: the cases of one data set; without `best` among them the last one chooses the scenes.
        scores: scores by the key of a case.
        runner: reads pairs and truth.

    Returns:
        The PNG; None if no scene has a score in all cases.
    """
    ours = next((case for case in cases if case.method.name == BEST.name), cases[-1])
    common = set.intersection(*(set(scores[case.key]) for case in cases))
    ssim = {s: v for s, v in values(scores[ours.key], "ssim").items() if s in common and math.isfinite(v)}
    if not ssim:
        return None
    scenes = worst_mean_best(ssim)
    listed = list(scenes.values())
    truths = runner.truths(ours, listed)
    rights = {case.key: {scene: right for scene, _, right in runner.pictures(case, listed)} for case in cases}
    rows: list[tuple[str, list[tuple[str, Image]]]] = []
    for kind, scene in scenes.items():
        truth = truths[scene]
        given = [("left", decode(truth["image"])), ("true right", decode(truth["true_right"]))]
        made = [
            (f"{row['ssim']:.3f}, {row['lpips']:.3f} {_caption(name, case.method.name)}", rights[case.key][scene])
            for case in cases
            for row in [scores[case.key][scene]]
        ]
        rows.append((f"{kind}: {scene}, by the SSIM of {ours.method.name}; below: SSIM, LPIPS", [*given, *made]))
    return sheet(rows)


def _of_others(
    published: Mapping[str, Mapping[str, paper.Scores]], methods: Sequence[str], datasets: Sequence[str]
) -> Iterator[str]:
    """Notes on figures that were published under the protocol of a table, of methods that it does not have."""
    for dataset in datasets:
        others = [
            f"{name} {' / '.join('-' if value is None else f'{value:g}' for value in of[dataset])}"
            for name, of in published.items()
            if name not in methods and dataset in of and name in paper.OTHER_PROGRAMS
        ]
        if others:
            metrics = " / ".join(METRICS[metric].title for metric in SCORES)
            yield f"Published for {TITLES[dataset]}, as {metrics}: {'; '.join(others)}."


def _technique_labels(name: str) -> tuple[str, ...]:
    method, techniques = TECHNIQUES[name]
    is_true = method.disparity == "true"
    return tuple("✓" if on else "" for on in (is_true, not is_true, *techniques))


def _caption(table: str, name: str) -> str:
    """A method on a picture. Letters are those of Fig. 5: G ground-truth or P pseudo disparity, then A, S and D."""
    if table != "techniques":
        return name
    method, techniques = TECHNIQUES[name]
    used = "".join(letter for letter, on in zip("ASD", techniques, strict=True) if on)
    return f"{'G' if method.disparity == 'true' else 'P'} {used}".strip()
