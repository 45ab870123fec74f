"""Mutated inputs through the product: `python -m tests.fuzz --manifests 2000 --specs 1500 --images 4000 --seed 1`.

Each case runs in a process of its own. Findings are: a traceback; an exit code that is not documented; a hang; memory
over 1 GB above the start; control characters in what is printed; a picture that differs from what a second decoder
shows; a dataset that is not whole after a run that succeeded. Exit code 1 if there is any.

Case K of a kind is a function of the seed, the kind and K: `--seed 1 --only manifests:123` repeats one alone and shows
what it printed. Inputs of findings are kept in the folder `--keep`.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

# One thread in this process, so that forking is safe: libraries start theirs when they are imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.fuzz.cases import Finding, judge, run_case
from tests.fuzz.children import STDERR, STDOUT, Limits, run_all

KINDS = ("specs", "manifests", "images")
PLANTED = "planted"
"""A kind that is no part of the product: every fault that this program looks for, so that a test can see it found."""


class Results:
    """Counts and findings of the cases so far."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.slowest = (0.0, "")
        self.largest = (0, "")

    def groups(self) -> list[dict[str, Any]]:
        """Findings by what they are and what is likely to cause them, the most frequent first."""
        counts = Counter((f.what, f.cause) for f in self.findings)
        firsts = {(f.what, f.cause): f for f in reversed(self.findings)}
        return [
            {"what": what, "cause": cause, "count": count, "first": asdict(firsts[what, cause])}
            for (what, cause), count in counts.most_common()
        ]

    def as_json(self, seed: int, seconds: float) -> dict[str, Any]:
        return {
            "seed": seed,
            "cases": dict(self.cases),
            "exits": dict(sorted(self.exits.items())),
            "findings": len(self.findings),
            "by_kind": dict(Counter(f.case.partition(":")[0] for f in self.findings)),
            "groups": self.groups(),
            "slowest": {"seconds": round(self.slowest[0], 2), "case": self.slowest[1]},
            "largest": {"memory_mib": self.largest[0] >> 20, "case": self.largest[1]},
            "seconds": round(seconds, 1),
        }


def run_kind(kind: str, numbers: list[int], options: argparse.Namespace, root: Path, results: Results) -> None:
    """Run and judge cases of one kind; folders without a finding are removed."""
    module = importlib.import_module(f"tests.fuzz.{kind}")
    folders = {number: root / f"{kind}-{number}" for number in numbers}
    limits = Limits(options.timeout, options.memory_mib << 20)

    def cases():
        for number, folder in folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            yield number, folder

    work = partial(_work, module.work, options.seed, kind)
    for ended in run_all(cases(), work, options.jobs, limits):
        folder = folders[ended.number]
        found, record = judge(kind, ended, folder, kept=options.keep is not None)
        results.cases[kind] += 1
        results.exits.update(f"{name} {code}" for name, code in record["steps"])
        results.findings += found
        case = f"{kind}:{ended.number}"
        results.slowest = max(results.slowest, (ended.seconds, case))
        results.largest = max(results.largest, (ended.memory_bytes, case))
        if options.only:
            _show(folder, record)
        if not found and not options.only:
            shutil.rmtree(folder, ignore_errors=True)


def _work(work: Any, seed: int, kind: str, number: int, folder: Path) -> int:
    return run_case(work, seed, kind, number, folder)


def _show(folder: Path, record: dict[str, Any]) -> None:
    """What a single case was and printed, with nothing in it that a terminal obeys."""
    print(f"made: {record['made']}\nsteps: {record['steps']}")
    for name in (STDOUT, STDERR):
        text = (folder / name).read_bytes()[-20_000:].decode(errors="backslashreplace")
        print(f"--- {name}\n" + "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def _numbers(options: argparse.Namespace) -> dict[str, list[int]]:
    if options.only:
        kind, _, number = options.only.partition(":")
        return {kind: [int(number)]}
    return {kind: list(range(options.first, options.first + getattr(options, kind))) for kind in (*KINDS, PLANTED)}


def _print(report: dict[str, Any]) -> None:
    print(f"seed {report['seed']}: {report['cases']} cases in {report['seconds']} s; slowest {report['slowest']}")
    print(f"largest {report['largest']}; exits {report['exits']}")
    for group in report["groups"]:
        first = group["first"]
        print(f"{group['count']:5} {group['what']}: {group['cause']}")
        print(f"      first {first['case']} ({first['made'][:200]}) {first['detail'][:200]!a} {first['kept']}")
    print(f"{report['findings']} findings {report['by_kind'] or ''}".rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help=f"how many {kind}")
    parser.add_argument(f"--{PLANTED}", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case, with what it printed")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the inputs of findings there")
    parser.add_argument("--jobs", type=int, default=2, help="children at once")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds of a case, then it hangs")
    parser.add_argument("--memory-mib", type=int, default=1024, help="memory of a case above its start")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.only and options.only.partition(":")[0] not in (*KINDS, PLANTED):
        parser.error(f"--only KIND:NUMBER, where KIND is one of {', '.join(KINDS)}")
    started, results = time.monotonic(), Results()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = options.keep.resolve() if options.keep else Path(folder)
        for kind, numbers in _numbers(options).items():
            if numbers:
                run_kind(kind, numbers, options, root, results)
    report = results.as_json(options.seed, time.monotonic() - started)
    if options.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 1 if results.findings else 0


if __name__ == "__main__":
    sys.exit(main())
