"""Runs cases as jobs and reads their scores. A case is one method on one data set under one protocol."""

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
from stereo_jobs.data.manifest_files import split_uri
from stereo_jobs.data.maps import decode_disparity_px
from stereo_jobs.data.shards import read_table
from stereo_jobs.data.storage import NotFoundError, open_storage
from stereo_jobs.evaluate.datasets import Dataset, Problem
from stereo_jobs.evaluate.details import score_details
from stereo_jobs.evaluate.methods import GEOMETRY, Method, Protocol
from stereo_jobs.evaluate.scenes import Manifests, write_manifests
from stereo_jobs.pixels import Image
from stereo_jobs.records import QUALITY_PREFIX
from stereo_jobs.report.columns import POSITION, SHARD, read_errors, read_rows, read_scalars
from stereo_jobs.spec import JobSpec, parse_spec

RunJob = Callable[[JobSpec], object]
Rows = dict[str, dict[str, Any]]
"""Scores of a case by scene, under the names of `tables.formats.METRICS`; with `level`, `shard` and `position`."""

_MAX_PIXELS = 200_000_000


@dataclass(frozen=True)
class Case:
    """One job of an evaluation.

    Attributes:
        key: its folder below the evaluation, which also identifies it.
        dataset: name of the data set.
        method: the method that is measured.
        spec: spec of the job.
    """

    key: str
    dataset: str
    method: Method
    spec: JobSpec


class ExperimentRunner:
    """Makes cases, runs each of them once, and reads their scores.

    Args:
        output: folder or s3:// prefix of the evaluation.
        base: parts of a job spec that apply to all cases, as plain data.
        slow_scenes: number of scenes that slow methods run on.
        run: runs one job.
        depth_model: depth-conditioned checkpoint for cases of mode depth; None for that of the base.
        begin: called with the key of each case before its job is run.

    Attributes:
        storage: the storage of the evaluation.
        settings: access settings of that storage.
        problems: scenes without a score, by data set or case.
    """

    def __init__(
        self,
        output: str,
        base: Mapping[str, Any],
        slow_scenes: int,
        run: RunJob,
        *,
        depth_model: str | None = None,
        begin: Callable[[str], None] = lambda key: None,
    ) -> None:
        self.base = {key: value for key, value in base.items() if key in ("recipe", "runtime")}
        # Parsing checks the base before anything is rendered or read.
        self.settings = parse_spec({**self.base, "manifest": output, "output": output}).runtime.storage
        self.storage = open_storage(output, self.settings)
        self.slow_scenes = slow_scenes
        self.run = run
        self.depth_model = depth_model
        self.begin = begin
        self.problems: dict[str, list[Problem]] = {}
        self._rows: dict[str, Rows] = {}
        self._manifests: dict[tuple[str, ...], Manifests] = {}

    def case(self, dataset: Dataset, size: int, protocol: Protocol, method: Method) -> Case:
        """The case of a method on a data set, whose scenes are written as manifests first."""
        manifests = self._write_scenes(dataset, size, method)
        self.problems[dataset.name] = list(manifests.problems)
        recipe = {"mode": "image", "size": {"width": size, "height": size}}
        switches = {**method.switches, "geometry": GEOMETRY[protocol]}
        uris = manifests.first if method.slow else manifests.all
        key = case_key(dataset, protocol, method)
        return Case(key, dataset.name, method, self.spec(key, uris, recipe, switches))

    def _write_scenes(self, dataset: Dataset, size: int, method: Method) -> Manifests:
        """Manifests with the inputs of a method; written once for all methods with the same inputs."""
        kind = (dataset.name, method.disparity, method.folder or "")
        if kind not in self._manifests:
            self._manifests[kind] = write_manifests(
                self.storage,
                dataset,
                size=size,
                slow_scenes=self.slow_scenes,
                with_disparity=method.disparity == "true",
                given=(slug(method.name), Path(method.folder)) if method.folder else None,
            )
        return self._manifests[kind]

    def spec(
        self, key: str, manifests: Sequence[str], recipe: Mapping[str, Any], switches: Mapping[str, Any]
    ) -> JobSpec:
        """The spec of a case's job.

        Fields of the user's base override our defaults, and fields that define the case override both.

        Args:
            key: folder of the case.
            manifests: URIs of its manifests.
            recipe: fields of the recipe that define the case; with `mode`.
            switches: fields of `recipe.method`.
        """
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
        """The scores of a case; runs its job first. Failed scenes are added to `problems`."""
        if case.key not in self._rows:
            self.begin(case.key)
            self.run(case.spec)
            storage = open_storage(case.spec.output, self.settings)
            rows = {row["id"]: _scores(row) for row in read_scalars(storage).to_pylist()}
            self._rows[case.key] = rows
            failed = [Problem(error.id, error.error_message) for error in read_errors(storage)]
            self.problems[case.key] = [problem for problem in failed if problem.id not in rows]
        return self._rows[case.key]

    def details(self, case: Case) -> dict[str, dict[str, float]]:
        """`score_details` of each pair of a case, by scene; read from a file, which missing pairs are added to."""
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
        """Scene id, left and right view of the chosen pairs of a case."""
        rows = self.scores(case)
        places = [(rows[scene][SHARD], rows[scene][POSITION]) for scene in scenes]
        for pair in read_rows(open_storage(case.spec.output, self.settings), places, ("id", "left", "right")):
            yield pair["id"], decode(pair["left"]["bytes"]), decode(pair["right"]["bytes"])

    def truths(self, case: Case, scenes: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Manifest rows of scenes, by id: `image`, `true_right` and `true_disparity`, each encoded."""
        found: dict[str, dict[str, Any]] = {}
        for uri in case.spec.manifests:
            storage, name = split_uri(uri, self.settings)
            columns = ["id", "image", "true_right", "true_disparity"]
            table = read_table(storage.read(name), columns)
            rows = table.filter(pc.is_in(table["id"], pa.array(scenes))).to_pylist()
            found |= {row["id"]: row for row in rows}
        return found


def decode(data: bytes) -> Image:
    """Decode an encoded image to H,W,3 uint8."""
    return decode_rgb(data, _MAX_PIXELS)


def case_key(dataset: Dataset, protocol: Protocol, method: Method) -> str:
    """Folder of the case of a method on a data set, below the evaluation."""
    return f"{dataset.name}/{protocol}/{slug(method.name)}"


def slug(name: str) -> str:
    """A name turned into one that is safe for files and folders."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-")


def values(rows: Rows, metric: str) -> dict[str, float]:
    """One metric by scene; NaN for a pair without it."""
    return {scene: math.nan if row.get(metric) is None else float(row[metric]) for scene, row in rows.items()}


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a pair under the names that tables use."""
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
    """Merge nested mappings; the second overrides the first."""
    both = {**ours, **theirs}
    for key in ours.keys() & theirs.keys():
        if isinstance(ours[key], Mapping) and isinstance(theirs[key], Mapping):
            both[key] = _merged(ours[key], theirs[key])
    return both
