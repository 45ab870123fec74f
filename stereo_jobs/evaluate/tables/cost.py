"""The table of costs: seconds and U-Net evaluations of a pair by mode and method (the paper's Table 3)."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import get_args

from stereo_jobs.errors import ModelError
from stereo_jobs.evaluate.datasets import Problem
from stereo_jobs.evaluate.experiments import Case, ExperimentRunner, Rows, slug, values
from stereo_jobs.evaluate.methods import Method
from stereo_jobs.evaluate.scenes import write_inputs
from stereo_jobs.evaluate.tables import paper
from stereo_jobs.evaluate.tables.formats import Figure, Table, counts
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.toyscapes.manifest import Mode

MODES: tuple[Mode, ...] = get_args(Mode)
_METRICS = ("seconds", "evaluations")
_LEFT_ALONE = "leave_blank"
"""A method that costs next to nothing beyond the left view; its cost is subtracted from that of the others."""


def cost_table(runner: ExperimentRunner, methods: Sequence[Method], *, pairs: int, size: int) -> Table:
    """Median seconds and U-Net evaluations of a pair, made one at a time as in the paper.

    Args:
        runner: runs the cases.
        methods: one method for each row.
        pairs: number of pairs for each cell.
        size: width and height of the images in pixels.
    """
    table = Table(
        "cost",
        "Cost of a pair by mode, and in brackets what goes beyond the left view (`leave_blank`)",
        ("method",),
        [(method.name,) for method in methods],
        [(mode, metric) for mode in MODES for metric in _METRICS],
    )
    for m, mode in enumerate(MODES):
        try:
            # Only a photo can do without a prompt.
            those = [method for method in methods if method.prompts or mode == "image"]
            cases = [_case(runner, mode, method, pairs=pairs, size=size) for method in those]
        except ModelError as error:
            runner.problems[f"cost/{mode}"] = [Problem(mode, str(error))]
            continue
        found = {case.method.name: runner.scores(case) for case in cases}
        for i, method in enumerate(methods):
            for j, metric in enumerate(_METRICS):
                cell = _figure(found, method.name, mode, metric)
                if cell:
                    table.cells[i, len(_METRICS) * m + j] = cell
    table.notes.append("In square brackets the paper's seconds, on one RTX 3090 at 512 x 512.")
    table.notes.extend(counts(table))
    return table


def case_key(mode: Mode, method: Method) -> str:
    """Folder of the case of a method in a mode, below the evaluation."""
    return f"cost/{mode}/{slug(method.name)}"


def _case(runner: ExperimentRunner, mode: Mode, method: Method, *, pairs: int, size: int) -> Case:
    key, inputs = case_key(mode, method), f"{mode}-{pairs}-{size}" + ("" if method.prompts else "-empty-prompts")
    manifest = f"cost/scenes/{inputs}.parquet"
    recipe = {"mode": mode, "size": {"width": size, "height": size}}
    spec = runner.spec(key, [runner.storage.locate(manifest)], recipe, {**method.switches, "geometry": "relative"})
    single = spec.runtime.model_copy(update={"batch_size": 1})
    resolve_recipe(spec.recipe)  # reports a model that cannot be used before anything is rendered
    write_inputs(
        runner.storage,
        runner.settings,
        manifest,
        rows=pairs,
        mode=mode,
        level="structured",
        size=size,
        with_prompt=method.prompts,
    )
    return Case(key, "cost", method, spec.model_copy(update={"runtime": single}))


def _figure(found: Mapping[str, Rows], method: str, mode: Mode, metric: str) -> Figure | None:
    """The cost of a method in a mode, from the scores of all methods in it; None without any score."""
    spent, left = _median(found.get(method, {}), metric), _median(found.get(_LEFT_ALONE, {}), metric)
    if spent is None:
        return None
    beyond = None if left is None or method == _LEFT_ALONE else max(0.0, spent - left)
    theirs = paper.SECONDS.get(method, {}).get(mode) if metric == "seconds" else None
    return Figure(spent, len(found[method]), beyond=beyond, paper=theirs)


def _median(rows: Rows, metric: str) -> float | None:
    known = [value for value in values(rows, metric).values() if math.isfinite(value)]
    return statistics.median(known) if known else None
