"""A case: made from (seed, kind, number) alone, run in a child, judged by what it left in its folder."""

import contextlib
import json
import random
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_jobs import cli
from tests.fuzz.children import BROKEN, STACKS, STDERR, STDOUT, WORK, Ended

DOCUMENTED = frozenset({0, 2, 3, 4, 5, 75})
"""Exit codes that a command may have after any input; 1 is an internal error."""

RECORD = "case.json"
"""What a case says of itself, in its folder: how its input was made, how its commands ended, what it found."""

READ_BYTES = 1 << 20

_TRACEBACK = b"Traceback (most recent call last)"
# C0 but tab and newline, DEL, C1, and what turns the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FRAME = re.compile(r'File "[^"]*/(stereo_jobs/[^"]+)", line (\d+),? in (\S+)')
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?:: .*)?$")


def random_of(seed: int, kind: str, number: int) -> random.Random:
    """The source of everything random in a case; the same on every machine and in any order of cases."""
    return random.Random(f"{seed}/{kind}/{number}")


class Record:
    """What a case says of itself. Written at every change, since the child may be killed at any moment."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self.made = ""
        self.steps: list[tuple[str, int]] = []
        self.found: list[tuple[str, str]] = []

    def note(self, made: str) -> None:
        """How the input was made."""
        self.made = made[:500]
        self._write()

    def step(self, name: str, code: int) -> None:
        """A command and its exit code."""
        self.steps.append((name, code))
        self._write()

    def find(self, what: str, detail: str) -> None:
        """Something wrong that only the case itself can see."""
        self.found.append((what, detail[:500]))
        self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps({"made": self.made, "steps": self.steps, "found": self.found}))


def command(record: Record, *words: str) -> int:
    """Run `stereo-jobs WORDS` in this process; returns its exit code. An exception ends it as it ends Python."""
    sys.argv = ["stereo-jobs", *words]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    record.step(words[0], code)
    return code


Work = Callable[[random.Random, Path, Record], None]
"""Makes the input of a case in its current folder, gives it to the product, and records what happens."""


def run_case(work: Work, seed: int, kind: str, number: int, folder: Path) -> int:
    """One case, in the child. Returns 0 once it is through, whatever it found."""
    record = Record(folder)
    work(random_of(seed, kind, number), folder / WORK, record)
    return 0


# --- Judging, in the parent ---


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        case: `KIND:NUMBER`, as `--only` takes it.
        what: traceback, exit, signal, hang, memory, output, control, broken test, or what the case itself calls it.
        cause: alike for findings that one mend is likely to remove.
        detail: a line for people.
        made: how the input was made.
        kept: where the input lies; empty where it was not kept.
    """

    case: str
    what: str
    cause: str
    detail: str
    made: str
    kept: str


def judge(kind: str, ended: Ended, folder: Path, kept: bool) -> tuple[list[Finding], dict[str, Any]]:
    """What is wrong about a case that has ended, and its record."""
    record = _record(folder)
    stdout, stderr = _bytes(folder / STDOUT), _bytes(folder / STDERR)
    found = _of_process(ended, folder, stderr)
    if ended.code != BROKEN:
        found += _of_steps(record, stdout, stderr)
    found += [(what, detail.partition(":")[0], detail) for what, detail in record["found"]]
    for name, data in (("stdout", stdout), ("stderr", stderr)):
        words = data.decode(errors="replace")
        if hit := _CONTROL.search(words):
            before, after = words[: hit.start()].rpartition("\n")[2], words[hit.start() :].partition("\n")[0]
            begins = " ".join(before.split()[:2])
            found.append(("control", f"U+{ord(hit[0]):04X} in {name}: {begins}", repr((before + after)[:200])))
    where = str(folder) if kept else ""
    return [Finding(f"{kind}:{ended.number}", *each, record["made"], where) for each in found], record


def _record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {"made": "", "steps": [], "found": []}


def _of_process(ended: Ended, folder: Path, stderr: bytes) -> list[tuple[str, str, str]]:
    """What, cause and detail of an end that is not that of a process which has done its work."""
    if ended.beyond:
        used = f"{ended.seconds:.1f} s, {ended.memory_bytes / 2**20:.0f} MiB"
        return [(ended.beyond, _place(_bytes(folder / STACKS).decode(errors="replace"), first=True), used)]
    if ended.code < 0:
        return [("signal", f"{-ended.code} {_place(_bytes(folder / STACKS).decode(errors='replace'), first=True)}", "")]
    if ended.code:
        words = stderr.decode(errors="replace")
        kind = "broken test" if ended.code == BROKEN else "exit"
        return [(kind, f"{ended.code} {_exception(words)}", words[-300:])]
    return []


def _of_steps(record: dict[str, Any], stdout: bytes, stderr: bytes) -> list[tuple[str, str, str]]:
    """Tracebacks, and exit codes that are not documented."""
    words = stderr.decode(errors="replace")
    if _TRACEBACK in stderr or _TRACEBACK in stdout:
        return [("traceback", f"{_exception(words)} at {_place(words, first=False)}", _last_line(words))]
    return [
        ("exit", f"{name} {code}: {re.sub(r'[0-9]+', 'N', _last_line(words))[:100]}", _last_line(words))
        for name, code in record["steps"]
        if code not in DOCUMENTED
    ]


def _place(stack: str, first: bool) -> str:
    """The innermost frame of the product, which stands first in a dump and last in a traceback."""
    frames = [frame for frame in _FRAME.findall(stack) if not frame[2].startswith("<")]  # comprehensions have no name
    if not frames:
        return "no frame of the product"
    file, _, function = frames[0 if first else -1]
    return f"{file}:{function}"


def _exception(words: str) -> str:
    """The type of the exception at the end of a traceback."""
    names = [found[1] for line in words.splitlines() if (found := _EXCEPTION.match(line)) and "." not in line[:1]]
    return names[-1] if names else ""


def _last_line(words: str) -> str:
    """The last line of standard error; of a JSON log its message."""
    lines = [line for line in words.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    if line.startswith('{"time"'):
        with contextlib.suppress(ValueError):
            line = f"error: {json.loads(line)['message']}"
    return line[:300]


def _bytes(path: Path) -> bytes:
    """What a case printed; of very much the beginning and the end."""
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    return data if len(data) <= READ_BYTES else data[:READ_BYTES] + b"\n" + data[-10_000:]
