"""A case: one method on one data set under one protocol, run as a job and read back as scores."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stereo_jobs.data.images import decode_rgb
from stereo_jobs.data.manifest import split_uri
from stereo_jobs.data.maps import decode_disparity_px
from stereo_jobs.data.shards import read_table
from stereo_jobs.data.storage import NotFoundError, open_storage
from stereo_jobs.evaluate.datasets import Dataset, Problem
from stereo_jobs.evaluate.methods import GEOMETRY, Method, Protocol
from stereo_jobs.evaluate.scenes import Manifests, write_manifests
from stereo_jobs.evaluate.scoring import score_details
from stereo_jobs.pixels import Image
from stereo_jobs.records import QUALITY_PREFIX
from stereo_jobs.report.columns import POSITION, SHARD, read_errors, read_rows, read_scalars
from stereo_jobs.spec import JobSpec, parse_spec

Run = Callable[[JobSpec], object]
Rows = dict[str, dict[str, Any]]
"""Scores of a case by scene, under the names of `tables.METRICS`; with `level`, `shard` and `position`."""

_MAX_PIXELS = 200_000_000


@dataclass(frozen=True)
class Case:
    """One job of an evaluation.

    Attributes:
        key: its folder below the evaluation, and its identity.
        dataset: name.
        method: what is measured.
        spec: of the job.
    """

    key: str
    dataset: str
    method: Method
    spec: JobSpec


class ExperimentRunner:
    """Makes cases, runs each once, and reads what came out.

    Args:
        output: of the evaluation.
        base: parts of a job spec that hold for all cases, as plain data.
        slow_scenes: how many scenes slow methods see.
        run: runs one job.
        depth_model: depth-conditioned checkpoint for cases of mode depth; None: the one of the base.
    """

    def __init__(
        self, output: str, base: Mapping[str, Any], slow_scenes: int, run: Run, depth_model: str | None = None
    ) -> None:
        self.base = {key: value for key, value in base.items() if key in ("recipe", "runtime")}
        # Checks the base before anything is rendered or read.
        self.settings = parse_spec({**self.base, "manifest": output, "output": output}).runtime.storage
        self.storage = open_storage(output, self.settings)
        self.slow_scenes = slow_scenes
        self.run = run
        self.depth_model = depth_model
        self.problems: dict[str, list[Problem]] = {}
        """Scenes without a score, by data set or case."""
        self._rows: dict[str, Rows] = {}
        self._manifests: dict[tuple[str, ...], Manifests] = {}

    def case(self, dataset: Dataset, size: int, protocol: Protocol, method: Method) -> Case:
        """The case of a method; its scenes are written as manifests."""
        kind = (dataset.name, method.disparity, method.folder or "")
        if kind not in self._manifests:
            given = (slug(method.name), Path(method.folder)) if method.folder else None
            self._manifests[kind] = write_manifests(
                self.storage,
                dataset,
                size=size,
                slow_scenes=self.slow_scenes,
                with_disparity=method.disparity == "true",
                given=given,
            )
        manifests = self._manifests[kind]
        self.problems[dataset.name] = list(manifests.problems)
        recipe = {"mode": "image", "size": {"width": size, "height": size}}
        switches = {**method.switches, "geometry": GEOMETRY[protocol]}
        uris = manifests.first if method.slow else manifests.all
        key = f"{dataset.name}/{protocol}/{slug(method.name)}"
        return Case(key, dataset.name, method, self.spec(key, uris, recipe, switches))

    def spec(
        self, key: str, manifests: Sequence[str], recipe: Mapping[str, Any], switches: Mapping[str, Any]
    ) -> JobSpec:
        """A job: the user's own fields stand over our defaults, and what makes this case over both."""
        defaults = {
            "recipe": {"quality": {"enabled": False}, "scale_percent": 8.0},
            "runtime": {"max_failure_ratio": 1.0, "shard_rows": 16},
        }
        case = {"recipe": {"variants": {"seeds": 1, "scale_percent": []}, **recipe, "method": dict(switches)}}
        if recipe["mode"] == "depth" and self.depth_model:
            case["recipe"]["models"] = {"stable_diffusion": {"path": self.depth_model, "revision": None}}
        merged = _merged(_merged(defaults, self.base), case)
        return parse_spec({**merged, "manifest": list(manifests), "output": self.storage.locate(key)})

    def scores(self, case: Case) -> Rows:
        """A case's scores, after its job has run; what failed goes to `problems`."""
        if case.key not in self._rows:
            self.run(case.spec)
            storage = open_storage(case.spec.output, self.settings)
            rows = {row["id"]: _scores(row) for row in read_scalars(storage).to_pylist()}
            self._rows[case.key] = rows
            failed = [Problem(error.id, error.error_message) for error in read_errors(storage)]
            self.problems[case.key] = [problem for problem in failed if problem.id not in rows]
        return self._rows[case.key]

    def details(self, case: Case) -> dict[str, dict[str, float]]:
        """`score_details` of a case's pairs: from its own file, and what that lacks made now from the images."""
        name = f"details/{case.key}.json"
        known: dict[str, dict[str, float]] = {}
        with suppress(NotFoundError):
            known = json.loads(self.storage.read(name))
        missing = [scene for scene in self.scores(case) if scene not in known]
        if missing:
            truths = self.truths(case, missing)
            for scene, left, right in self.pictures(case, missing):
                true_right, disparity = truths[scene]["true_right"], truths[scene]["true_disparity"]
                known[scene] = score_details(left, right, decode(true_right), decode_disparity_px(disparity))
            self.storage.replace(name, json.dumps(known).encode())
        return known

    def pictures(self, case: Case, scenes: Sequence[str]) -> Iterator[tuple[str, Image, Image]]:
        """Id, left and right view of some of a case's pairs."""
        rows = self.scores(case)
        places = [(rows[scene][SHARD], rows[scene][POSITION]) for scene in scenes]
        for pair in read_rows(open_storage(case.spec.output, self.settings), places, ("id", "left", "right")):
            yield pair["id"], decode(pair["left"]["bytes"]), decode(pair["right"]["bytes"])

    def truths(self, case: Case, scenes: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Inputs and truth of scenes, encoded, by id."""
        found: dict[str, dict[str, Any]] = {}
        for uri in case.spec.manifests:
            storage, name = split_uri(uri, self.settings)
            columns = ["id", "image", "true_right", "true_disparity"]
            table = read_table(storage.read(name), columns)
            rows = table.filter(pc.is_in(table["id"], pa.array(scenes))).to_pylist()
            found |= {row["id"]: row for row in rows}
        return found


def decode(data: bytes) -> Image:
    """An image of ours, H,W,3 uint8."""
    return decode_rgb(data, _MAX_PIXELS)


def slug(name: str) -> str:
    """A name as a folder or file."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-")


def values(rows: Rows, metric: str) -> dict[str, float]:
    """One metric by scene, NaN where a pair has none."""
    return {scene: math.nan if row.get(metric) is None else float(row[metric]) for scene, row in rows.items()}


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair's columns by the names that tables use."""
    return {
        **{
            name.removeprefix(prefix): value
            for prefix in ("true_", QUALITY_PREFIX)
            for name, value in row.items()
            if name.startswith(prefix)
        },
        "accepted": row["accepted"],
        "left_psnr": row["left_psnr"],
        "evaluations": row["unet_evaluations"],
        "seconds": row["run_seconds"],
        "level": row.get("src_level"),
        SHARD: row[SHARD],
        POSITION: row[POSITION],
    }


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second over the first."""
    both = {**ours, **theirs}
    for key in ours.keys() & theirs.keys():
        if isinstance(ours[key], Mapping) and isinstance(theirs[key], Mapping):
            both[key] = _merged(ours[key], theirs[key])
    return both
