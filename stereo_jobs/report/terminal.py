"""How a run shows itself: a live line on a terminal, plain lines now and then in a pipe, log lines as JSON."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stereo_jobs import logs

if TYPE_CHECKING:
    from stereo_jobs.output.progress import Status
    from stereo_jobs.output.watch import OutputSnapshot
    from stereo_jobs.run.driver import RunProgress
    from stereo_jobs.run.estimate import Estimate

log = logging.getLogger(__name__)

PLAIN_EVERY_S = 15.0


@contextmanager
def display(console: Console, quiet: bool = False) -> "Iterator[Callable[[RunProgress], None]]":
    """A function to call with every tick of the driver."""
    if quiet:
        yield lambda tick: None
    elif console.is_terminal and not logs.is_json():
        with Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=console) as bar:
            task = bar.add_task("loading models", total=None)
            yield lambda tick: bar.update(task, completed=tick.done, total=tick.planned, description=_line(tick))
    else:
        last = 0.0

        def print_plainly(tick: "RunProgress") -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                if logs.is_json():
                    log.info(_line(tick), extra=vars(tick))
                else:
                    console.print(_line(tick), markup=False)

        yield print_plainly


@contextmanager
def board(console: Console) -> "Iterator[Callable[[OutputSnapshot], None]]":
    """A function to call with every sight of a watched job: a live view, or in a pipe lines where they differ."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:

            def show(sight: "OutputSnapshot") -> None:
                done, planned = sight.status.shards_done, sight.status.shards_planned
                lines = Text("\n".join(snapshot_lines(sight)))
                live.update(Group(ProgressBar(planned, done, width=60), lines), refresh=True)

            yield show
    else:
        shown: list[str] = []

        def print_news(sight: "OutputSnapshot") -> None:
            lines = snapshot_lines(sight)
            for line in lines:
                if line not in shown:
                    console.print(line, markup=False)
            shown[:] = lines

        yield print_news


def snapshot_lines(sight: "OutputSnapshot") -> list[str]:
    """What one look at a job shows, for people."""
    lines = status_lines(sight.status)
    if pace := sight.throughput:
        speed = f"{pace.pairs_per_s:.2f} pairs/s, {_workers(pace.workers)}, ETA {_eta(pace.eta_s)}"
        lines.append(f"{speed}, as its run said at {pace.at}")
    return [*lines, f"{sight.state}: {sight.note}"] if sight.note else lines


def status_lines(status: "Status") -> list[str]:
    """How far a job is, for people."""
    state = "done" if status.complete else "not done"
    lines = [
        f"{state}: {status.succeeded} of {status.planned} pairs, {status.failed} failed, "
        f"{status.shards_done} of {status.shards_planned} shards, {status.bytes / 1e6:.1f} MB"
    ]
    if status.quality.acceptance is not None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in status.quality.reasons.items())
        dropped = f", {status.rejected} left out" if status.rejected else ""
        accepted = f"accepted: {status.quality.accepted} of {status.quality.judged} pairs{dropped}"
        lines.append(f"{accepted}; rejected for: {reasons}" if reasons else accepted)
    if status.wasted_seconds:
        lines.append(
            f"wasted: {status.wasted_seconds:.0f} s of workers at shards that were lost or left, beside "
            f"{status.seconds:.0f} s at those that were made"
        )
    return lines


def estimate_table(estimate: "Estimate") -> Table:
    """An estimate, and what it rests on."""
    seen = estimate.rehearsal
    spread = f"{seen.fastest_batch_s:.1f} to {seen.slowest_batch_s:.1f} s a batch of {seen.batch_size}"
    each = ", ".join(f"{stage} {seconds / seen.pairs:.2f}" for stage, seconds in seen.stages.items())
    memory = f"{_size(seen.rss_bytes)} of the machine"
    if seen.gpu_bytes is not None and seen.gpu_total_bytes is not None:
        memory = f"{_size(seen.gpu_bytes)} of the GPU's {_size(seen.gpu_total_bytes)}, {memory}"
    limit = "the models" if estimate.slowest == "generate" else f"{estimate.slowest}: the GPU waits for it"
    failed = ", ".join(f"{count} {error_type}" for error_type, count in seen.failures.items())
    rows = [
        ("measured on", f"{seen.device}, {seen.pairs} pairs, {spread}"),
        *([("rows failed", failed)] if failed else []),
        ("seconds a pair", f"{each}; limited by {limit}"),
        ("peak memory", memory),
        ("to make", f"{estimate.pairs:,} pairs in {estimate.shards:,} shards, {_size(estimate.bytes)}"),
        ("speed", f"{estimate.pairs_per_s:.2f} pairs/s on {estimate.gpus} GPU" + "s" * (estimate.gpus != 1)),
        ("wall time", f"{duration(estimate.wall_s)}, {seen.load_s:.0f} s of it to load the models"),
        ("GPU-hours", f"{estimate.gpu_hours:,.2f}"),
    ]
    if estimate.dollars is not None:
        rate = f"${estimate.dollars_per_1000_pairs:,.2f} per 1,000 pairs"
        rows.append(("cost", f"${estimate.dollars:,.2f}, {rate}, at ${estimate.price_per_hour:g} a GPU-hour"))
    if seen.device == "cpu":
        rows.append(("note", "measured without a GPU: read CPU for GPU, and measure again on the machine you will pay"))
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    return table


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _line(tick: "RunProgress") -> str:
    speed = f"{tick.pairs_per_s:.2f} pairs/s  ETA {_eta(tick.eta_s)}"
    return f"{tick.done:,}/{tick.planned:,} pairs  {speed}  {tick.failed:,} failed  {_workers(tick.workers)}"


def _eta(seconds: float | None) -> str:
    return "--" if seconds is None else duration(seconds)


def _workers(count: int) -> str:
    return f"{count} worker" + "s" * (count != 1)


def duration(seconds: float) -> str:
    """As minutes:seconds or hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
