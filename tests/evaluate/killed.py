"""`python -m tests.evaluate.killed FOLDER`: an evaluation whose process is killed as its second case begins."""

import os
import signal
import sys

from tests.evaluate.test_evaluation import run, run_here

DONE: list[str] = []


def run_once(spec):
    """Runs one job; the second is never begun."""
    if DONE:
        os.kill(os.getpid(), signal.SIGKILL)
    DONE.append(spec.output)
    return run_here(spec)


if __name__ == "__main__":
    run(sys.argv[1], run_case=run_once)
