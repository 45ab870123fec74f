"""The training loop of all demo models: seeded; a resumed run ends with the same bits as an uninterrupted one."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
_RENDEZVOUS = ".meeting"  # file through which the processes of a run find each other


class Lesson(Protocol):
    """One part to train: its networks with their loss, its data and its measures."""

    @property
    def networks(self) -> nn.Module:
        """The module to train; its forward takes a batch and returns the loss."""

    def draw(self, step: int, rank: int, device: str) -> Batch:
        """The batch of one step in one process; it must depend on step and rank only."""

    def evaluate(self, networks: nn.Module) -> dict[str, float]:
        """Measures of the networks on held-out scenes, by name."""


@dataclass(frozen=True)
class Schedule:
    """The length and the rates of a training.

    Attributes:
        steps: total number of optimiser steps.
        batch: samples per step, in all processes together.
        learning_rate: peak rate; reached after `warmup` steps, then held, then lowered to 0 over the last fifth.
        warmup: number of steps of rising learning rate.
        ema: decay of the averaged weights, which are the ones that are exported.
        seed: seed of the initial weights.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200
    ema: float = 0.999
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: a trapezoid, so that a run can be prolonged until its last fifth begins."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), 5 * (self.steps - step) / self.steps)


@dataclass(frozen=True)
class Machine:
    """The hardware to train on.

    Attributes:
        device: `cpu` or `cuda`.
        processes: number of data-parallel processes. On a CPU, two of one thread are faster than one of two threads;
            on a GPU use one.
        checkpoint_s: seconds between checkpoints.
    """

    device: str = "cpu"
    processes: int = 1
    checkpoint_s: float = 600.0


def train(make: Callable[[Schedule], Lesson], schedule: Schedule, folder: Path, machine: Machine = Machine()) -> None:
    """Train until the schedule's last step, from the newest checkpoint in `folder` if there is one.

    Args:
        make: makes the lesson from a schedule with the process's share of the batch. It is called in each process, so
            it must be a picklable function.
        schedule: length and rates of the training.
        folder: folder for `checkpoint.pt` (replaced atomically) and `progress.jsonl`.
        machine: the hardware to train on.

    Raises:
        ValueError: the batch cannot be shared evenly among the processes.
    """
    if schedule.batch % machine.processes:
        raise ValueError(f"a batch of {schedule.batch} cannot be shared evenly by {machine.processes} processes")
    folder.mkdir(parents=True, exist_ok=True)
    if machine.processes == 1:
        _train(0, make, schedule, folder, machine)
    else:
        (folder / _RENDEZVOUS).unlink(missing_ok=True)
        spawn(_train_ranked, (make, schedule, folder, machine), machine.processes)  # type: ignore[no-untyped-call]


def averaged(make: Callable[[Schedule], Lesson], schedule: Schedule, folder: Path) -> tuple[Lesson, nn.Module, int]:
    """The lesson, its networks with averaged weights, and the step, all from the newest checkpoint.

    Raises:
        FileNotFoundError: `folder` has no checkpoint yet.
    """
    lesson = make(schedule)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    average = _average(lesson.networks, schedule)
    average.load_state_dict(state["average"])
    networks: nn.Module = average.module
    return lesson, networks.eval(), int(state["step"])


def _train_ranked(rank: int, make: Any, schedule: Schedule, folder: Path, machine: Machine) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder.resolve() / _RENDEZVOUS}", rank=rank, world_size=machine.processes
    )
    try:
        _train(rank, make, schedule, folder, machine)
    finally:
        dist.destroy_process_group()


def _train(rank: int, make: Callable[[Schedule], Lesson], schedule: Schedule, folder: Path, machine: Machine) -> None:
    torch.manual_seed(schedule.seed)
    device = machine.device
    lesson = make(dataclasses.replace(schedule, batch=schedule.batch // machine.processes))
    networks = lesson.networks.to(device).train()
    average = _average(networks, schedule)
    weights = [p for p in networks.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    done = _resume(folder / "checkpoint.pt", networks, average, optimizer)
    fast = _has_bfloat16(device)
    model = networks if machine.processes == 1 else DistributedDataParallel(networks)
    saved, losses = time.monotonic(), []
    began = time.monotonic()
    for step in range(done, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        batch = lesson.draw(step, rank, device)
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            loss = model(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(networks)
        losses.append(float(loss.detach()))
        last = step + 1 == schedule.steps
        if rank == 0 and (last or time.monotonic() - saved >= machine.checkpoint_s):
            saved = time.monotonic()
            _checkpoint(folder / "checkpoint.pt", step + 1, networks, average, optimizer)
            facts = {
                "step": step + 1,
                "of": schedule.steps,
                "loss": sum(losses) / len(losses),
                "samples_per_s": len(losses) * schedule.batch / (time.monotonic() - began),
                **lesson.evaluate(average.module.eval()),
            }
            log.info("%s", facts)
            with (folder / "progress.jsonl").open("a") as file:
                file.write(json.dumps(facts) + "\n")
            losses, began = [], time.monotonic()


def _has_bfloat16(device: str) -> bool:
    """Whether a device supports bfloat16; a CPU that emulates it is several times faster in float32."""
    if device != "cpu":
        return True
    known = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(known and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _average(networks: nn.Module, schedule: Schedule) -> AveragedModel:
    def move(averages: Any, weights: Any, count: Any) -> None:
        decay = min(schedule.ema, (1 + int(count)) / (10 + int(count)))  # forgets early weights soon
        torch._foreach_lerp_(averages, weights, 1 - decay)

    return AveragedModel(networks, multi_avg_fn=move)


def _checkpoint(path: Path, step: int, networks: nn.Module, average: nn.Module, optimizer: Any) -> None:
    """Write a checkpoint atomically: after a kill, the old one or the new one is there."""
    state = {
        "step": step,
        "networks": networks.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, networks: nn.Module, average: nn.Module, optimizer: Any) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    networks.load_state_dict(state["networks"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
