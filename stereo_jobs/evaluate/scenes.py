"""Writes scenes with truth as manifests, so that an evaluation is a job like any other."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stereo_jobs.data.images import IMAGE_SUFFIXES, encode_disparity, encode_png
from stereo_jobs.data.storage import AlreadyExistsError, Storage
from stereo_jobs.errors import ManifestError
from stereo_jobs.evaluate.datasets import Dataset, DatasetError, Frame, PreparedScene, Problem
from stereo_jobs.spec import StorageSpec
from stereo_jobs.toyscapes.manifest import Mode, write_manifest
from stereo_jobs.toyscapes.scenes import Level

COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("mask", pa.binary()),
        ("disparity", pa.binary()),
        ("given_right", pa.binary()),
        ("true_right", pa.binary()),
        ("true_disparity", pa.binary()),
        ("level", pa.string()),
    ]
)
_GROUP_ROWS = 32


@dataclass(frozen=True)
class Manifests:
    """The manifests of one data set, with the inputs of one kind of method.

    Attributes:
        first: URIs of the manifests that slow methods run on.
        all: URIs of the manifests of all scenes.
        problems: scenes that could not be used.
    """

    first: tuple[str, ...]
    all: tuple[str, ...]
    problems: tuple[Problem, ...]


def write_manifests(
    storage: Storage,
    dataset: Dataset,
    *,
    size: int,
    slow_scenes: int,
    frame: Frame = "crop",
    with_disparity: bool = True,
    given: tuple[str, Path] | None = None,
    masked: float = 0.0,
) -> Manifests:
    """Write the scenes below `<name>/scenes/`. If they are there already, nothing is read or rendered.

    Args:
        storage: the storage of the evaluation.
        dataset: the data set.
        size: width and height of the images in pixels.
        slow_scenes: number of scenes that slow methods run on.
        frame: how a scene is brought to its size; `photo` writes the right views alone.
        with_disparity: whether methods are given the true disparity; otherwise they estimate their own.
        given: name and folder of right views that another program made; files are named by scene id.
        masked: share of the width of a `photo`, at its right edge, that a mask covers; 0: there is no mask.

    Raises:
        DatasetError: the folder holds other scenes, or no scene can be used.
    """
    inputs = f"given-{given[0]}" if given else "true" if with_disparity else "estimated"
    photo = f"masked-{masked * 100:.0f}" if masked else "photo"
    kind = {"crop": inputs, "photo": photo}.get(frame, f"{frame}-{inputs}")
    rights = _listing(given[1], dataset.ids) if given else {}
    files = [f"{path.name} {path.stat().st_size}" for path in rights.values()]
    identity = [*dataset.identity, str(size), str(slow_scenes), *files]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:8]
    folder = f"{dataset.name}/scenes/{kind}"
    refuse_others(storage, folder, digest)
    wanted = {"disparity": with_disparity, "given_right": given, "mask": masked}
    columns = [name for name in COLUMNS.names if wanted.get(name, True)]
    if frame == "photo":
        columns = [name for name in columns if name in ("id", "image", "mask")]
    row_of = partial(_row, rights=rights, masked=masked)
    uris: list[tuple[str, ...]] = []
    problems: list[Problem] = []
    for part, ids in (("first", dataset.ids[:slow_scenes]), ("rest", dataset.ids[slow_scenes:])):
        name = f"{folder}/{part}-{digest}"
        if not storage.exists(f"{name}.json"):
            _write(storage, name, dataset.prepared(ids, size, frame), columns, row_of)
        facts = json.loads(storage.read(f"{name}.json"))
        problems += [Problem(*problem) for problem in facts["problems"]]
        uris.append((storage.locate(f"{name}.parquet"),) if facts["scenes"] else ())
    if not any(uris):
        raise DatasetError(
            f"{dataset.name}: no scene can be used; the first: {problems[0].id}: {problems[0].message}"
            if problems
            else f"{dataset.name}: has no scenes"
        )
    return Manifests(uris[0], uris[0] + uris[1], tuple(problems))


def write_inputs(
    storage: Storage,
    settings: StorageSpec,
    name: str,
    *,
    rows: int,
    mode: Mode,
    level: Level,
    size: int,
    with_prompt: bool = True,
) -> str:
    """Write a manifest of the first held-out ToyScapes of a level, unless it exists; returns its URI.

    Args:
        storage: the storage of the evaluation.
        settings: access settings of that storage.
        name: name of the manifest below the evaluation.
        rows: number of scenes.
        mode: the mode whose inputs are written; photos come with their true disparity.
        level: level of the scenes.
        size: width and height of the images in pixels.
        with_prompt: whether the scenes come with their captions; else with empty prompts.
    """
    target = storage.locate(name)
    if not storage.exists(name):
        with suppress(ManifestError):  # another run has written it meanwhile
            write_manifest(
                target,
                settings,
                rows=rows,
                mode=mode,
                level=level,
                size=(size, size),
                with_disparity=mode == "image",
                with_prompt=with_prompt,
            )
    return target


def _write(
    storage: Storage,
    name: str,
    scenes: Iterable[PreparedScene | Problem],
    columns: list[str],
    row_of: Callable[[PreparedScene], dict[str, Any]],
) -> None:
    """Write one manifest, then the JSON file that marks it as complete."""
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for scene in scenes:
        if isinstance(scene, Problem):
            problems.append(scene)
        else:
            rows.append(row_of(scene))
    if rows:
        schema = pa.schema([COLUMNS.field(column) for column in columns])
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd", row_group_size=_GROUP_ROWS)
        with suppress(AlreadyExistsError):  # an interrupted run has written it
            storage.create(f"{name}.parquet", buffer.getvalue())
    storage.replace(f"{name}.json", json.dumps({"scenes": len(rows), "problems": problems}).encode())


def _row(scene: PreparedScene, rights: dict[str, Path], masked: float) -> dict[str, Any]:
    height, width = scene.left.shape[:2]
    mask = np.zeros((height, width), np.bool_)
    mask[:, round(width * (1 - masked)) :] = True
    return {
        "id": scene.id,
        "image": encode_png(scene.left),
        "mask": encode_png(mask),
        "disparity": encode_disparity(scene.disparity),
        "given_right": rights[scene.id].read_bytes() if scene.id in rights else None,
        "true_right": encode_png(scene.right),
        "true_disparity": encode_disparity(scene.true_disparity),
        "level": scene.level,
    }


def _listing(folder: Path, ids: Iterable[str]) -> dict[str, Path]:
    """The images of a folder by the scene id that names each. Raises DatasetError for a folder without any."""
    found = {i: path for i in ids for path in (folder / f"{i}{suffix}" for suffix in IMAGE_SUFFIXES) if path.is_file()}
    if not found:
        raise DatasetError(f"{folder}: no image in it is named by the id of a scene, such as {next(iter(ids))}.png")
    return found


def refuse_others(storage: Storage, folder: str, digest: str) -> None:
    """Raise DatasetError if a folder of scenes holds a file whose name does not end in `-<digest>`."""
    for info in storage.list(f"{folder}/"):
        if f"-{digest}." not in info.key:
            raise DatasetError(
                f"{storage.locate(info.key)}: this evaluation was begun with other scenes, --size or --slow-scenes; "
                "choose another output"
            )
