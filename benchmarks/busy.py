"""How busy does a job keep its accelerator? `python benchmarks/busy.py --seconds 1 0.5`

One worker in this process, with one accelerator that is played: it sleeps so long for each pair. All else is real:
rows are read from Parquet and their photos decoded, pairs of ToyScapes are measured, judged, encoded and committed.
`--s3` puts the output on an S3 server on loopback (SeaweedFS) that takes 50 ms longer for each request.

The busy share is the time that the accelerator was at work, of the time from its first batch to the end of the job,
when all pairs are committed. `after it` is how long that took after its last batch. Prints a table, and the same as
JSON.
"""

import argparse
import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.quality_cost import FIRST_SEED, pair_of
from stereo_jobs.data.images import encode_png
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.pipeline.inputs import DecodedRow
from stereo_jobs.pipeline.left_view import Guidance
from stereo_jobs.records import LeftDepth, ModelScores, RowError, StereoPair
from stereo_jobs.run.driver import run
from stereo_jobs.spec import JobSpec, Recipe
from stereo_jobs.spec_reading import parse_spec
from tests import fault_proxy, seaweed

SCENES = 4
"""Different pairs that the accelerator makes in turn."""
SHARE = 0.08
"""Largest disparity over the width."""


def finished_pair(seed: int, size: int) -> StereoPair:
    """A pair as the models would give it: that of the benchmark of quality control."""
    pair = pair_of(seed, size, SHARE)
    return StereoPair(
        id="",
        left=pair["left"],
        right=pair["right"],
        disparity=pair["disparity"],
        disparity_requested=None,
        disparity_of="left",
        mask_nonocc_left=pair["nonocc_left"],
        mask_hole_right=pair["hole_right"],
        mask_border_right=np.zeros_like(pair["hole_right"]),
        unet_evaluations=31,
        raw_right=pair["raw_right"],
        left_psnr=100.0,
        model_scores=ModelScores(LeftDepth(pair["depth"], pair["mirrored_depth"])),
    )


class Accelerator(PairGenerator):
    """Decodes rows as ever; what runs on the device is a sleep."""

    seconds = 0.0
    pairs: list[StereoPair]
    worked: list[tuple[float, float]]

    def _generate(self, decoded: list[DecodedRow], guidance: Guidance) -> list[StereoPair | RowError]:
        began = time.monotonic()
        time.sleep(self.seconds * len(decoded))
        self.worked.append((began, time.monotonic()))
        return [dataclasses.replace(self.pairs[one.row.seed % SCENES], id=one.row.id) for one in decoded]


def write_manifest(folder: Path, rows: int, pairs: list[StereoPair]) -> str:
    photos = [encode_png(pair.left) for pair in pairs]
    columns = {
        "id": [f"{i:05d}" for i in range(rows)],
        "image": [photos[i % SCENES] for i in range(rows)],
        "seed": list(range(rows)),
    }
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=16)
    return str(path)


@contextlib.contextmanager
def output(folder: Path, delay_s: float | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a job writes, and how it gets there."""
    if delay_s is None:
        yield str(folder / "out"), {}
        return
    with seaweed.serve() as endpoint, fault_proxy.FaultProxy(endpoint).serving() as proxy:
        proxy.delay_s = delay_s
        yield f"s3://{seaweed.BUCKET}/out", {"endpoint_url": proxy.endpoint}


def measure(seconds: float, pairs: list[StereoPair], options: argparse.Namespace) -> dict[str, Any]:
    """Run one job."""
    worked: list[tuple[float, float]] = []

    def load(recipe: Recipe, device: str, batch_size: int) -> Accelerator:
        torch.set_num_threads(1)
        accelerator = Accelerator.load(recipe, "cpu", batch_size)
        accelerator.seconds, accelerator.pairs, accelerator.worked = seconds, pairs, worked
        return accelerator

    with tempfile.TemporaryDirectory() as name, output(Path(name), 0.05 if options.s3 else None) as (place, storage):
        size = options.size
        spec: JobSpec = parse_spec(
            {
                "manifest": write_manifest(Path(name), options.rows, pairs),
                "output": place,
                "recipe": {"mode": "image", "size": {"height": size, "width": size}},
                "runtime": {"batch_size": 4, "shard_rows": options.shard_rows, "storage": storage, "device": "cpu"},
            }
        )
        spent = time.process_time()
        run(spec, local=True, load=load)
        ended, spent = time.monotonic(), time.process_time() - spent
    first, last = worked[0][0], worked[-1][1]
    return {
        "seconds a pair": seconds,
        "busy share": round(sum(end - begin for begin, end in worked) / (ended - first), 4),
        "after it": round(ended - last, 2),
        "CPU s a pair": round(spent / options.rows, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 0.5], help="of the accelerator, a pair")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--shard-rows", type=int, default=16)
    parser.add_argument("--s3", action="store_true", help="output on S3 that answers 50 ms later")
    options = parser.parse_args()
    pairs = [finished_pair(FIRST_SEED + n, options.size) for n in range(SCENES)]
    rows = [measure(seconds, pairs, options) for seconds in options.seconds]
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n" + "|---:" * len(names) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    print(json.dumps({"size": options.size, "rows": options.rows, "s3": options.s3, "results": rows}))


if __name__ == "__main__":
    main()
