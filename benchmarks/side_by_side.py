"""A pair of text mode, side by side: the published loop, both presets, and two independent images of diffusers.

    python benchmarks/side_by_side.py                 # the embedded models, 128 x 128: takes minutes
    python benchmarks/side_by_side.py --size sd15     # Stable Diffusion 1.5 with random weights, 512 x 512

`plain loop` is `plain_loop.py`: 50 steps, both views in all of them, explicit attention maps, pixels shifted one by
one, the left image made first. `official` and `best` are `PairGenerator.generate` without quality control; `two images`
are two calls of diffusers' StableDiffusionPipeline with 50 steps. All share one set of networks, and take turns in one
process. Seconds are CPU seconds of one thread per pair, in the fastest of the rounds, since other load of the machine
only adds to them; a batch is divided by its pairs.

The left and right views of `plain loop` and `official` must be the same picture, or the exit code is 1.

At the size of Stable Diffusion 1.5 an evaluation takes ten seconds. There, each way runs with two steps; the seconds of
each network and batch shape are multiplied by the calls that a whole run makes, which are counted with the embedded
models, and what is spent beside the networks is added once.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import nn

from benchmarks.plain_loop import PlainLoop
from stereo_jobs.models import stable_diffusion
from stereo_jobs.models.depth_estimator import DepthEstimator
from stereo_jobs.models.resolve import resolve_recipe
from stereo_jobs.models.stable_diffusion import StableDiffusion
from stereo_jobs.pipeline.generator import PairGenerator
from stereo_jobs.pixels import Image
from stereo_jobs.records import Row, StereoPair
from stereo_jobs.spec import DepthSpec, Recipe
from tests.models import tiny

PROMPT, OTHER = "a red circle on the left, green floor, grey wall", "a blue square on the right, green floor"
PLAIN, TWO = "plain loop", "two images"
SHORT = {"steps": 2, "shift_step": 0, "attention_step": 0, "recopy_interval": 1}
"""Switches of a run that only measures what one call of each network takes."""
FAR, SHARE = 2, 0.01
"""Levels of 255 by which at most this share of two equal pictures may differ: float noise, rounded."""

Views = list[tuple[Image, Image]]


class Models(NamedTuple):
    """What all ways share.

    Attributes:
        sd: Stable Diffusion.
        depth: the depth estimator.
        size: height and width of an image.
    """

    sd: StableDiffusion
    depth: DepthEstimator
    size: tuple[int, int]


class Way(NamedTuple):
    """One way to make pairs.

    Attributes:
        make: makes them.
        pairs: how many.
    """

    make: Callable[[], Views]
    pairs: int


class Clock:
    """Counts calls of networks and their CPU seconds, by name and batch shape."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.evaluations = 0

    @contextlib.contextmanager
    def watching(self, models: Models) -> Iterator[None]:
        """Count the calls within; `all` are the seconds of everything."""
        sd = models.sd
        watched = [
            ("U-Net", sd.unet, "forward"),
            ("encode", sd.vae, "encode"),
            ("decode", sd.vae, "decode"),
            ("text", sd.text_encoder, "forward"),
            ("depth", models.depth.network, "forward"),
        ]
        with contextlib.ExitStack() as stack:
            for name, network, method in watched:
                stack.enter_context(patch.object(network, method, self._timed(name, getattr(network, method))))
            began = time.process_time()
            yield
            self.seconds["all"] += time.process_time() - began

    def _timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = work(*args, **kwargs)
            size = len(args[0] if args else next(iter(kwargs.values())))
            self.calls[f"{name} x{size}"] += 1
            self.seconds[f"{name} x{size}"] += time.process_time() - began
            self.evaluations += size if name == "U-Net" else 0
            return result

        return run

    @property
    def beside(self) -> float:
        """Seconds that were spent beside the networks."""
        return self.seconds["all"] - sum(self.seconds[call] for call in self.calls)


def embedded() -> Models:
    """The embedded models, at their own size."""
    recipe = resolve_recipe(Recipe())
    generator = PairGenerator.load(recipe, "cpu", 1)
    return Models(generator.sd, generator.depth, (128, 128))


def full_size() -> Models:
    """Stable Diffusion 1.5 with random weights, made in memory; depth is that of the embedded estimator."""

    def made(kind: type, folder: Path, dtype: torch.dtype, device: str, **_: Any) -> nn.Module:
        config = json.loads((folder / "config.json").read_text())
        return tiny.network(folder.name, config).to(device, dtype).eval().requires_grad_(False)

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, patch.object(stable_diffusion, "load_part", made):
        folder = Path(name)
        for file, content in tiny.configs("sd1", full=True).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(json.dumps(content))
        tiny.write_tokenizer(folder / "tokenizer")
        sd = StableDiffusion(folder, torch.float32, "cpu")
    depth = resolve_recipe(Recipe()).models.depth
    assert isinstance(depth, DepthSpec)
    return Models(sd, DepthEstimator.load(depth, "cpu"), (512, 512))


def ways(models: Models, batches: list[int], *, short: bool = False) -> dict[str, Way]:
    """All ways, by their names; `short` ones take two steps."""
    sd, size = models.sd, models.size
    found = {
        PLAIN: Way(plain(models, short), 1),
        TWO: Way(lambda: two_images(sd, size, SHORT["steps"] if short else 50), 1),
    }
    for preset in ("official", "best"):
        method = {"preset": preset} | (SHORT if short else {})
        sizes = {"height": size[0], "width": size[1]}
        recipe = resolve_recipe(Recipe.model_validate({"method": method, "size": sizes, "quality": {"enabled": False}}))
        for batch in batches:
            generator = PairGenerator(sd, models.depth, recipe, batch)
            name = preset if batch == 1 else f"{preset}, batch of {batch}"
            found[name] = Way(lambda generator=generator: generated(generator), batch)  # type: ignore[misc]
    return found


