"""Measures this machine's GPU in at most eight minutes; `benchmarks/gpu.sh` sets up and calls it.

Every section of `benchmarks/gpu_sections.py` runs in a process of its own, with a limit on its seconds: one that fails
or hangs costs no other. After each of them `gpu.json` and `gpu.md` are written with what is known by then.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "benchmarks.gpu_sections"]
LIMITS = {"machine": 40, "sd15": 60, "tests": 130, "job": 110, "sdxl": 60, "compile": 100}
"""Seconds that a section may take, in the order in which they run: the most telling first. Tiny ones have no limit,
since a machine without a GPU may be slow."""
RESERVE_S = 5.0
"""Seconds at the end in which nothing is begun any more."""


class Section(NamedTuple):
    """What a section found.

    Attributes:
        name: name of the section.
        state: `done`, `cut` or `skipped` for lack of time, or `failed` with its last line.
        seconds: what it took.
        facts: what it found until then.
    """

    name: str
    state: str
    seconds: float
    facts: list[dict[str, Any]]


def run_section(name: str, folder: Path, limit_s: float, tiny: bool) -> Section:
    """Run a section in a process of its own, and end it with all its children when its time is over."""
    facts, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    facts.unlink(missing_ok=True)
    words = [*PROGRAM, name, str(facts), f"{time.time() + limit_s:.1f}", *["--tiny"] * tiny]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            words, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
            state = "done" if code == 0 else f"failed: {last_line(log)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = f"cut after {limit_s:.0f} s"
    return Section(name, state, time.monotonic() - began, read_facts(facts))


def read_facts(path: Path) -> list[dict[str, Any]]:
    """The facts that a section has written; a last line that is not complete is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def merged(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """All facts of a section in one object."""
    return {name: value for fact in facts for name, value in fact.items()}


# --- Markdown ---


def markdown(sections: list[Section]) -> str:
    """What the sections found, as tables."""
    found = {section.name: section.facts for section in sections}
    parts = [_machine_lines(found.get("machine", [])), _unet_table([*found.get("sd15", []), *found.get("sdxl", [])])]
    parts += [_job_lines(merged(found.get("job", []))), _compile_table(found.get("compile", []))]
    tests = merged(found.get("tests", [])).get("tests", {})
    parts.append([f"Tests that need a GPU: {', '.join(f'{count} {name.lower()}' for name, count in tests.items())}."])
    parts.append(
        ["| section | state | seconds |", "|---|---|---:|"]
        + [f"| {section.name} | {section.state} | {section.seconds:.0f} |" for section in sections]
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _machine_lines(facts: list[dict[str, Any]]) -> list[str]:
    known = merged(facts)
    memory = f", {known['gpu_bytes'] / 1e9:.0f} GB" if "gpu_bytes" in known else ""
    peaks = {name.removeprefix("matmul_"): value for name, value in known.items() if name.startswith("matmul_")}
    return [
        f"{known.get('device', 'unknown')}{memory}, {known.get('cores')} cores, PyTorch {known.get('torch')}, CUDA "
        f"{known.get('cuda')}. Large matrix products: "
        + ", ".join(f"{name} {value / 1e12:.3g} TFLOP/s" for name, value in peaks.items())
        + "."
    ]


def _unet_table(facts: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| U-Net | precision | batch | evaluations/s | share of matmul peak | peak GB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    rows = [fact for fact in facts if "batch" in fact]
    for fact in sorted(rows, key=lambda fact: (fact["network"], fact["dtype"], fact["batch"])):
        name = f"| {fact['network']} | {fact['dtype']} | {fact['batch']} |"
        if "error" in fact:
            lines.append(f"{name} {fact['error']} | | |")
        else:
            memory = f"{fact['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in fact else ""
            lines.append(f"{name} {fact['evaluations_per_s']:.1f} | {fact['share']:.2f} | {memory} |")
    return lines


def _job_lines(known: dict[str, Any]) -> list[str]:
    if "busy" not in known:
        return ["Job: not measured."]
    busy = (
        f"Job, SD 1.5 size, {known['dtype']}, batches of {known['batch']}: models busy {known['busy']:.2f} of the time"
    )
    used = f", GPU utilisation {known['gpu_utilisation']:.2f}" if "gpu_utilisation" in known else ""
    memory = f", {known['gpu_bytes'] / 1e9:.1f} GB reserved" if "gpu_bytes" in known else ""
    return [f"{busy}{used}, {known['batch_s'] / known['batch']:.3f} s a pair in the models{memory}."]


def _compile_table(facts: list[dict[str, Any]]) -> list[str]:
    lines = ["| torch.compile, SD 1.5 size | evaluations/s | first call, s |", "|---|--:|--:|"]
    for fact in facts:
        speed = fact.get("error") or f"{fact['evaluations_per_s']:.1f}"
        lines.append(f"| {fact['compile']} | {speed} | {fact.get('first_s', '')} |")
    return lines


def write(folder: Path, sections: list[Section]) -> None:
    """Write `gpu.json` and `gpu.md` with what is known so far."""
    (folder / "gpu.json").write_text(json.dumps({s.name: s._asdict() for s in sections}, indent=2), encoding="utf-8")
    (folder / "gpu.md").write_text(markdown(sections), encoding="utf-8")


def measure(folder: Path, names: list[str], seconds: float, tiny: bool) -> list[Section]:
    """Run sections one after another within a time; write the results after each."""
    until, sections = time.monotonic() + seconds - RESERVE_S, list[Section]()
    for name in names:
        left = until - time.monotonic()
        if left < RESERVE_S:
            sections.append(Section(name, "skipped: no time left", 0.0, []))
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            sections.append(run_section(name, folder, left if tiny else min(left, LIMITS[name]), tiny))
            print(f"{name} {sections[-1].state}, {sections[-1].seconds:.0f} s", file=sys.stderr, flush=True)
        write(folder, sections)
    return sections


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder for gpu.json, gpu.md and logs")
    parser.add_argument("--seconds", type=float, default=470, help="time for all sections together")
    parser.add_argument("--section", nargs="+", choices=LIMITS, default=list(LIMITS), help="which sections to run")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, also without a GPU: to try the script out")
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sections = measure(folder, options.section, options.seconds, options.tiny)
    print((folder / "gpu.md").read_text(encoding="utf-8"))
    return int(any(section.state.startswith("failed") for section in sections))


if __name__ == "__main__":
    sys.exit(main())
