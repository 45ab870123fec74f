"""Children: each case runs in a process forked from this one, which has imported everything and used nothing.

The parent watches time, memory and output of a child, and ends one that goes beyond a limit. Linux only: it reads /proc
and waits on process descriptors. The parent must stay single-threaded, since a fork copies only the thread that calls
it: whatever starts threads (Arrow's readers, OpenCV's loops) is used in children alone.
"""

import contextlib
import faulthandler
import importlib
import io
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

STDOUT, STDERR, STACKS = "stdout.txt", "stderr.txt", "stacks.txt"
"""Files in a case's folder: what it printed, and where it was when it hung or crashed."""
WORK = "work"
"""Its current and home folder, with the input, one level down: so `..` holds nothing of other cases."""

BROKEN = 70
"""Exit code of a child in which the test itself is at fault (EX_SOFTWARE)."""

WARM = (
    *("stereo_jobs.cli", "stereo_jobs.models.resolve", "stereo_jobs.output.verify", "stereo_jobs.report.terminal"),
    *("stereo_jobs.run.driver", "stereo_jobs.run.prepare", "tests.standin", "cv2", "jinja2", "pandas", "tifffile"),
)
"""Modules that cases need, imported once by the parent; none of them starts a thread before it is used."""

ENVIRONMENT = {"AWS_EC2_METADATA_DISABLED": "true", "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "120", "TERM": "dumb"}

POLL_MS = 20
PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True)
class Limits:
    """What a case may use. Memory counts from what the process holds at its start."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 16 << 20


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        number: the case.
        code: exit code; negative for a signal.
        beyond: the limit it broke (`hang`, `memory` or `output`); None for none.
        seconds: wall time without waiting for a processor, so that a busy machine makes no hangs.
        memory_bytes: peak above the start.
    """

    number: int
    code: int
    beyond: str | None
    seconds: float
    memory_bytes: int


@dataclass
class _Child:
    number: int
    folder: Path
    pid: int
    handle: int
    started: float
    start: tuple[int, int]
    peak_bytes: int = 0
    beyond: str | None = None

    def seconds(self) -> float:
        """Time since the start in which it slept, waited for something, or had a processor."""
        return time.monotonic() - self.started - _queued_s(self.pid)


def run_all(
    cases: Iterable[tuple[int, Path]], work: Callable[[int, Path], int], jobs: int, limits: Limits
) -> Iterator[Ended]:
    """Run `work` for every case in a child, a few at once; yields in the order in which they end.

    Args:
        cases: number and folder of each; the folder must exist.
        work: runs in the child, with `WORK` in its folder as current directory; returns the exit code.
        jobs: children at once.
        limits: what each may use.
    """
    for name in WARM:
        importlib.import_module(name)
    PIL.Image.init()
    if len(threads := list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError(
            f"{len(threads)} threads in the process that forks: children could hang for no fault of theirs"
        )
    waiting, running = iter(cases), dict[int, _Child]()
    poll = select.poll()
    exhausted = False
    try:
        while not exhausted or running:
            while not exhausted and len(running) < jobs:
                case = next(waiting, None)
                if case is None:
                    exhausted = True
                else:
                    child = _start(*case, work, limits)
                    running[child.handle] = child
                    poll.register(child.handle, select.POLLIN)
            ended = [handle for handle, _ in poll.poll(POLL_MS)] if running else []
            for handle in ended:
                poll.unregister(handle)
                yield _finish(running.pop(handle), limits)
            if not ended:  # nobody has ended unseen while the parent was busy with another
                for child in running.values():
                    _end_if_beyond(child, limits)
    finally:
        for child in running.values():
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            os.close(child.handle)


def _start(number: int, folder: Path, work: Callable[[int, Path], int], limits: Limits) -> _Child:
    start = _memory_bytes(os.getpid())
    pid = os.fork()
    if pid == 0:
        code = BROKEN
        try:
            _prepare(folder, limits)
            code = work(number, folder)
        except BaseException:
            traceback.print_exc()
        finally:  # neither exit handlers nor the parent's frames are this process's business
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    return _Child(number, folder, pid, os.pidfd_open(pid), time.monotonic(), start)


def _prepare(folder: Path, limits: Limits) -> None:
    """Standard streams into files, encoded as on a UTF-8 terminal; stacks go into a file on a crash, and on demand."""
    (folder / WORK).mkdir()
    os.chdir(folder / WORK)
    for name in [name for name in os.environ if name.startswith(("AWS_", "STEREO_JOBS_"))]:
        del os.environ[name]  # an input's own are the only credentials
    os.environ |= ENVIRONMENT | {"HOME": str(folder / WORK)}
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, number in ((STDOUT, 1), (STDERR, 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "strict", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The parent ends what goes beyond the limit; this one holds where it is too slow to see it.
    held = int(Path("/proc/self/statm").read_text().split()[5]) * PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (held + 2 * limits.memory_bytes,) * 2)
    stacks = os.open(folder / STACKS, os.O_WRONLY | os.O_CREAT, 0o600)
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks)


def _end_if_beyond(child: _Child, limits: Limits) -> None:
    """Kill a child that broke a limit; how it ended is told once it has."""
    if child.beyond:
        return
    child.peak_bytes = max(child.peak_bytes, _memory_bytes(child.pid)[1] - child.start[1])
    if child.seconds() > limits.seconds:
        child.beyond = "hang"
    elif child.peak_bytes > limits.memory_bytes:
        child.beyond = "memory"
    elif sum(_size(child.folder / name) for name in (STDOUT, STDERR)) > limits.output_bytes:
        child.beyond = "output"
    if child.beyond:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGUSR1)  # writes its stacks
            time.sleep(0.1)
            os.kill(child.pid, signal.SIGKILL)


def _finish(child: _Child, limits: Limits) -> Ended:
    seconds = child.seconds()
    _, status, usage = os.wait4(child.pid, 0)
    os.close(child.handle)
    # The kernel's own peak misses nothing, but counts files too, of which the child has touched fewer than the parent.
    memory_bytes = max(child.peak_bytes, usage.ru_maxrss * 1024 - child.start[0])
    beyond = child.beyond or ("memory" if memory_bytes > limits.memory_bytes else None)
    return Ended(child.number, os.waitstatus_to_exitcode(status), beyond, seconds, memory_bytes)


def _memory_bytes(pid: int) -> tuple[int, int]:
    """Memory of a process that is in RAM, and the part that holds no files; 0 once it has ended."""
    try:
        _, resident, files, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0, 0
    return int(resident) * PAGE_BYTES, (int(resident) - int(files)) * PAGE_BYTES


def _queued_s(pid: int) -> float:
    """Time that the main thread of a process was ready to run while others had the processors."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
