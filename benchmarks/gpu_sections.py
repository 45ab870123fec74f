"""What `benchmarks/gpu.py` measures: each section in a process of its own, so that one that hangs costs no other.

A section yields facts one after another. Each is written at once, and what a section had found before it was cut is
kept.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from stereo_jobs.models.flops import elapsed, matmul_peak, network_flops, unet_inputs
from stereo_jobs.pipeline.batching import Generator
from stereo_jobs.run.driver import run
from stereo_jobs.spec import Dtype, Recipe, StorageSpec
from stereo_jobs.spec_reading import parse_spec
from stereo_jobs.toyscapes.manifest import write_manifest
from stereo_jobs.workers.worker import load_generator
from tests.models.tiny import configs, write_checkpoint

REPOSITORY = Path(__file__).parent.parent
DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")
BATCHES: dict[Dtype, Sequence[int]] = {"float16": (8, 1, 2, 4, 16, 32), "bfloat16": (8, 1, 32), "float32": (8,)}
"""Batches by precision, the most telling one first: a section may be cut."""
GPU_TESTS = ("tests/test_gpu.py", "tests/quality/test_lpips.py")
LAST_S = 8.0
"""Seconds before its end in which a section begins no other measurement."""
END_S = 20.0
"""Seconds before the end of its section in which a job begins no other batch, so that its last pairs are written."""
MEASURE_S = 1.5
"""Seconds for which a call is repeated, about."""
_SDXL = {
    # unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
_TINY_SDXL = {
    "addition_time_embed_dim": 8,
    "attention_head_dim": [1, 2, 2],
    "block_out_channels": [32, 64, 64],
    "cross_attention_dim": 48,
    "projection_class_embeddings_input_dim": 64,
    "sample_size": 8,
    "transformer_layers_per_block": 1,
}

Facts = Iterator[dict[str, Any]]


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
        tiny: small networks and few rows, to try the script out.
        until: when the section is cut, in seconds since the epoch.
    """

    tiny: bool
    until: float

    @property
    def left_s(self) -> float:
        """Seconds that are left of the section's time."""
        return self.until - time.time()

    @property
    def device(self) -> str:
        """`cuda` where there is a GPU."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def unet_config(self, kind: str) -> dict[str, Any]:
        """Config of the U-Net of `sd15` or `sdxl`."""
        if kind == "sd15":
            return configs("sd1", full=not self.tiny)["unet/config.json"]
        return _SDXL | (_TINY_SDXL if self.tiny else {})

    def batches(self, dtype: Dtype) -> Sequence[int]:
        return (1, 2) if self.tiny else BATCHES[dtype]


# --- Sections ---


def machine(plan: Plan) -> Facts:
    """Name, memory and libraries of the machine, and the matmul peak by precision."""
    found: dict[str, Any] = {"device": "cpu", "python": sys.version.split()[0], "torch": torch.__version__}
    found |= {"cuda": torch.version.cuda, "cores": os.cpu_count()}
    if plan.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "gpu_bytes": properties.total_memory}
    yield found
    for dtype in DTYPES:
        yield {f"matmul_{dtype}": matmul_peak(plan.device, dtype)}


def tests(plan: Plan) -> Facts:
    """The tests that need a GPU; without one they are all skipped."""
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--color=no", "-p", "no:cacheprovider", *GPU_TESTS]
    began, counts = time.monotonic(), dict.fromkeys(("PASSED", "FAILED", "ERROR", "SKIPPED"), 0)
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            outcome = next((word for word in line.split() if word in counts), None)
            if "::" in line and "%]" in line and outcome:
                counts[outcome] += 1
                yield {"tests": counts | {"seconds": round(time.monotonic() - began, 1)}}


def unet(plan: Plan, kind: str) -> Facts:
    """Evaluations a second of a U-Net with random weights, by precision and batch; peak memory; share of the peak."""
    config = plan.unet_config(kind)
    size = config["sample_size"]
    flops = network_flops(config, configs("sd1", full=not plan.tiny)["vae/config.json"], 8 * size, 8 * size).unet
    yield {"network": kind, "unet_flops": flops}
    for dtype in DTYPES:
        peak = matmul_peak(plan.device, dtype)
        network = _random_unet(plan, config, dtype)
        for batch in plan.batches(dtype):
            if plan.left_s < LAST_S:
                return
            fact: dict[str, Any] = {"network": kind, "dtype": dtype, "batch": batch}
            try:
                fact |= _measured(plan.device, network, batch, size)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                yield fact | {"error": "out of memory"}
                continue
            yield fact | {"share": fact["evaluations_per_s"] * flops / peak}
        del network


def compiled(plan: Plan) -> Facts:
    """The same U-Net without `torch.compile`, with it, and with CUDA graphs; the seconds of the first call."""
    dtype = DTYPES[0]
    # Without a GPU nothing is compiled, only traced: a CPU's kernels would take minutes and say nothing about a GPU.
    options: dict[str, dict[str, Any]] = {"off": {}, "default": {"backend": "eager"}}
    if plan.device == "cuda":
        options = {"off": {}, "default": {"mode": "default"}, "CUDA graphs": {"mode": "reduce-overhead"}}
    for name, chosen in options.items():
        fact: dict[str, Any] = {"compile": name, "dtype": dtype, "batch": plan.batches(dtype)[0]}
        try:
            yield fact | _compiled(plan, dtype, fact["batch"], chosen)
        except Exception as error:  # no compiler, for example
            yield fact | {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}


def _compiled(plan: Plan, dtype: Dtype, batch: int, options: dict[str, Any]) -> dict[str, Any]:
    """Evaluations a second of the SD 1.5 U-Net, compiled with some options, or as it is without any."""
    config = plan.unet_config("sd15")
    network, size = _random_unet(plan, config, dtype), config["sample_size"]
    if options:
        network.compile(dynamic=False, **options)
    inputs = unet_inputs(network, batch, (size, size))
    with torch.no_grad():
        first_s = elapsed(plan.device, lambda: network(**inputs))
    return {"first_s": round(first_s, 2)} | _measured(plan.device, network, batch, size)


def job(plan: Plan) -> Facts:
    """A real job on a checkpoint with random weights: share of the time in which the models worked, pairs a second."""
    dtype: Dtype = "float32" if plan.device == "cpu" else "float16"
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        folder = Path(name)
        began = time.monotonic()
        with torch.device(plan.device):  # where random numbers are drawn faster
            checkpoint = write_checkpoint(folder / "sd", "sd1", full=not plan.tiny, dtype=getattr(torch, dtype))
        if plan.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield {"checkpoint_s": round(time.monotonic() - began, 1)}
        rows, batch = (4, 2) if plan.tiny else (128, 8)
        write_manifest(str(folder / "rows.parquet"), StorageSpec(), rows=rows, mode="text")
        spec = parse_spec(
            {
                "manifest": str(folder / "rows.parquet"),
                "output": str(folder / "out"),
                "recipe": {
                    "models": {
                        "stable_diffusion": {"path": str(checkpoint), "dtype": dtype},
                        "depth": {"path": "demo"},
                    },
                    "method": {"steps": 2} if plan.tiny else {},
                },
                "runtime": {"batch_size": batch, "shard_rows": 2 * batch, "max_failure_ratio": 1, "lease_ttl_s": 0},
            }
        )
        clock = BusyClock(load_generator, until=plan.until - END_S)
        status = run(spec, local=True, load=clock.load)
        yield clock.facts() | {"pairs": status.succeeded, "failed": status.failed, "batch": batch, "dtype": dtype}


class BusyClock:
    """Notes when a generator works. After a while it only says that rows fail, so that the job ends in time.

    Args:
        load: loads the real generator.
        until: when that is, in seconds since the epoch.
    """

    def __init__(self, load: Callable[[Recipe, str, int], Generator], until: float) -> None:
        self._load, self._until = load, until
        self.spans: list[tuple[float, float]] = []
        self._monitor: subprocess.Popen[str] | None = None

    def load(self, recipe: Recipe, device: str, batch_size: int) -> Generator:
        generator = self._load(recipe, device, batch_size)
        generate = generator.generate

        def timed(rows: Any) -> Any:
            if not self.spans and self._monitor is None:
                self._monitor = _gpu_monitor()
            if time.time() > self._until:
                raise TimeoutError("the time for this section is over")
            began = time.monotonic()
            made = generate(rows)
            self.spans.append((began, time.monotonic()))
            return made

        generator.generate = timed  # type: ignore[method-assign]
        return generator

    def facts(self) -> dict[str, Any]:
        """Share of the time from the first batch to the last in which the models worked, without the first."""
        found: dict[str, Any] = {"batches": len(self.spans)}
        if len(self.spans) > 1:
            (_, first_end), (_, last_end) = self.spans[0], self.spans[-1]
            worked = sum(end - began for began, end in self.spans[1:])
            found |= {"busy": worked / (last_end - first_end), "batch_s": worked / (len(self.spans) - 1)}
        if torch.cuda.is_available():
            found["gpu_bytes"] = torch.cuda.max_memory_reserved()
        if self._monitor:
            self._monitor.terminate()
            percent = [int(line) for line in self._monitor.communicate()[0].split() if line.isdigit()]
            found |= {"gpu_utilisation": sum(percent) / len(percent) / 100} if percent else {}
        return found


# --- Helpers ---


def _random_unet(plan: Plan, config: dict[str, Any], dtype: Dtype) -> nn.Module:
    """A U-Net with random weights, made in its precision where it will compute."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(plan.device):
            network: nn.Module = UNet2DConditionModel.from_config(config)
    finally:
        torch.set_default_dtype(before)
    return network.eval().requires_grad_(False)


