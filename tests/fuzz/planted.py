"""Faults on purpose, one of each that this program looks for: proof that it finds them."""

import ctypes
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.cases import Record


def _traceback(record: Record) -> None:
    sys.stderr.write("Traceback (most recent call last):\nValueError: planted\n")


def _exit(record: Record) -> None:
    print("error: planted", file=sys.stderr)
    record.step("planted", 1)


def _signal(record: Record) -> None:
    ctypes.string_at(0)


def _hang(record: Record) -> None:
    time.sleep(3600)


def _memory(record: Record) -> None:
    held = [b"x" * (1 << 20) for _ in range(300)]
    time.sleep(3600 + len(held))


def _output(record: Record) -> None:
    while True:
        print("x" * 10_000)


def _control(record: Record) -> None:
    print("\x1b[31mplanted")


def _own(record: Record) -> None:
    record.find("picture", "planted: as a case says it")


def _broken(record: Record) -> None:
    raise RuntimeError("planted")


FAULTS: dict[str, Callable[[Record], None]] = {
    "traceback": _traceback,
    "exit": _exit,
    "signal": _signal,
    "hang": _hang,
    "memory": _memory,
    "output": _output,
    "control": _control,
    "picture": _own,
    "broken test": _broken,
}
"""What the judge calls it, and a function that does it. `broken test` also shows a traceback."""


def work(rng: random.Random, folder: Path, record: Record) -> None:
    """Do one of the faults, or nothing."""
    name = rng.choice([*FAULTS, "nothing"])
    record.note(name)
    FAULTS.get(name, lambda record: None)(record)
