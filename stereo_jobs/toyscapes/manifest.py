"""Writes ToyScapes as manifests: the inputs of a mode, and the truth to measure against, as inline images."""

from typing import Any, Literal, get_args

import pyarrow as pa

from stereo_jobs.data.building.publish import publish
from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.errors import ManifestError
from stereo_jobs.spec import StorageSpec
from stereo_jobs.toyscapes.render import ToyScape, render
from stereo_jobs.toyscapes.scenes import Level, Scene, Split, draw_scene

Mode = Literal["text", "depth", "image"]
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_ROWS = 20_000
"""Maximum number of rows: a manifest is built in memory, with up to 100 kB a row."""
_GROUP_ROWS = 200


def write_manifest(
    target: str,
    settings: StorageSpec,
    *,
    rows: int,
    split: Split = "test",
    mode: Mode = "image",
    level: Level | None = None,
    start: int = 0,
    size: tuple[int, int] = (128, 128),
    with_disparity: bool = False,
    with_prompt: bool = True,
) -> None:
    """Write the scenes of seeds `start` to `start + rows - 1` as a manifest.

    Args:
        target: path or s3:// URI of the Parquet file.
        settings: access settings of the storage.
        rows: number of scenes, at most 20,000; write more scenes to several files with different `start`.
        split: split of the scenes; no caption is in both.
        mode: the mode whose inputs are written.
        level: level of the scenes; None for a mix of all.
        start: seed of the first scene.
        size: width and height of the images in pixels.
        with_disparity: whether to give the true disparity to the method, too, in the column `disparity`.
        with_prompt: whether the column `prompt` has the captions; else it is empty.

    Raises:
        ManifestError: too many rows, a disparity for a mode that takes none, or the target exists.
    """
    if not 1 <= rows <= MAX_ROWS:
        raise ManifestError(
            f"rows: must be 1 to {MAX_ROWS}, got {rows}; write several files and tell them apart by --start"
        )
    if with_disparity and mode != "image":
        raise ManifestError(
            f"with-disparity: only mode image takes a disparity, not mode {mode}; leave it out, or use --mode image"
        )
    scenes = (draw_scene(seed, split, level) for seed in range(start, start + rows))
    told = {} if with_prompt else {"prompt": ""}
    table = pa.Table.from_pylist(
        [
            {"id": f"toyscapes-{split}-{level or 'mixed'}-{seed:06d}"} | _row(scene, mode, size, with_disparity) | told
            for seed, scene in enumerate(scenes, start)
        ]
    )
    publish(table, target, settings, _GROUP_ROWS)


def _row(scene: Scene, mode: Mode, size: tuple[int, int], with_disparity: bool) -> dict[str, Any]:
    common = {"prompt": scene.caption, "level": scene.level}
    if mode == "text":
        return common
    view = render(scene, *size)
    if mode == "depth":
        depth = encode_disparity(view.disparity)
        return common | {"depth": depth, "depth_kind": "inverse", "true_disparity": depth}
    return common | {"image": encode_png(view.left)} | _truth(view, with_disparity)


def _truth(view: ToyScape, with_disparity: bool) -> dict[str, bytes]:
    disparity = encode_disparity(view.disparity)
    given = {"disparity": disparity} if with_disparity else {}
    return given | {
        "true_right": encode_png(view.right),
        "true_disparity": disparity,
        "true_nonocc_left": encode_png(view.nonocc_left),
    }
