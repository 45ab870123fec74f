"""A small classifier, trained on renders, that judges whether a generated image shows what its caption says."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stereo_jobs.toyscapes.depth import disturb
from stereo_jobs.toyscapes.render import render
from stereo_jobs.toyscapes.scenes import COLOURS, POSITIONS, SHAPES, Scene, Split, draw_scene
from stereo_jobs.toyscapes.training import Batch, Schedule
from stereo_jobs.toyscapes.vae import to_pixels

SCHEDULE = Schedule(steps=900, batch=48, learning_rate=2e-3, warmup=100, ema=0.995)
_SIZES = {"shape": len(SHAPES), "colour": len(COLOURS), "position": len(POSITIONS), "count": 3}
QUESTIONS = tuple(_SIZES)
_NOT_ASKED = -100


class Judge(nn.Module):
    """Answers four questions about an image: the number of objects, and shape, colour and position of a single one."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 96, 128)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2 if b > 16 else 1, 1), nn.GroupNorm(8, b), nn.SiLU())
                for a, b in pairwise(widths)
            ),
            nn.Conv2d(128, 128, 3, 1, 1),
            nn.GroupNorm(8, 128),
            nn.SiLU(),
            nn.AdaptiveMaxPool2d((2, 6)),  # keeps some position
            nn.Flatten(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(128 * 12, size) for name, size in _SIZES.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits for each question, of images B,3,128,128 in [-1, 1]."""
        features = self.layers(pixels)
        return {name: head(features) for name, head in self.heads.items()}


class JudgeLoss(nn.Module):
    """Cross entropy over all questions that a scene answers."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = Judge()

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch, summed over the questions: `pixels`, and the index of the answer to each question."""
        logits = self.judge(batch["pixels"])
        parts = [functional.cross_entropy(logits[name].float(), batch[name]) for name in QUESTIONS]
        return torch.stack(parts).sum()


class JudgeLesson:
    """Trains the judge on fresh renders of all levels."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.networks = JudgeLoss()

    def draw(self, step: int, rank: int, device: str) -> Batch:
        """Degraded left views and their answers."""
        rng = np.random.default_rng([5, step, rank])
        scenes = [draw_scene(int(rng.integers(2**40))) for _ in range(self.schedule.batch)]
        images = np.stack([disturb(render(scene).left, rng) for scene in scenes])
        truth = [answers(scene) for scene in scenes]
        columns = {name: torch.tensor([a.get(name, _NOT_ASKED) for a in truth]).to(device) for name in QUESTIONS}
        return {"pixels": to_pixels(images).to(device), **columns}

    def evaluate(self, networks: nn.Module) -> dict[str, float]:
        """Shares of right answers on held-out renders."""
        scenes = scenes_with(1, 200)
        images = np.stack([render(scene).left for scene in scenes])
        return score(networks.judge, images, scenes)  # type: ignore[arg-type]


def answers(scene: Scene) -> dict[str, int]:
    """The right answers, as class indices; only the count if there is more than one object."""
    result = {"count": len(scene.billboards) - 1}
    if len(scene.billboards) == 1:
        (billboard,) = scene.billboards
        result["shape"] = SHAPES.index(billboard.shape)
        result["colour"] = list(COLOURS).index(billboard.colour)
        result["position"] = POSITIONS.index(billboard.position)
    return result


def scenes_with(objects: int, count: int, split: Split = "test") -> list[Scene]:
    """The first `count` scenes of a split that have exactly `objects` objects."""
    found: list[Scene] = []
    seed = 0
    while len(found) < count:
        scene = draw_scene(seed, split)
        seed += 1
        if len(scene.billboards) == objects:
            found.append(scene)
    return found


def score(judge: Judge, images: NDArray[np.uint8], scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares of right answers on images N,128,128,3 of scenes with one object each.

    `shape_and_colour` counts answers that have both right. `shuffled` is the same share against the captions of other
    scenes, for comparison: guessing reaches about as much.
    """
    found = _answered(judge, images)
    truth = [answers(scene) for scene in scenes]
    right = {name: np.array([a[name] for a in truth]) == found[name] for name in QUESTIONS}
    both = np.array([[a["shape"], a["colour"]] for a in truth])
    shuffled = np.roll(both, 1, axis=0)
    found_both = np.stack([found["shape"], found["colour"]], 1)
    return {
        "shape_and_colour": float((found_both == both).all(1).mean()),
        "shuffled": float((found_both == shuffled).all(1).mean()),
        **{name: float(values.mean()) for name, values in right.items()},
    }


def counted(judge: Judge, images: NDArray[np.uint8], scenes: Sequence[Scene]) -> float:
    """Share of images N,128,128,3 in which the judge counts as many objects as their scenes have."""
    return float((_answered(judge, images)["count"] == [answers(scene)["count"] for scene in scenes]).mean())


@torch.inference_mode()
def _answered(judge: Judge, images: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
    """The judge's answer, a class index, to each question about each image."""
    device = next(judge.parameters()).device
    return {name: logits.argmax(1).cpu().numpy() for name, logits in judge(to_pixels(images).to(device)).items()}
