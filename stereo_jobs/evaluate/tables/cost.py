"""What a pair costs, by mode and method (the paper's Table 3)."""

import math
import statistics
from collections.abc import Sequence
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
_LEFT_ALONE = "leave_blank"
"""The method that costs nothing beyond the left view."""


def cost_table(source: ExperimentRunner, methods: Sequence[Method], *, pairs: int, size: int) -> Table:
    """Seconds and U-Net evaluations a pair, medians; one pair at a time, as the paper measures.

    Args:
        source: runs the cases.
        methods: rows.
        pairs: of each cell.
        size: of the pictures.
    """
    table = Table(
        "cost",
        "Cost of a pair by mode, and in brackets what goes beyond the left view (`leave_blank`)",
        ("method",),
        [(method.name,) for method in methods],
        [(mode, metric) for mode in MODES for metric in ("seconds", "evaluations")],
    )
    for m, mode in enumerate(MODES):
        try:
            cases = [_case(source, mode, method, pairs=pairs, size=size) for method in methods]
        except ModelError as error:
            source.problems[f"cost/{mode}"] = [Problem(mode, str(error))]
            continue
        found = {case.method.name: source.scores(case) for case in cases}
        for i, method in enumerate(methods):
            for j, metric in enumerate(("seconds", "evaluations")):
                spent, left = _median(found[method.name], metric), _median(found.get(_LEFT_ALONE, {}), metric)
                if spent is None:
                    continue
                beyond = None if left is None or method.name == _LEFT_ALONE else max(0.0, spent - left)
                theirs = paper.SECONDS.get(method.name, {}).get(mode) if metric == "seconds" else None
                table.cells[i, 2 * m + j] = Figure(spent, len(found[method.name]), beyond=beyond, paper=theirs)
    table.notes.append("In square brackets the paper's seconds, on one RTX 3090 at 512 x 512.")
    table.notes.extend(counts(table))
    return table


def _case(source: ExperimentRunner, mode: Mode, method: Method, *, pairs: int, size: int) -> Case:
    key, manifest = f"cost/{mode}/{slug(method.name)}", f"cost/scenes/{mode}-{pairs}-{size}.parquet"
    recipe = {"mode": mode, "size": {"width": size, "height": size}}
    spec = source.spec(key, [source.storage.locate(manifest)], recipe, {**method.switches, "geometry": "relative"})
    single = spec.runtime.model_copy(update={"batch_size": 1})
    resolve_recipe(spec.recipe)  # a model that cannot be used is told before anything is rendered
    write_inputs(source.storage, source.settings, manifest, rows=pairs, mode=mode, level="structured", size=size)
    return Case(key, "cost", method, spec.model_copy(update={"runtime": single}))


def _median(rows: Rows, metric: str) -> float | None:
    known = [value for value in values(rows, metric).values() if math.isfinite(value)]
    return statistics.median(known) if known else None