def plain(models: Models, short: bool) -> Callable[[], Views]:
    """The plain loop, for the row that `generated` begins with."""
    loop = PlainLoop(models.sd, models.depth, *((2, 0, 1) if short else ()))
    return lambda: [loop(PROMPT, 0, models.size)]


def generated(generator: PairGenerator) -> Views:
    """One batch of this package."""
    made = generator.generate([Row(f"r{i}", PROMPT, "", i, 8.0) for i in range(generator.batch_size)])
    pairs = [pair for pair in made if isinstance(pair, StereoPair)]
    assert len(pairs) == len(made), made
    return [(pair.left, pair.right) for pair in pairs]


def two_images(sd: StableDiffusion, size: tuple[int, int], steps: int) -> Views:
    """Two images of diffusers, of two prompts, at its default guidance."""
    pipeline = StableDiffusionPipeline(
        sd.vae,
        sd.text_encoder,
        sd.tokenizer,
        sd.unet,
        DDIMScheduler.from_config(sd.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    made = [
        pipeline(prompt, height=size[0], width=size[1], num_inference_steps=steps, output_type="np").images[0]
        for prompt in (PROMPT, OTHER)
    ]
    left, right = ((pixels * 255).round().astype(np.uint8) for pixels in made)
    return [(left, right)]


def far(one: Image, other: Image) -> float:
    """Share of the values of two pictures that are more than FAR levels apart."""
    return float((np.abs(one.astype(int) - other.astype(int)) > FAR).mean())


def compare(models: Models, rounds: int, batches: list[int], *, short: bool = False) -> dict[str, Any]:
    """Run all ways by turns, and compare their pictures."""
    all_ways = ways(models, batches, short=short)
    clocks: dict[str, list[Clock]] = defaultdict(list)
    views: dict[str, Views] = {}
    for _ in range(rounds):
        for name, way in all_ways.items():
            clocks[name].append(Clock())
            with clocks[name][-1].watching(models):
                views[name] = way.make()
            print(f"{name}: {clocks[name][-1].seconds['all'] / way.pairs:.2f} s", file=sys.stderr, flush=True)
    different = max(far(*both) for both in zip(views[PLAIN][0], views["official"][0], strict=True))
    return {"different": different, "ways": {name: summary(own, all_ways[name].pairs) for name, own in clocks.items()}}


def summary(rounds: list[Clock], pairs: int) -> dict[str, Any]:
    """Seconds of the fastest round, and of the fastest calls, for each pair."""
    fastest = min(rounds, key=lambda clock: clock.seconds["all"])
    calls = sorted(fastest.calls)
    return {
        "seconds": fastest.seconds["all"] / pairs,
        "beside": min(clock.beside for clock in rounds) / pairs,
        "evaluations": fastest.evaluations / pairs,
        "calls": {call: fastest.calls[call] / pairs for call in calls},
        "call_seconds": {call: min(clock.seconds[call] / clock.calls[call] for clock in rounds) for call in calls},
    }


def extrapolated(short: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Seconds of whole runs, from those of single calls and the number of calls that a whole run makes."""
    found = {}
    for name, one in short["ways"].items():
        calls = whole["ways"][name]["calls"]
        assert set(calls) == set(one["calls"]), (name, calls, one["calls"])
        seconds = one["beside"] + sum(count * one["call_seconds"][call] for call, count in calls.items())
        found[name] = one | {"seconds": seconds, "calls": calls, "evaluations": whole["ways"][name]["evaluations"]}
    return {"different": max(short["different"], whole["different"]), "ways": found}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: what a pair takes each way."""
    lines = [
        f"| a pair | CPU s | of {PLAIN} | of {TWO} | U-Net evaluations | U-Net calls | VAE images | CPU s beside |",
        "|---" + "|---:" * 7 + "|",
    ]
    for name, one in found.items():
        ratios = [one["seconds"] / found[other]["seconds"] for other in (PLAIN, TWO)]
        calls = sum(count for call, count in one["calls"].items() if call.startswith("U-Net"))
        images = sum(n * int(call.split("x")[-1]) for call, n in one["calls"].items() if "code" in call)
        cells = [f"{one['seconds']:.2f}", *(f"{ratio:.2f}" for ratio in ratios), f"{one['evaluations']:.0f}"]
        cells += [f"{calls:.0f}", f"{images:.0f}", f"{one['beside']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["demo", "sd15"], default="demo")
    parser.add_argument("--rounds", type=int, default=None, help="default: 3, and 1 for sd15")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="batch sizes of this package; 1 is needed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = embedded()
    if options.size == "demo":
        result = compare(models, options.rounds or 3, options.batches)
    else:
        whole = compare(models, 1, options.batches)
        result = extrapolated(compare(full_size(), options.rounds or 1, options.batches, short=True), whole)
    print(table(result["ways"]) + "\n")
    print(json.dumps({"size": options.size} | result))
    if result["different"] > SHARE:
        print(f"plain loop and official differ: {result['different']:.3f} of the values", file=sys.stderr)
    return int(result["different"] > SHARE)


if __name__ == "__main__":
    sys.exit(main())
