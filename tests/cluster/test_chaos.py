"""Short forms of `python -m tests.chaos`."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.waiting import PATIENCE_S


def chaos(*options: object, timeout: float) -> dict:
    """What it reports; it must find nothing wrong."""
    command = [sys.executable, "-m", "tests.chaos", *map(str, options)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_few_faults_of_all_kinds():
    plan = ["actor_killed", "store_away", "node_killed", "driver_killed"]
    # The seed is one of short pauses: two seconds between them, and no store for three.
    report = chaos("--plan", *plan, "--seed", 1540, "--rows", 50, timeout=PATIENCE_S)
    assert report["faults"] == dict.fromkeys(plan, 1)
    assert (report["rows"], report["rows_failed"]) == (report["jobs"] * 50, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_faults():
    report = chaos("--faults", 6, "--seed", 7, "--rows", 60, timeout=840)
    assert sum(report["faults"].values()) == 6
    assert report["rows"] + report["rows_failed"] == report["jobs"] * 60
