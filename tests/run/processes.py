"""Run jobs in processes of their own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from stereo_jobs.spec import JobSpec
from tests.conftest import REPOSITORY
from tests.waiting import PATIENCE_S


def start(
    spec: JobSpec, folder: Path, *options: str, errors: IO | int = subprocess.PIPE, **environment: str
) -> subprocess.Popen:
    """Start `python -m tests.run.killed` on a spec. The caller ends it. If it logs a lot, `errors` must be a file."""
    path = folder / f"spec-{os.urandom(4).hex()}.json"
    path.write_text(spec.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-m", "tests.run.killed", str(path), *options],
        env=os.environ | environment,
        cwd=REPOSITORY,
        stderr=errors,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a run; return its exit code and its log."""
    _, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said


def loads(text: str) -> dict:
    """Parse the one JSON object that a verb printed."""
    return dict(json.loads(text))


def killed_in_the_middle(spec: JobSpec, folder: Path) -> None:
    """Start a run with the real models, and kill it once it has begun to write its dataset."""
    process = start(spec, folder, "--real")
    deadline = time.monotonic() + PATIENCE_S
    while not Path(spec.output, "data").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    finish(process)
