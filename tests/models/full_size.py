"""A checkpoint at its published size with random weights, through all of its modes.

`python -m tests.models.full_size sd1 float32` prints what it took as JSON.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from stereo_jobs.data.images import encode_disparity, encode_png
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.notebook import StereoPipeline
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.records import Row, StereoPair
from stereo_jobs.spec import Mode, Recipe
from tests.models.tiny import write_checkpoint

MODES: dict[str, tuple[Mode, ...]] = {"sd1": ("text", "image", "inpaint"), "sd2_depth": ("depth",)}
NATIVE, SMALL = 512, 256
"""Each network is run once at the size it was made for; whole pairs are made at half of it, to be done in minutes."""


def write(folder: Path, family: str) -> None:
    """Write a checkpoint with two bytes per weight: 2.1 GB for SD 1.5, 2.6 GB for SD 2."""
    write_checkpoint(folder, family, full=True, dtype=torch.bfloat16)


def peak_gb() -> float:
    """Peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # KiB on Linux


def row(mode: Mode) -> Row:
    """A row of any mode."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (SMALL, SMALL, 3), dtype=np.uint8)
    mask = np.zeros((SMALL, SMALL), bool)
    mask[60:120, 80:160] = True
    ramp = np.tile(np.linspace(0, 1, SMALL, dtype=np.float32), (SMALL, 1))
    inputs = {"image": encode_png(photo), "mask": encode_png(mask), "depth": encode_disparity(ramp)}
    return Row(mode, "a red circle", "", 1, 8.0, {} if mode == "text" else inputs)


@torch.inference_mode()
def measure(folder: Path, family: str, dtype: str) -> dict[str, object]:
    """Load a pipeline, run every network once, and make a pair in every mode of the family."""
    facts: dict[str, object] = {"base_gb": round(peak_gb(), 2)}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        facts[f"{name}_s"] = round(time.perf_counter() - start, 2)
        facts[f"{name}_gb"] = round(peak_gb(), 2)

    models = {"stable_diffusion": {"path": str(folder), "dtype": dtype}, "depth": {"path": "demo"}}
    recipe = Recipe(
        mode=MODES[family][0],
        models=models,
        method={"steps": 2, "shift_step": 0, "attention_step": 0},
        size={"width": SMALL, "height": SMALL},
        quality={"enabled": False},
    )
    with timed("load"):
        pipeline = StereoPipeline(PairGenerator.load(resolve_recipe(recipe), "cpu", 1))
    sd = pipeline.generator.sd
    for name in ("unet", "vae", "text_encoder"):
        facts[f"{name}_parameters"] = sum(weights.numel() for weights in getattr(sd, name).parameters())
    with timed("text"):
        text = sd.encode_prompts(["a red circle", ""])
    channels = sd.unet.config.in_channels
    latents = torch.randn(2, channels, NATIVE // 8, NATIVE // 8, generator=torch.Generator().manual_seed(0))
    with timed("unet"):
        predicted = sd.unet(latents.to(sd.unet.dtype), 500, text).sample
    with timed("decode"):
        images = sd.decode(latents[:1, :4])
    with timed("encode"):
        encoded = sd.encode(images)
    shapes = {"predicted": predicted.shape, "images": images.shape, "encoded": encoded.shape, "text": text.shape}
    facts["shapes"] = {name: list(shape) for name, shape in shapes.items()}
    facts["finite"] = all(bool(tensor.isfinite().all()) for tensor in (predicted, images, encoded, text))
    pairs = {}
    for mode in MODES[family]:
        with timed(f"pair_{mode}"):
            [pair] = pipeline.for_mode(mode).generate([row(mode)])
        assert isinstance(pair, StereoPair), pair
        pairs[mode] = {"right": list(pair.right.shape), "evaluations": pair.unet_evaluations}
    return facts | {"pairs": pairs}


if __name__ == "__main__":
    _, chosen, precision = sys.argv
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        writer = get_context("spawn").Process(target=write, args=(Path(name), chosen))  # keeps its memory apart
        writer.start()
        writer.join()
        written = {"write_s": round(time.perf_counter() - start, 2)}
        print(json.dumps(written | measure(Path(name), chosen, precision)))
