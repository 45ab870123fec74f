"""Runs cases as jobs and reads their scores. A case is one method on one data set under one protocol."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stereo_jobs.data.images import decode_rgb
from stereo_jobs.data.manifest_files import split_uri
from stereo_jobs.data.maps import decode_disparity_px, decode_mask
from stereo_jobs.data.shards import read_table
from stereo_jobs.data.storage import NotFoundError, open_storage
from stereo_jobs.evaluate.cycle import cycle_scene
from stereo_jobs.evaluate.datasets import Dataset, DatasetError, Problem, TruthScene
from stereo_jobs.evaluate.details import disparity_rmse, matched, score_details, score_masked
from stereo_jobs.evaluate.methods import Method
from stereo_jobs.evaluate.protocols import CYCLE_SCALE, Protocol
from stereo_jobs.evaluate.scenes import Manifests, write_manifests
from stereo_jobs.pixels import Image
from stereo_jobs.records import QUALITY_PREFIX
from stereo_jobs.report.columns import POSITION, SHARD, read_errors, read_rows, read_scalars
from stereo_jobs.spec import JobSpec
from stereo_jobs.spec_reading import parse_spec

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
        manifests = self._write_scenes(dataset, size, protocol, method)
        self.problems[dataset.name] = list(manifests.problems)
        recipe: dict[str, Any] = {"mode": "image", "size": {"width": size, "height": size}}
        if protocol.scales:
            recipe["variants"] = {"seeds": 1, "scale_percent": list(protocol.scales)}
        switches = {**method.switches, "geometry": protocol.geometry}
        uris = manifests.first if method.slow else manifests.all
        key = case_key(dataset, protocol, method)
        return Case(key, dataset.name, method, self.spec(key, uris, recipe, switches))

    def _write_scenes(self, dataset: Dataset, size: int, protocol: Protocol, method: Method) -> Manifests:
        """Manifests with the inputs of a method; written once for all methods with the same inputs."""
        with_disparity = protocol.gives_disparity(method)
        kind = (dataset.name, protocol.frame, str(with_disparity), method.folder or "")
        if kind not in self._manifests:
            self._manifests[kind] = write_manifests(
                self.storage,
                self._cycled(dataset, size) if protocol.frame == "cycle" else dataset,
                size=size,
                slow_scenes=self.slow_scenes,
                frame=protocol.frame,
                with_disparity=with_disparity,
                given=(slug(method.name), Path(method.folder)) if method.folder else None,
            )
        return self._manifests[kind]

    def _cycled(self, dataset: Dataset, size: int) -> Dataset:
        """The scenes that protocol `cycle` makes of photos; their job is run when the first of them is read."""

        def read(name: str) -> TruthScene:
            case = self.photo_case(dataset, size)
            row = self.scores(case).get(name)
            if row is None:
                said = {problem.id: problem.message for problem in self.problems[case.key]}
                raise DatasetError(said.get(name, "no disparity was estimated for it"))
            place = [(row[SHARD], row[POSITION])]
            [pair] = read_rows(open_storage(case.spec.output, self.settings), place, ("left", "disparity"))
            # The second view lies on the other side, so that the label is negative.
            disparity = -decode_disparity_px(pair["disparity"]["bytes"])
            return cycle_scene(name, decode(pair["left"]["bytes"]), disparity)

        return replace(dataset, read=read)

    def photo_case(self, dataset: Dataset, size: int) -> Case:
        """The job that finds the disparity of photos for protocol `cycle`, and shows them as right views."""
        manifests = write_manifests(self.storage, dataset, size=size, slow_scenes=self.slow_scenes, frame="photo")
        recipe = {"mode": "image", "size": {"width": size, "height": size}, "scale_percent": -CYCLE_SCALE}
        key = photo_case_key(dataset)
        method = Method(key, {"right_view": "stretch", "geometry": "relative"}, "estimated")
        return Case(key, dataset.name, method, self.spec(key, manifests.all, recipe, method.switches))

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
        """The scores of a case; runs its job first. Failed scenes are added to `problems`.

        Where a scene has pairs at several scales, the best one counts.
        """
        if case.key not in self._rows:
            self.begin(case.key)
            self.run(case.spec)
            storage = open_storage(case.spec.output, self.settings)
            rows = {row["id"]: _scores(row) for row in read_scalars(storage).to_pylist()}
            failed = [Problem(error.id, error.error_message) for error in read_errors(storage)]
            self.problems[case.key] = [problem for problem in failed if problem.id not in rows]
            several = bool(case.spec.recipe.variants.scale_percent)
            self._rows[case.key] = self._at_best_scale(case, rows) if several else rows
        return self._rows[case.key]

    def _at_best_scale(self, case: Case, rows: Rows) -> Rows:
        """Choose for each scene the pair whose matched disparity is nearest to the true pair's, under the scene's id.

        The distances are kept in a file, which missing pairs are added to.
        """
        name = f"scales/{case.key}.json"
        rmse = self._kept(name)
        missing = [pair for pair in rows if pair not in rmse]
        if missing:
            truths = self.truths(case, sorted({_scene_of(pair) for pair in missing}))
            for scene, pairs in itertools.groupby(missing, _scene_of):
                true = matched(decode(truths[scene]["image"]), decode(truths[scene]["true_right"]))
                for pair, left, right in self._views(case, list(pairs), rows):
                    rmse[pair] = disparity_rmse(matched(left, right), true)
            self.storage.replace(name, json.dumps(rmse).encode())
        best: dict[str, str] = {}
        for pair in sorted(rows, key=lambda pair: (rmse[pair], rows[pair]["scale_percent"])):
            best.setdefault(_scene_of(pair), pair)
        return {scene: rows[pair] for scene, pair in best.items()}

    def details(self, case: Case) -> Rows:
        """`score_details` of each pair of a case, by scene."""

        def scored(left: Image, right: Image, truth: Mapping[str, Any]) -> dict[str, float]:
            return score_details(left, right, decode(truth["true_right"]), decode_disparity_px(truth["true_disparity"]))

        return self._scored("details", case, scored, ("id", "true_right", "true_disparity"))

    def masked(self, case: Case) -> Rows:
        """`score_masked` of the filled photos of a case of mode inpaint, by scene."""

        def scored(left: Image, right: Image, truth: Mapping[str, Any]) -> dict[str, float]:
            return score_masked(left, decode(truth["image"]), decode_mask(truth["mask"]))

        return self._scored("masked", case, scored, ("id", "image", "mask"))

    def _scored(
        self,
        folder: str,
        case: Case,
        score: Callable[[Image, Image, Mapping[str, Any]], dict[str, float]],
        columns: Sequence[str],
    ) -> Rows:
        """Scores of each pair of a case, by scene; read from a file, which missing pairs are added to.

        Args:
            folder: folder of the file.
            case: the case.
            score: scores a left and a right view by their manifest row.
            columns: columns of that row.
        """
        name = f"{folder}/{case.key}.json"
        known: Rows = self._kept(name)
        missing = [scene for scene in self.scores(case) if scene not in known]
        if missing:
            truths = self.truths(case, missing, columns)
            for scene, left, right in self.pictures(case, missing):
                known[scene] = score(left, right, truths[scene])
            self.storage.replace(name, json.dumps(known).encode())
        return known

    def _kept(self, name: str) -> dict[str, Any]:
        """What a JSON file of the evaluation holds; nothing where there is none yet."""
        with suppress(NotFoundError):
            kept: dict[str, Any] = json.loads(self.storage.read(name))
            return kept
        return {}

    def pictures(self, case: Case, scenes: Sequence[str]) -> Iterator[tuple[str, Image, Image]]:
        """Scene id, left and right view of the chosen pairs of a case."""
        yield from self._views(case, scenes, self.scores(case))

    def _views(self, case: Case, names: Sequence[str], rows: Rows) -> Iterator[tuple[str, Image, Image]]:
        """Name, left and right view of pairs, which `rows` says the places of."""
        places = [(rows[name][SHARD], rows[name][POSITION]) for name in names]
        pairs = read_rows(open_storage(case.spec.output, self.settings), places, ("left", "right"))
        for name, pair in zip(names, pairs, strict=True):
            yield name, decode(pair["left"]["bytes"]), decode(pair["right"]["bytes"])

    def truths(
        self, case: Case, scenes: Sequence[str], columns: Sequence[str] = ("id", "image", "true_right")
    ) -> dict[str, dict[str, Any]]:
        """Manifest rows of scenes, by id; images and maps are encoded."""
        found: dict[str, dict[str, Any]] = {}
        for uri in case.spec.manifests:
            storage, name = split_uri(uri, self.settings)
            table = read_table(storage.read(name), list(columns))
            rows = table.filter(pc.is_in(table["id"], pa.array(scenes))).to_pylist()
            found |= {row["id"]: row for row in rows}
        return found


def decode(data: bytes) -> Image:
    """Decode an encoded image to H,W,3 uint8."""
    return decode_rgb(data, _MAX_PIXELS)


def case_key(dataset: Dataset, protocol: Protocol, method: Method) -> str:
    """Folder of the case of a method on a data set, below the evaluation."""
    return f"{dataset.name}/{protocol.name}/{slug(method.name)}"


def photo_case_key(dataset: Dataset) -> str:
    """Folder of the job that finds the disparity of photos, below the evaluation."""
    return f"{dataset.name}/cycle-disparity"


def _scene_of(pair: str) -> str:
    """The id of the scene that a pair `<scene>~<k>` shows."""
    return pair.rpartition("~")[0]


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
        "scale_percent": row["scale_percent"],
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
