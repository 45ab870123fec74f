"""The table of inpainting: how well a masked part of a photo is filled, by its share of the photo (the paper's Fig. 8).

As in the paper, the mask covers the right side. The photo itself is the truth.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from stereo_jobs.data.maps import decode_mask
from stereo_jobs.evaluate.datasets import Dataset
from stereo_jobs.evaluate.experiments import Case, ExperimentRunner, decode, slug, values
from stereo_jobs.evaluate.methods import Method
from stereo_jobs.evaluate.pictures import sheet
from stereo_jobs.evaluate.scenes import write_manifests
from stereo_jobs.evaluate.tables.formats import Table, counts, figure
from stereo_jobs.pixels import Image

SHARES = (0.1, 0.25, 0.5, 0.75)
"""Masked shares of the width."""
_METRICS = ("psnr_occ", "ssim_occ", "lpips_occ")
_SHOWN = 3
"""Number of photos on the picture."""
_RED = np.array([230, 40, 40], np.uint8)


def cases(runner: ExperimentRunner, dataset: Dataset, size: int, methods: Sequence[Method]) -> list[Case]:
    """The jobs of all methods on the first photos of a data set, masked in turn by each of `SHARES`."""
    return [_case(runner, dataset, size, method, share) for method in methods for share in SHARES]


def case_key(dataset: Dataset, method: Method, share: float) -> str:
    """Folder of the case of a method and a share, below the evaluation."""
    return f"{dataset.name}/inpaint-{share:.0%}/{slug(method.name)}".replace("%", "")


def inpaint_table(
    runner: ExperimentRunner, dataset: Dataset, size: int, methods: Sequence[Method]
) -> tuple[Table, bytes | None]:
    """Means over the masked pixels by method and share, and a picture like Fig. 8 of what the first method fills.

    Args:
        runner: runs the cases.
        dataset: its right views are the photos; the first `slow_scenes` of them are masked.
        size: longest side of the photos in pixels.
        methods: one method for each row.
    """
    made = cases(runner, dataset, size, methods)
    table = Table(
        slug(f"inpaint {dataset.name}"),
        f"Inpainting, {dataset.name}: the right side of a photo masked, by the masked share",
        ("method",),
        [(method.name,) for method in methods],
        [(f"{share:.0%}", metric) for share in SHARES for metric in _METRICS],
    )
    for i, case in enumerate(made):
        scores = runner.masked(case)
        row, column = divmod(i, len(SHARES))
        for j, metric in enumerate(_METRICS):
            cell = figure(values(scores, metric), metric)
            if cell:
                table.cells[row, column * len(_METRICS) + j] = cell
    table.notes.extend(["Only masked pixels are scored.", *counts(table)])
    return table, _picture(runner, made[: len(SHARES)], methods[0].name)


def _case(runner: ExperimentRunner, dataset: Dataset, size: int, method: Method, share: float) -> Case:
    photos = write_manifests(
        runner.storage, dataset, size=size, slow_scenes=runner.slow_scenes, frame="photo", masked=share
    )
    recipe = {"mode": "inpaint", "size": {"width": size, "height": size}}
    switches = {**method.switches, "right_view": "identity", "geometry": "relative"}  # only the photo is looked at
    key = case_key(dataset, method, share)
    return Case(key, dataset.name, method, runner.spec(key, photos.first, recipe, switches))


def _picture(runner: ExperimentRunner, made: Sequence[Case], name: str) -> bytes | None:
    """A sheet: each photo, then with its mask in red and filled, share by share; None if no photo is in all cases."""
    common = [scene for scene in runner.scores(made[0]) if all(scene in runner.scores(case) for case in made)]
    shown = common[:_SHOWN]
    rows = [
        (f"{scene}: the photo, its mask in red, filled by {name}", list(_cells(runner, made, scene))) for scene in shown
    ]
    return sheet(rows) if rows else None


def _cells(runner: ExperimentRunner, made: Sequence[Case], scene: str) -> Iterator[tuple[str, Image]]:
    for case, share in zip(made, SHARES, strict=True):
        row = runner.truths(case, [scene], ("id", "image", "mask"))[scene]
        photo, mask = decode(row["image"]), decode_mask(row["mask"])[..., None]
        if case is made[0]:
            yield "photo", photo
        yield f"{share:.0%}", np.where(mask, _RED, photo)
        [(_, filled, _)] = runner.pictures(case, [scene])
        yield "filled", filled
