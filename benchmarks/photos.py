"""What do photos of 12 and 50 megapixels cost? `python benchmarks/photos.py`, or other sizes: `--megapixels 1 25`.

Each size runs in a process of its own: preset `best` with 4 denoising steps (`--steps small`) or with its own number of
steps (`--steps full`), quality control on, the embedded demo models, one thread. A small photo warms the process up;
then one photo is generated, scored and encoded as a job's worker does it. Prints the CPU seconds of each stage, and the
largest resident memory of each above that of the warm process, which holds the models. Both are at most linear in
pixels, and the memory of 50 megapixels is below 1.5 GB.
"""

import argparse
import io
import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STEPS = {"small": {"steps": 4}, "full": {}}
"""Switches of the method."""
MB = 1024**2


def photo(megapixels: float) -> bytes:
    """A PNG of 4 to 3 with soft textures, a little grain and two things in front."""
    import cv2
    import numpy as np
    from PIL import Image

    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(megapixels * 1e6 / height)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (60, 80, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (width // 3, height // 2), height // 5, (200, 60, 40), -1)
    cv2.rectangle(image, (width * 3 // 5, height // 4), (width * 4 // 5, height * 3 // 4), (30, 90, 160), -1)
    for rows in np.array_split(image, 16):
        np.add(rows, rng.integers(0, 5, rows.shape, np.uint8), out=rows)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory, or the most since the last reset."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@contextmanager
def measured(into: dict[str, Any], base: int) -> Iterator[None]:
    """Measure CPU seconds and the largest memory above `base` of what is done inside; torch's memory counts."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    cpu, wall = time.process_time(), time.monotonic()
    try:
        yield
    finally:
        into["cpu_s"] = round(time.process_time() - cpu, 2)
        into["wall_s"] = round(time.monotonic() - wall, 2)
        into["peak_mb"] = round((resident(peak=True) - base) / MB)


def measure(megapixels: float, method: dict[str, Any]) -> dict[str, Any]:
    """Make one pair of a photo in this process."""
    from stereo_jobs.data.shards import encode_pair
    from stereo_jobs.models.resolve import resolve_recipe
    from stereo_jobs.pipeline.scoring import score_pair, use_one_thread
    from stereo_jobs.records import Row, StereoPair
    from stereo_jobs.spec import Recipe
    from stereo_jobs.workers.worker import load_generator

    recipe = resolve_recipe(Recipe.model_validate({"mode": "image", "method": {"preset": "best"} | method}))
    generator = load_generator(recipe, "cpu", 1)
    use_one_thread()

    def make(data: bytes, base: int) -> dict[str, Any]:
        report: dict[str, Any] = {"generate": {}, "score": {}, "encode": {}}
        with measured(report["generate"], base):
            (pair,) = generator.generate([Row("photo", "", "", 7, 8.0, {"image": data})])
        assert isinstance(pair, StereoPair), pair
        with measured(report["score"], base):
            report["accepted"] = score_pair(pair, recipe.quality)["accepted"]
        with measured(report["encode"], base):
            encode_pair(pair)
        return report

    make(photo(0.25), 0)
    data = photo(megapixels)
    report = make(data, resident())
    stages = [report[name] for name in ("generate", "score", "encode")]
    report |= {"cpu_s": round(sum(s["cpu_s"] for s in stages), 2), "peak_mb": max(s["peak_mb"] for s in stages)}
    return {"megapixels": megapixels, **report}


def table(reports: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| photo | CPU s | generate | score | encode | CPU s/MP | peak MB | generate | score | encode |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in reports:
        cpu, peak = ([r[stage][key] for stage in ("generate", "score", "encode")] for key in ("cpu_s", "peak_mb"))
        cells = [
            f"{r['megapixels']:g} MP",
            r["cpu_s"],
            *cpu,
            round(r["cpu_s"] / r["megapixels"], 2),
            r["peak_mb"],
            *peak,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[12, 50])
    parser.add_argument("--steps", choices=STEPS, default="small")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    reports = []
    for megapixels in options.megapixels:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            reports.append(process.apply(measure, (megapixels, STEPS[options.steps])))
        print(json.dumps(reports[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")
    print(table(reports))


if __name__ == "__main__":
    main()
