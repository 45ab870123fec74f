"""How long tests wait for what should take seconds: machines that run tests are often slow and busy."""

import time
from collections.abc import Callable

PATIENCE_S = 500.0
"""Seconds after which a test gives up waiting for a process, a file or a state. Less than pytest's own limit."""


def wait_until(true: Callable[[], object], what: str = "", every_s: float = 0.2) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not in {PATIENCE_S:g} s: {what or true}"
        time.sleep(every_s)