def _measured(device: str, network: nn.Module, batch: int, size: int) -> dict[str, Any]:
    """Evaluations a second of calls that follow each other, after two to warm up, and peak memory."""
    inputs = unet_inputs(network, batch, (size, size))

    def call(times: int) -> None:
        for _ in range(times):
            network(**inputs)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        call(1)
        times = max(1, min(50, round(MEASURE_S / elapsed(device, lambda: call(1)))))
        took_s = elapsed(device, lambda: call(times))
    found = {"evaluations_per_s": batch * times / took_s}
    return found | ({"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {})


def _gpu_monitor() -> "subprocess.Popen[str] | None":
    """A process that prints the GPU's utilisation in percent twice a second; None without nvidia-smi."""
    words = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
    try:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


SECTIONS: dict[str, Callable[[Plan], Facts]] = {
    "machine": machine,
    "sd15": lambda plan: unet(plan, "sd15"),
    "tests": tests,
    "job": job,
    "sdxl": lambda plan: unet(plan, "sdxl"),
    "compile": compiled,
}


def main(name: str, into: Path, plan: Plan) -> None:
    """Run a section and append its facts to a file, a JSON object a line."""
    with into.open("a", encoding="utf-8") as file:
        for fact in SECTIONS[name](plan):
            print(json.dumps(fact), file=file, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Plan(sys.argv[4:] == ["--tiny"], float(sys.argv[3])))
