"""How a run shows itself: a live line on a terminal, plain lines now and then in a pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from stereo_jobs.job.driver import Tick

PLAIN_EVERY_S = 15.0


@contextmanager
def display(console: Console, quiet: bool = False) -> "Iterator[Callable[[Tick], None]]":
    """A function to call with every tick of the driver."""
    if quiet:
        yield lambda tick: None
    elif console.is_terminal:
        with Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=console) as bar:
            task = bar.add_task("loading models", total=None)
            yield lambda tick: bar.update(task, completed=tick.done, total=tick.planned, description=_line(tick))
    else:
        last = 0.0

        def print_plainly(tick: "Tick") -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                console.print(_line(tick), markup=False)

        yield print_plainly


def _line(tick: "Tick") -> str:
    eta = "--" if tick.eta_s is None else _duration(tick.eta_s)
    workers = f"{tick.workers} worker" + "s" * (tick.workers != 1)
    speed = f"{tick.pairs_per_s:.2f} pairs/s  ETA {eta}"
    return f"{tick.done:,}/{tick.planned:,} pairs  {speed}  {tick.failed:,} failed  {workers}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
