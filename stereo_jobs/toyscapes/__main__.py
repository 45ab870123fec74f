"""The command line of training: `python -m stereo_jobs.toyscapes`. Each part resumes from its newest checkpoint."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from stereo_jobs.models.files import DEMO_FOLDER
from stereo_jobs.toyscapes import decoder, depth, diffusion, judge, vae
from stereo_jobs.toyscapes.training import Lesson, Machine, Schedule, averaged, train

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train the demo models, part by part.")

Work = Annotated[Path, typer.Option(help="Folder of checkpoints, cached latents and trained models.")]
Processes = Annotated[int, typer.Option(min=1, help="Number of processes, one thread each; use 1 on a GPU.")]
Device = Annotated[str, typer.Option(help="Device to train on: cpu or cuda.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Number of optimiser steps; default: the recipe's.")]

WORK = Path("build/train")


@app.command("vae")
def train_vae(work: Work = WORK, processes: Processes = 2, device: Device = "cpu", steps: Steps = None) -> None:
    """Train the VAE; needs no other part."""
    networks = _train(vae.VaeLesson, vae.SCHEDULE, steps, work / "vae", Machine(device, processes))
    vae.export(networks, work / "models/sd/vae")


@app.command("decoder")
def train_decoder(work: Work = WORK, processes: Processes = 2, device: Device = "cpu", steps: Steps = None) -> None:
    """Train the decoder of the VAE further; the encoder stays, so that latents mean what they meant.

    Without any models in the work folder, a copy of the embedded ones is put there and trained further.
    """
    folder = work / "models/sd/vae"
    if not (work / "models").exists():
        shutil.copytree(DEMO_FOLDER, work / "models")
    if not folder.is_dir():
        why = "no VAE in it yet; train one with the part `vae` and the same --work"
        raise typer.BadParameter(why, param_hint="--work")
    networks = _train(decoder.lesson(folder), decoder.SCHEDULE, steps, work / "decoder", Machine(device, processes))
    decoder.export(networks, folder)


@app.command("latents")
def cache_latents(
    work: Work = WORK,
    processes: Processes = 2,
    device: Device = "cpu",
    scenes: Annotated[int, typer.Option(help="Number of training scenes; a fiftieth as many are held out.")] = 30_000,
) -> None:
    """Render scenes and encode them to latents; needs the VAE."""
    diffusion.cache_all(work / "models/sd/vae", work / "latents", scenes, Machine(device, processes))


@app.command("unet")
def train_unet(work: Work = WORK, processes: Processes = 2, device: Device = "cpu", steps: Steps = None) -> None:
    """Train the U-Net and the text encoder, then export them; needs the latents."""
    lesson = diffusion.lesson(work / "latents")
    networks = _train(lesson, diffusion.SCHEDULE, steps, work / "unet", Machine(device, processes))
    diffusion.export(networks, work / "models")


@app.command("depth")
def train_depth(work: Work = WORK, processes: Processes = 2, device: Device = "cpu", steps: Steps = None) -> None:
    """Train the depth estimator; needs no other part."""
    networks = _train(depth.DepthLesson, depth.SCHEDULE, steps, work / "depth", Machine(device, processes))
    depth.export(networks, work / "models/depth")


@app.command("judge")
def train_judge(work: Work = WORK, processes: Processes = 2, device: Device = "cpu", steps: Steps = None) -> None:
    """Train the classifier that judges generated images; needs no other part."""
    _train(judge.JudgeLesson, judge.SCHEDULE, steps, work / "judge", Machine(device, processes))


@app.command("evaluate")
def evaluate(
    work: Work = WORK,
    scenes: Annotated[int, typer.Option(min=1, help="Number of held-out scenes.")] = 200,
    models: Annotated[
        Path | None,
        typer.Option(help="Folder with sd, sd_depth and depth; default: the work folder's, else the embedded models."),
    ] = None,
) -> None:
    """Measure models on held-out scenes; needs the judge. Writes figures.json and image sheets to the work folder."""
    from stereo_jobs.toyscapes import figures

    if not (work / "judge/checkpoint.pt").is_file():
        why = "no judge in it yet; train one with the part `judge` and the same --work"
        raise typer.BadParameter(why, param_hint="--work")
    chosen = models or figures.models_of(work)
    typer.echo(f"models: {chosen}")
    results = {}
    for part, values in figures.measure(figures.DemoModels(chosen), work, scenes):
        results[part] = values
        typer.echo(f"{part}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        figures.write(results, work / "figures.json")


@app.command("all")
def train_all(work: Work = WORK, processes: Processes = 2, device: Device = "cpu") -> None:
    """Train all parts in order, then evaluate; about four hours on two CPU cores."""
    for part in (train_vae, train_decoder, cache_latents, train_unet, train_depth, train_judge):
        part(work, processes, device)
    evaluate(work)


def _train(
    make: Callable[[Schedule], Lesson], recipe: Schedule, steps: int | None, folder: Path, machine: Machine
) -> nn.Module:
    """Train one part from its newest checkpoint; returns its networks with averaged weights."""
    schedule = dataclasses.replace(recipe, steps=steps) if steps else recipe
    train(make, schedule, folder, machine)
    _, networks, _ = averaged(make, schedule, folder)
    return networks


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    app()
