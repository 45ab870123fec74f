"""Measures each demo model on held-out scenes, for the figures of the model card."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.files import DEMO_FOLDER
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.inputs import DecodedRow
from stereo_jobs.pipeline.left_view import Guidance, LeftViewMaker
from stereo_jobs.pipeline.resizing import Letterbox
from stereo_jobs.records import Row
from stereo_jobs.spec import Recipe, Size
from stereo_jobs.toyscapes import decoder, judge
from stereo_jobs.toyscapes.depth import errors, normalised
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import Scene, draw_scene
from stereo_jobs.toyscapes.training import averaged

BATCH = 8
GUIDANCE = 6.0
SIZE = 128
"""Width and height of the images in pixels."""
SHEET = 16
"""Number of images on a sheet."""
SEVERAL = {2: "two objects", 3: "three objects"}
"""Scenes for which only the count is judged. On scenes of one object, a judge that always answers `one` is right."""


@dataclass(frozen=True)
class DemoModels:
    """A folder of trained models: `sd`, `sd_depth` and `depth`."""

    folder: Path

    def pipeline(self, mode: str) -> LeftViewMaker:
        """The maker of left views in a mode, with the published number of steps."""
        recipe = Recipe(mode=mode, size=Size(width=SIZE, height=SIZE))
        return LeftViewMaker(self.stable_diffusion(mode), self.depth(), recipe)

    def stable_diffusion(self, mode: str = "text") -> StableDiffusion:
        """The Stable Diffusion checkpoint for a mode."""
        return StableDiffusion(self.folder / ("sd_depth" if mode == "depth" else "sd"), torch.float32, "cpu")

    def depth(self) -> DepthEstimator:
        """The depth estimator."""
        return DepthEstimator(self.folder / "depth", "inverse", torch.float32, "cpu")


def models_of(work: Path) -> Path:
    """The models trained in a work folder, or the embedded ones if there are none."""
    return work / "models" if (work / "models").is_dir() else DEMO_FOLDER


def measure(models: DemoModels, work: Path, scenes: int = 200) -> Iterator[tuple[str, dict[str, float]]]:
    """Measure one part after the other; yields the name and the figures of each.

    Args:
        models: the models to measure.
        work: folder in which the judge was trained; sheets of images are written there.
        scenes: number of held-out scenes; a quarter as many with two and with three objects test the count.
    """
    drawn = [draw_scene(seed, "test") for seed in range(scenes)]
    rendered = [render(scene) for scene in drawn]
    yield "vae", decoder.score(models.stable_diffusion().vae, rendered)
    yield "vae, grain alone", {"ringing": decoder.ringing_of_grain(max(1, scenes // 4))}

    found = models.depth().inverse_depth([scene.left for scene in rendered])
    everywhere, at_edges = errors(np.stack([depth.numpy() for depth in found]), rendered)
    yield "depth", {"error": float(np.mean(everywhere)), "edge_error": float(np.mean(at_edges))}

    _, trained, _ = averaged(judge.JudgeLesson, judge.SCHEDULE, work / "judge")
    classifier: judge.Judge = trained.judge  # type: ignore[assignment]
    one_object = judge.scenes_with(1, scenes)
    several = {name: judge.scenes_with(objects, max(1, scenes // 4)) for objects, name in SEVERAL.items()}
    yield "judge on renders", judge.score(classifier, _renders(one_object), one_object)
    for name, wanted in several.items():
        yield f"judge on renders, {name}", {"count": judge.counted(classifier, _renders(wanted), wanted)}

    lefts = models.pipeline("text")
    made = np.stack(list(_from_text(lefts, one_object)))
    save_sheet(made[:SHEET], work / "text.png")
    yield "text", judge.score(classifier, made, one_object)
    for name, wanted in several.items():
        made = np.stack(list(_from_text(lefts, wanted)))
        save_sheet(made[:SHEET], work / f"text {name}.png".replace(" ", "_"))
        yield f"text, {name}", {"count": judge.counted(classifier, made, wanted)}

    yield "depth mode", {"error": float(np.mean(_depth_mode_errors(models, drawn, work)))}


def _renders(scenes: Sequence[Scene]) -> np.ndarray:
    """Rendered left views, N,128,128,3 uint8."""
    return np.stack([render(scene).left for scene in scenes])


def _from_text(lefts: LeftViewMaker, scenes: Sequence[Scene]) -> Iterator[np.ndarray]:
    """Images generated from captions. The seed is the position in the list, so no image is hand-picked."""
    letterbox = Letterbox.exact((SIZE, SIZE))
    for start in range(0, len(scenes), BATCH):
        part = [
            DecodedRow(Row(str(seed), scene.caption, "", seed, 8.0), letterbox)
            for seed, scene in enumerate(scenes[start : start + BATCH], start)
        ]
        with torch.no_grad():
            yield from lefts.make(part, Guidance(GUIDANCE, GUIDANCE, 1.0)).images


def _depth_mode_errors(models: DemoModels, scenes: Sequence[Scene], work: Path) -> list[float]:
    """Generate images from true depth, estimate their depth, and return its mean absolute error for each scene."""
    lefts, letterbox = models.pipeline("depth"), Letterbox.exact((SIZE, SIZE))
    results: list[float] = []
    generated = []
    for start in range(0, len(scenes), BATCH):
        part = list(enumerate(scenes[start : start + BATCH], start))
        maps = [render(scene).disparity for _, scene in part]
        inputs = [
            DecodedRow(Row(str(seed), scene.caption, "", seed, 8.0), letterbox, map=values)
            for (seed, scene), values in zip(part, maps, strict=True)
        ]
        with torch.no_grad():
            images = lefts.make(inputs, Guidance(GUIDANCE, GUIDANCE, 1.0)).images
            estimated = lefts.depth.inverse_depth(images)
        results += [
            float(np.abs(normalised(e.numpy()) - normalised(given)).mean())
            for e, given in zip(estimated, maps, strict=True)
        ]
        generated += images
    save_sheet(np.stack(generated[:SHEET]), work / "depth.png")
    return results


def save_sheet(images: np.ndarray, path: Path) -> None:
    """Write images N,H,W,3 uint8 as one PNG, eight in a row; the last row is padded with black."""
    images = np.concatenate([images, np.zeros((-len(images) % 8, *images.shape[1:]), np.uint8)])
    rows = [np.concatenate(list(images[i : i + 8]), 1) for i in range(0, len(images), 8)]
    Image.fromarray(np.concatenate(rows)).save(path)


def write(figures: dict[str, dict[str, float]], path: Path) -> None:
    """Write figures as JSON, rounded to four decimals."""
    rounded = {part: {name: round(value, 4) for name, value in values.items()} for part, values in figures.items()}
    path.write_text(json.dumps(rounded, indent=2) + "\n")
