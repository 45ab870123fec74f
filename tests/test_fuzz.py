"""A short form of `python -m tests.fuzz`: mutated inputs end in a result or a message, whatever they are."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.fuzz import images, manifests, specs
from tests.fuzz.cases import random_of
from tests.fuzz.planted import FAULTS


def fuzz(*words: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "tests.fuzz", "--json", *words]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=250, check=False)
    assert ended.stdout, ended.stderr.decode()
    return ended.returncode, json.loads(ended.stdout)


@pytest.mark.parametrize(("kind", "count"), [("manifests", 25), ("specs", 40), ("images", 150)])
def test_mutated_inputs_are_used_or_refused_with_a_message(kind, count):
    code, report = fuzz(f"--{kind}", str(count), "--seed", "1")
    assert report["cases"] == {kind: count}
    found = [f"{group['count']} {group['what']}: {group['cause']}: {group['first']}" for group in report["groups"]]
    assert (found, code) == ([], 0)


def test_every_fault_that_is_looked_for_is_found():
    code, report = fuzz("--planted", "30", "--seed", "6", "--timeout", "1", "--memory-mib", "200")
    assert code == 1
    firsts = {group["what"]: group["first"]["made"] for group in report["groups"]}
    assert set(firsts) == set(FAULTS)
    assert all(made == what for what, made in firsts.items())
    assert report["findings"] < 30


@pytest.mark.parametrize("number", [0, 3, 17])
def test_a_case_is_a_function_of_seed_kind_and_number(number):
    def made(seed):
        return (
            specs.make(random_of(seed, "specs", number)),
            manifests.make(random_of(seed, "manifests", number))[1],
            images.make(random_of(seed, "images", number))[0].data,
        )

    assert made(5) == made(5)
    assert made(5) != made(6)
