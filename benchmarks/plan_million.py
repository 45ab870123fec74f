"""Plans a job of a million rows: seconds and peak memory of the whole process.

    python benchmarks/plan_million.py [--rows 1000000] [--files 8] [--dry-run]

Prints one JSON object; exits 1 beyond 60 s or 300 MB. With --dry-run every row is read and checked, and nothing is
written.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S, LIMIT_MB = 60, 300


def write_manifest(folder: Path, rows: int, files: int) -> None:
    """Prompts as people have them: some thirty characters, ids of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    per_file = -(-rows // files)
    for i in range(files):
        span = range(i * per_file, min(rows, (i + 1) * per_file))
        table = pa.table(
            {
                "id": [f"prompt-{n:09d}" for n in span],
                "prompt": [f"a photograph of thing number {n}" for n in span],
            }
        )
        pq.write_table(table, folder / f"part-{i:03d}.parquet", row_group_size=50_000)


def main() -> int:
    """Measure `stereo-jobs plan` as a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "manifest").mkdir()
        write = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import plan_million as p; "]
        write[-1] += "from pathlib import Path; p.write_manifest(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))"
        here = str(Path(__file__).parent)
        subprocess.run([*write, here, str(folder / "manifest"), str(arguments.rows), str(arguments.files)], check=True)
        spec = folder / "job.json"
        spec.write_text(json.dumps({"manifest": str(folder / "manifest"), "output": str(folder / "out")}))
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        started = time.monotonic()
        process = subprocess.Popen(
            [Path(sys.executable).with_name("stereo-jobs"), "plan", spec, *["--dry-run"] * arguments.dry_run],
            stdout=subprocess.DEVNULL,
        )
        peak_kb = watch(process)
        seconds = time.monotonic() - started
        size = sum(path.stat().st_size for path in (folder / "out/_job").glob("*"))
    result = {
        "rows": arguments.rows,
        "seconds": round(seconds, 1),
        "peak_mb": round(peak_kb / 1024),
        "plan_bytes": size,
        "exit": process.returncode,
        "other_children_mb": round(before / 1024),
    }
    print(json.dumps(result))
    return int(process.returncode != 0 or seconds > LIMIT_S or peak_kb / 1024 > LIMIT_MB)


def watch(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process; its peak resident memory in kB, as Linux counts it."""
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.02)
    process.wait()
    return peak


if __name__ == "__main__":
    sys.exit(main())
