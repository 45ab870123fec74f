"""What the switches of depth mode do (the paper's Fig. 7). Its left views are made, so no truth is: metrics without."""

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
METRICS = (*(f"raw_{name}" for name in _BEFORE_COMPOSITE), *_FINISHED, "evaluations", "seconds")


def depth_table(source: ExperimentRunner, methods: Sequence[Method], *, scenes: int, size: int) -> Table:
    """Means of `qc_*` over held-out ToyScapes in mode depth, with intervals of the paired differences to `best`.

    Args:
        source: runs the cases.
        methods: rows.
        scenes: how many, plain and structured in turn.
        size: of the pictures.

    Raises:
        DatasetError: the output has depth maps of other scenes.
    """
    uris = _scenes(source, scenes, size)
    cases = [_case(source, uris, method, size) for method in methods]
    found: dict[str, Rows] = {case.key: {} for case in cases}
    try:
        for case in cases:
            composite = case.spec.recipe.method.composite
            found[case.key] = {scene: _with_raw(row, composite) for scene, row in source.scores(case).items()}
    except ModelError as error:
        source.problems["depth"] = [Problem("depth", str(error))]
    return paired_table("depth", "Depth mode, toyscapes: metrics without truth", cases, found, METRICS)


def _scenes(source: ExperimentRunner, scenes: int, size: int) -> list[str]:
    """Depth maps and prompts, a manifest of each level."""
    which = f"{scenes}-{size}"
    refuse_others(source.storage, "depth/scenes", which)
    rows: dict[Level, int] = {"plain": (scenes + 1) // 2, "structured": scenes // 2}
    return [
        write_inputs(
            source.storage,
            source.settings,
            f"depth/scenes/{level}-{which}.parquet",
            rows=count,
            mode="depth",
            level=level,
            size=size,
        )
        for level, count in rows.items()
        if count
    ]


def _case(source: ExperimentRunner, uris: Sequence[str], method: Method, size: int) -> Case:
    recipe = {
        "mode": "depth",
        "size": {"width": size, "height": size},
        "quality": {"enabled": True, "drop_rejected": False},  # the share of accepted pairs needs the others
    }
    key = f"depth/{slug(method.name)}"
    return Case(key, "toyscapes", method, source.spec(key, uris, recipe, {**method.switches, "geometry": "relative"}))


def _with_raw(row: Mapping[str, Any], composite: bool) -> dict[str, Any]:
    """A pair's scores; without a composite the finished right view is the raw one, which has no columns of its own."""
    raw = {} if composite else {f"raw_{name}": row[name] for name in _BEFORE_COMPOSITE}
    return {**row, **raw}
