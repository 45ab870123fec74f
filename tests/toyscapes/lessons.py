"""Lessons for tests of the training loop; `python -m tests.toyscapes.lessons FOLDER` is killed halfway."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from stereo_jobs.toyscapes.training import Batch, Lesson, Machine, Schedule, train

EVERY_STEP = 0.0
"""Seconds between checkpoints."""


class Line(nn.Module):
    """Squared error of x -> x w + b, in float32: autocast leaves a plain sum of products alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(5))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> torch.Tensor:
        return (((batch["x"] * self.weights).sum(1) + self.bias - batch["y"]) ** 2).mean()


class LineLesson:
    """Learns y = x0 + 2 x1 + 3 x2 + 4 x3 + 5 x4 - 1."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.networks = Line()

    def draw(self, step: int, rank: int, device: str) -> Batch:
        x = torch.randn(self.schedule.batch, 5, generator=torch.Generator().manual_seed(1000 * step + rank))
        return {"x": x, "y": x @ torch.arange(1.0, 6.0) - 1}

    def evaluate(self, networks: nn.Module) -> dict[str, float]:
        return {"bias": float(networks.bias.detach())}


class TwoLines(Line):
    """The mean of the losses of two batches."""

    def forward(self, batch: Batch) -> torch.Tensor:
        losses = [super(TwoLines, self).forward({"x": x, "y": y}) for x, y in zip(batch["x"], batch["y"], strict=True)]
        return (losses[0] + losses[1]) / 2


class BothRanksLesson(LineLesson):
    """One process that learns from what two would draw."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.networks = TwoLines()

    def draw(self, step: int, rank: int, device: str) -> Batch:
        parts = [super(BothRanksLesson, self).draw(step, rank, device) for rank in range(2)]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Mortal:
    """Makes lessons whose process is killed as it draws a step's batch."""

    make: Callable[[Schedule], Lesson]
    step: int
    rank: int

    def __call__(self, schedule: Schedule) -> Lesson:
        lesson = self.make(schedule)
        real = lesson.draw

        def draw(step: int, rank: int, device: str) -> Batch:
            if (step, rank) == (self.step, self.rank):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(step, rank, device)

        lesson.draw, lesson.evaluate = draw, lambda networks: {}
        return lesson


LINE = Schedule(steps=8, batch=4, learning_rate=0.05, warmup=2, ema=0.9)


def short_depth_lesson() -> tuple[Callable[[Schedule], Lesson], Schedule]:
    """A real lesson and two steps of it; what it tells of its progress is left out."""
    from stereo_jobs.toyscapes import depth

    class ShortDepthLesson(depth.DepthLesson):
        def evaluate(self, networks: nn.Module) -> dict[str, float]:
            return {}

    return ShortDepthLesson, replace(depth.SCHEDULE, steps=2, batch=2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make, schedule = short_depth_lesson()
    train(Mortal(make, 1, 0), schedule, Path(sys.argv[1]), Machine(checkpoint_s=EVERY_STEP))
