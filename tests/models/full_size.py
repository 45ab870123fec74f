"""Stable Diffusion 1.5 at its published size with random weights: `python -m tests.models.full_size DTYPE`."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from stereo_jobs.models.stable_diffusion import StableDiffusion
from tests.models.tiny import write_checkpoint

SIZE = 512


def write(folder: Path) -> None:
    """Two bytes a weight: 2.1 GB."""
    write_checkpoint(folder, "sd1", full=True, dtype=torch.bfloat16)


def peak_gb() -> float:
    """Most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # KiB on Linux


@torch.inference_mode()
def measure(folder: Path, dtype: torch.dtype) -> dict[str, object]:
    """Load it and run every part once at 512x512."""
    facts: dict[str, object] = {"base_gb": peak_gb()}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        facts[f"{name}_s"] = round(time.perf_counter() - start, 2)
        facts[f"{name}_gb"] = round(peak_gb(), 2)

    with timed("load"):
        sd = StableDiffusion(folder, dtype, "cpu")
    for name in ("unet", "vae", "text_encoder"):
        facts[f"{name}_parameters"] = sum(weights.numel() for weights in getattr(sd, name).parameters())
    with timed("text"):
        text = sd.encode_prompts(["a red circle", ""])
    latents = torch.randn(2, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    with timed("unet"):
        predicted = sd.unet(latents.to(dtype), 500, text).sample
    with timed("decode"):
        images = sd.decode(latents[:1])
    with timed("encode"):
        encoded = sd.encode(images)
    shapes = {"predicted": predicted.shape, "images": images.shape, "encoded": encoded.shape, "text": text.shape}
    facts["shapes"] = {name: list(shape) for name, shape in shapes.items()}
    facts["finite"] = all(bool(tensor.isfinite().all()) for tensor in (predicted, images, encoded, text))
    return facts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        writer = get_context("spawn").Process(target=write, args=(Path(name),))  # its memory is not ours
        writer.start()
        writer.join()
        written = {"write_s": round(time.perf_counter() - start, 2)}
        print(json.dumps(written | measure(Path(name), getattr(torch, sys.argv[1]))))
