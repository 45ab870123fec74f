"""What a terminal shows of a job: a live line, or plain lines in a pipe, or JSON log lines."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from stereo_jobs import logs
from stereo_jobs.report.problems import prompt_lines

if TYPE_CHECKING:
    from stereo_jobs.output.progress import Status
    from stereo_jobs.output.watch import OutputSnapshot
    from stereo_jobs.run.driver import RunProgress
    from stereo_jobs.run.estimate import Estimate, Measurement

log = logging.getLogger(__name__)

CaseCallback = Callable[[int, int, str], None]
"""Called when a case of an evaluation starts: with the number of cases that are done, of all cases, and its name."""

PLAIN_EVERY_S = 15.0
"""Seconds between two lines of progress where there is no terminal."""


@contextmanager
def progress_display(console: Console, quiet: bool = False) -> "Iterator[Callable[[RunProgress], None]]":
    """A function for the driver to call with its progress.

    On a terminal it updates one live line. Elsewhere it prints a line every `PLAIN_EVERY_S` seconds; where logs are
    JSON, it logs one instead.

    Args:
        console: where to print.
        quiet: print nothing.
    """
    if quiet:
        yield lambda progress: None
    elif console.is_terminal and not logs.is_json():
        with _live_bar(console) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda progress: bar.update(
                task,
                completed=progress.done,
                total=None if progress.starting else progress.planned,
                description=_progress_line(progress, with_time=False),
            )
    else:
        say, working = _said_sometimes(console), False

        def tell(progress: "RunProgress") -> None:
            nonlocal working
            starts_work = not progress.starting and not working
            working = working or starts_work
            say(_progress_line(progress), vars(progress), starts_work)

        yield tell


@contextmanager
def evaluation_display(
    console: Console, quiet: bool = False
) -> "Iterator[tuple[CaseCallback, Callable[[RunProgress], None]]]":
    """Two functions, to call when a case of an evaluation starts and with the progress of its run.

    On a terminal they update one live bar: its length is the share of cases that are done. Elsewhere each case is a
    line, and a long one has lines of progress as `progress_display` prints them.

    Args:
        console: where to print.
        quiet: print nothing.
    """
    if quiet:
        yield (lambda done, cases, name: None), (lambda progress: None)
    elif console.is_terminal and not logs.is_json():
        with _live_bar(console) as bar:
            task, current = bar.add_task("preparing scenes", total=None), ""

            def begin(done: int, cases: int, name: str) -> None:
                nonlocal current
                current = f"{done} of {cases} cases  {name}"
                bar.update(task, completed=done, total=cases, description=current, refresh=True)

            def tell(progress: "RunProgress") -> None:
                line = _progress_line(progress, with_time=False)
                bar.update(task, description=f"{current}  {line}", refresh=True)

            yield begin, tell
            bar.update(task, completed=1, total=1, description="all cases done")
    else:
        say = _said_sometimes(console)
        yield (
            lambda done, cases, name: console.print(f"case {done + 1} of {cases}: {name}", markup=False),
            lambda progress: say(_progress_line(progress), vars(progress), False),
        )


def _live_bar(console: Console) -> Progress:
    """A bar with its time and a text beside it, which takes more lines where the terminal is narrow."""
    words = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    return Progress(BarColumn(bar_width=16), TimeElapsedColumn(), words, console=console)


def _said_sometimes(console: Console) -> Callable[[str, dict[str, Any], bool], None]:
    """A function that prints a line, or logs it with facts where logs are JSON.

    It does so every `PLAIN_EVERY_S` seconds, or at once where its third argument says so.
    """
    last = -math.inf

    def say(line: str, facts: dict[str, Any], at_once: bool) -> None:
        nonlocal last
        if at_once or time.monotonic() - last >= PLAIN_EVERY_S:
            last = time.monotonic()
            if logs.is_json():
                log.info(line, extra=facts)
            else:
                console.print(line, markup=False)

    return say


@contextmanager
def watch_display(console: Console) -> "Iterator[Callable[[OutputSnapshot], None]]":
    """A function to call with every snapshot of a watched job.

    On a terminal it updates a live view. Elsewhere it prints the lines that differ from those of the last snapshot.
    """
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda snapshot: live.update(_view(snapshot), refresh=True)
    else:
        shown: list[str] = []

        def print_changes(snapshot: "OutputSnapshot") -> None:
            lines = snapshot_lines(snapshot)
            for line in lines:
                if line not in shown:
                    console.print(line, markup=False)
            shown[:] = lines

        yield print_changes


def _view(snapshot: "OutputSnapshot") -> Table:
    """A bar above the lines of a snapshot; lines that are wider than the terminal are wrapped at words."""
    view = Table.grid(Column(overflow="fold"))
    view.add_row(ProgressBar(snapshot.status.shards_planned, snapshot.status.shards_done, width=60))
    for line in snapshot_lines(snapshot):
        view.add_row(Text(line))
    return view


def snapshot_lines(snapshot: "OutputSnapshot") -> list[str]:
    """A snapshot of an output as lines of text."""
    lines = status_lines(snapshot.status)
    throughput = snapshot.throughput
    if throughput:
        speed = f"{throughput.pairs_per_s:.2f} pairs/s, {_workers(throughput.workers)}, ETA {_eta(throughput.eta_s)}"
        lines.append(f"{speed}, as its run said at {throughput.at}")
    return [*lines, f"{snapshot.state}: {snapshot.note}"] if snapshot.note else lines


def status_lines(status: "Status") -> list[str]:
    """The status of a job as lines of text."""
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
            f"wasted: {status.wasted_seconds:.0f} worker seconds on shards that were lost or abandoned, "
            f"besides {status.seconds:.0f} s on finished ones"
        )
    return [*lines, *prompt_lines(status.prompts)]


_LIMITS = {
    "generate": "the models",
    "processor": "the processor: all threads together keep its cores busy",
}
"""Bottlenecks of a worker in words; the GPU waits for any other."""


def estimate_table(estimate: "Estimate") -> Table:
    """An estimate and the measurement that it is based on, as a table of names and values."""
    measured = estimate.measurement
    each = ", ".join(f"{stage} {seconds / measured.pairs:.2f}" for stage, seconds in measured.stages.items())
    limit = _LIMITS.get(estimate.slowest, f"{estimate.slowest}: the GPU waits for it")
    spread = f"{measured.fastest_batch_s:.1f} to {measured.slowest_batch_s:.1f} s a batch of {measured.batch_size}"
    failed = ", ".join(f"{count} {error_type}" for error_type, count in measured.failures.items())
    rows = [
        ("measured on", f"{measured.device}, {measured.pairs} pairs, {spread}"),
        *([("rows failed", failed)] if failed else []),
        ("seconds a pair", each),
        *_compute_rows(estimate),
        ("limited by", limit),
        ("peak memory", _memory(measured)),
        ("to make", f"{estimate.pairs:,} pairs in {estimate.shards:,} shards, {_size(estimate.bytes)}"),
        ("speed", f"{estimate.pairs_per_s:.2f} pairs/s on {estimate.gpus} GPU" + "s" * (estimate.gpus != 1)),
        (
            "wall time",
            f"{duration(estimate.wall_s)}, {measured.load_s + measured.warm_up_s:.0f} s of it to load and warm up",
        ),
        ("GPU-hours", f"{estimate.gpu_hours:,.2f}"),
    ]
    if estimate.dollars is not None:
        rate = f"${estimate.dollars_per_1000_pairs:,.2f} per 1,000 pairs"
        rows.append(("cost", f"${estimate.dollars:,.2f}, {rate}, at ${estimate.price_per_hour:g} a GPU-hour"))
    if measured.device == "cpu" and not estimate.prediction:
        rows.append(("note", "measured without a GPU: GPU means CPU above; measure again on the machine you will use"))
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    return table


def _compute_rows(estimate: "Estimate") -> list[tuple[str, str]]:
    """What the networks compute for a pair, and what another GPU would take for it."""
    found, predicted = estimate.measurement.arithmetic, estimate.prediction
    if found is None:
        return []
    rows = [
        (
            "arithmetic",
            f"{_flops(found.flops)} a pair, {_flops(found.unet_flops)} a U-Net evaluation, at {found.share:.0%} of the "
            f"{_flops(found.peak)}/s of large {found.dtype} matrix products here",
        )
    ]
    if predicted:
        origin = "as measured" if predicted.measured else "an assumption, since no GPU was measured"
        speed = f"{_flops(predicted.peak)}/s published for {predicted.dtype}, {predicted.share:.0%} of it ({origin})"
        rows.append((predicted.gpu, f"{predicted.pair_s:.3g} s a pair in the models: {speed}"))
    return rows


def _flops(count: float) -> str:
    """Floating-point operations in words."""
    return _scaled(count, "FLOP")


def _memory(measured: "Measurement") -> str:
    machine = f"{_size(measured.rss_bytes)} of the machine"
    if measured.gpu_bytes is None or measured.gpu_total_bytes is None:
        return machine
    return f"{_size(measured.gpu_bytes)} of the GPU's {_size(measured.gpu_total_bytes)}, {machine}"


def _size(count: float) -> str:
    return _scaled(count, "B")


def _scaled(count: float, unit: str) -> str:
    """A count with three digits and the prefix that suits it."""
    for prefix in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:.3g} T{unit}"


def _progress_line(progress: "RunProgress", *, with_time: bool = True) -> str:
    """Progress in one line; `with_time` tells how long the first workers have been starting."""
    if progress.starting:
        return progress.starting + (f"  {duration(progress.seconds)}" if with_time and progress.seconds >= 1 else "")
    speed = f"{progress.pairs_per_s:.2f} pairs/s  ETA {_eta(progress.eta_s)}"
    workers = _workers(progress.workers)
    return f"{progress.done:,}/{progress.planned:,} pairs  {speed}  {progress.failed:,} failed  {workers}"


def _eta(seconds: float | None) -> str:
    return "--" if seconds is None else duration(seconds)


def _workers(count: int) -> str:
    return f"{count} worker" + "s" * (count != 1)


def duration(seconds: float) -> str:
    """Seconds as minutes:seconds or hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
