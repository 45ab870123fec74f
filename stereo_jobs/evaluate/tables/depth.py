"""The table of depth mode: the effect of its switches (the paper's Fig. 7).

Left views are generated in this mode, so there is no true right view: the metrics are those without truth.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stereo_jobs.errors import ModelError
from stereo_jobs.evaluate.datasets import Problem
from stereo_jobs.evaluate.experiments import Case, ExperimentRunner, Rows, slug
from stereo_jobs.evaluate.methods import Method
from stereo_jobs.evaluate.scenes import refuse_others, write_inputs
from stereo_jobs.evaluate.tables.compare import paired_table
from stereo_jobs.evaluate.tables.formats import Table
from stereo_jobs.toyscapes.scenes import Level

_BEFORE_COMPOSITE = ("bad_2", "epe", "backwarp_lpips")
_FINISHED = ("siou", "seam", "hole_sharpness", "depth_rank", "accepted")
METRICS = (*(f"raw_{name}" for name in _BEFORE_COMPOSITE), *_FINISHED, "evaluations")


def depth_table(runner: ExperimentRunner, methods: Sequence[Method], *, scenes: int, size: int) -> Table:
    """Means of `qc_*` over held-out ToyScapes in mode depth, with intervals of the paired differences to `best`.

    Args:
        runner: runs the cases.
        methods: one method for each row.
        scenes: number of scenes, alternately plain and structured.
        size: width and height of the images in pixels.

    Raises:
        DatasetError: the output has depth maps of other scenes.
    """
    uris = _scenes(runner, scenes, size)
    cases = [_case(runner, uris, method, size) for method in methods]
    found: dict[str, Rows] = {case.key: {} for case in cases}
    try:
        for case in cases:
            composite = case.spec.recipe.method.composite
            found[case.key] = {scene: _with_raw(row, composite) for scene, row in runner.scores(case).items()}
    except ModelError as error:
        runner.problems["depth"] = [Problem("depth", str(error))]
    return paired_table("depth", "Depth mode, toyscapes: metrics without truth", cases, found, METRICS)


def _scenes(runner: ExperimentRunner, scenes: int, size: int) -> list[str]:
    """URIs of manifests with depth maps and prompts, one for each level."""
    which = f"{scenes}-{size}"
    refuse_others(runner.storage, "depth/scenes", which)
    rows: dict[Level, int] = {"plain": (scenes + 1) // 2, "structured": scenes // 2}
    return [
        write_inputs(
            runner.storage,
            runner.settings,
            f"depth/scenes/{level}-{which}.parquet",
            rows=count,
            mode="depth",
            level=level,
            size=size,
        )
        for level, count in rows.items()
        if count
    ]


def case_key(method: Method) -> str:
    """Folder of the case of a method in mode depth, below the evaluation."""
    return f"depth/{slug(method.name)}"


def _case(runner: ExperimentRunner, uris: Sequence[str], method: Method, size: int) -> Case:
    recipe = {
        "mode": "depth",
        "size": {"width": size, "height": size},
        "quality": {"enabled": True, "drop_rejected": False},  # the share of accepted pairs counts rejected ones, too
    }
    key = case_key(method)
    return Case(key, "toyscapes", method, runner.spec(key, uris, recipe, {**method.switches, "geometry": "relative"}))


def _with_raw(row: Mapping[str, Any], composite: bool) -> dict[str, Any]:
    """Scores of a pair, with `raw_*` in any case: without a composite, the finished right view is the raw one."""
    raw = {} if composite else {f"raw_{name}": row[name] for name in _BEFORE_COMPOSITE}
    return {**row, **raw}
