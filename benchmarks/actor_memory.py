"""Peak memory of an actor, and whether it grows: `python benchmarks/actor_memory.py [--sizes sd15 sdxl] [--rows 300]`.

Networks of the true sizes with random weights in float32 on one CPU thread, and a pair of preset `best` in text mode,
from the prompt to its images, without quality control. Each size is a process of its own:

    sd15    Stable Diffusion 1.5 at 512 x 512
    sdxl    a U-Net of SDXL's blocks (without its extra conditions, which this package does not feed), SDXL's larger
            text encoder and the VAE, at 512 x 512

The pair takes two steps, since one evaluation takes 10 s or more. What is kept of the left view in the steps of a whole
run is calculated and stated beside the measured peak: it is the only thing that grows with the steps.

`--rows` makes so many pairs of a tiny checkpoint in one `--local` run with quality control, and compares what the
process holds after a sixth of them with what it holds in the end. The exit code is 1 if it grew by more than 50 MB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from benchmarks.photos import resident
from stereo_jobs.models import stable_diffusion
from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.records import Row, StereoPair
from stereo_jobs.run.driver import RunProgress, run
from stereo_jobs.spec import DepthSpec, Recipe
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.stereo.attention import InputRecorder
from stereo_jobs.stereo.config import MethodConfig
from tests.models import tiny

GB, MB = 1e9, 1e6
MAX_GROWTH_MB = 50
WARM_SHARE = 1 / 6
SDXL: dict[str, dict[str, Any]] = {
    "unet/config.json": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "cross_attention_dim": 1280,
        "sample_size": 128,
    },
    "text_encoder/config.json": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
    "vae/config.json": {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
}
"""What stabilityai/stable-diffusion-xl-base-1.0 has otherwise than Stable Diffusion 1.5."""


def filled(network: nn.Module) -> nn.Module:
    """Give a network that has no memory yet small random weights: faster than its own initialisation."""
    network.to_empty(device="cpu")
    for values in network.parameters():
        values.data.uniform_(-0.02, 0.02) if values.ndim > 1 else values.data.fill_(0.1)
    for name, values in network.named_buffers():
        values.data.copy_(torch.arange(values.numel()).reshape(values.shape) if "ids" in name else values.zero_())
    return network.eval().requires_grad_(False)


def random_checkpoint(changes: dict[str, dict[str, Any]]) -> StableDiffusion:
    """Stable Diffusion 1.5 with some config values changed, made in memory."""

    def made(kind: type, folder: Path, dtype: torch.dtype, device: str, **_: Any) -> nn.Module:
        with torch.device("meta"):
            network = tiny.network(folder.name, json.loads((folder / "config.json").read_text()))
        return filled(network)

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, patch.object(stable_diffusion, "load_part", made):
        folder = Path(name)
        for file, content in tiny.configs("sd1", full=True).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(json.dumps(content | changes.get(file, {})))
        tiny.write_tokenizer(folder / "tokenizer")
        return StableDiffusion(folder, torch.float32, "cpu")


def peak_of_a_pair(size: str) -> dict[str, Any]:
    """Load the networks of a size in this process, make a pair, and say what it held."""
    torch.set_num_threads(1)
    before = resident()
    sd = random_checkpoint(SDXL if size == "sdxl" else {})
    short = {"steps": 2, "shift_step": 0, "attention_step": 0}
    sizes = {"width": 512, "height": 512}
    recipe = resolve_recipe(Recipe.model_validate({"method": short, "size": sizes, "quality": {"enabled": False}}))
    assert isinstance(recipe.models.depth, DepthSpec)
    generator = PairGenerator(sd, DepthEstimator.load(recipe.models.depth, "cpu"), recipe, 1)
    loaded = resident(peak=True)
    kept: list[int] = []
    observed = InputRecorder.__call__

    def keep(self: InputRecorder, layer: str, hidden_states: torch.Tensor) -> None:
        observed(self, layer, hidden_states)
        kept.append(hidden_states[-1:].nbytes)

    began = time.process_time()
    with patch.object(InputRecorder, "__call__", keep):
        [made] = generator.generate([Row("r", "a red circle", "", 1, 8.0)])
    assert isinstance(made, StereoPair), made
    steps = {preset: MethodConfig(preset=preset) for preset in ("best", "official")}
    a_step = sum(kept) / short["steps"]
    return {
        "size": size,
        "weights": {
            name: sum(p.numel() for p in getattr(sd, name).parameters()) for name in tiny._STEMS if hasattr(sd, name)
        },
        "imports_gb": before / GB,
        "loaded_gb": loaded / GB,
        "peak_gb": resident(peak=True) / GB,
        "kept_gb": {
            preset: (m.steps - m.attention_start) * a_step * (1 if m.pair_guidance_scale == 1 else 2) / GB
            for preset, m in steps.items()
        },
        "cpu_s": time.process_time() - began,
    }


def growth(rows: int) -> dict[str, Any]:
    """Make many pairs of a tiny checkpoint in one run of this process, and follow its memory."""
    process = psutil.Process()
    seen: list[tuple[int, int, int]] = []

    def watch(progress: RunProgress) -> None:
        if not seen or progress.done > seen[-1][0]:
            seen.append((progress.done, process.memory_info().rss, process.num_threads()))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = tiny.write_checkpoint(folder / "sd", "sd1")
        columns = {
            "id": [f"{i:05d}" for i in range(rows)],
            "prompt": ["a red circle"] * rows,
            "seed": list(range(rows)),
        }
        pq.write_table(pa.table(columns), folder / "rows.parquet")
        recipe = {
            "models": {"stable_diffusion": {"path": str(checkpoint)}, "depth": {"path": "demo"}},
            "method": {"steps": 3, "shift_step": 0, "attention_step": 0},
            "size": {"width": 64, "height": 64},
        }
        runtime = {"shard_rows": 10, "batch_size": 2, "lease_ttl_s": 0, "max_failure_ratio": 1}
        spec = parse_spec(
            {
                "manifest": str(folder / "rows.parquet"),
                "output": str(folder / "out"),
                "recipe": recipe,
                "runtime": runtime,
            }
        )
        run(spec, local=True, watch=watch)
    warm = next(each for each in seen if each[0] >= WARM_SHARE * rows)
    last = seen[-1]
    names = ("rows", "rss_mb", "threads")
    warm_mb, last_mb = (
        dict(zip(names, (n, round(rss / MB), threads), strict=True)) for n, rss, threads in (warm, last)
    )
    return {"warm": warm_mb, "last": last_mb, "growth_mb": last_mb["rss_mb"] - warm_mb["rss_mb"]}


def in_own_process(size: str) -> dict[str, Any]:
    """Measure one size in a process that has held nothing before."""
    command = [sys.executable, __file__, "--one", size]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(peaks: list[dict[str, Any]]) -> str:
    """Markdown: what an actor holds, in GB."""
    lines = [
        "| float32, one pair | weights, billions | imports | with models | peak of a pair | kept by best, official |",
        "|---" + "|---:" * 5 + "|",
    ]
    for one in peaks:
        cells = [
            f"{sum(one['weights'].values()) / 1e9:.2f}",
            *(f"{one[f'{k}_gb']:.1f}" for k in ("imports", "loaded", "peak")),
        ]
        kept = ", ".join(f"{value:.1f}" for value in one["kept_gb"].values())
        lines.append(f"| {one['size']} | {' | '.join(cells)} | {kept} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=["sd15", "sdxl"], default=["sd15"], help="sdxl needs 17 GB")
    parser.add_argument("--rows", type=int, default=300, help="0: only the sizes")
    parser.add_argument("--one", choices=["sd15", "sdxl"], help="measure this size in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(peak_of_a_pair(options.one)))
        return 0
    result: dict[str, Any] = {"peaks": [in_own_process(size) for size in options.sizes]}
    grew = False
    if options.rows:
        result["growth"] = growth(options.rows)
        grew = result["growth"]["growth_mb"] > MAX_GROWTH_MB
    print(table(result["peaks"]) + "\n")
    print(json.dumps(result))
    return int(grew)


if __name__ == "__main__":
    sys.exit(main())
