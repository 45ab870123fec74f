"""The command that makes single pairs as files, without a manifest: make."""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stereo_jobs.cli.console import err, print_facts
from stereo_jobs.cli.options import AsJson, Set

if TYPE_CHECKING:
    from stereo_jobs.notebook import StereoImage, StereoPipeline

_NAME_CHARACTERS = 40


def make(
    sources: Annotated[list[str], typer.Argument(metavar="PHOTO|PROMPT", help="Photos, prompts in quotes, or both.")],
    overrides: Set = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the files.")] = Path(),
    model: Annotated[
        str, typer.Option(help="Stable Diffusion: a folder in diffusers format, a Hub id, or demo.")
    ] = "demo",
    depth: Annotated[
        str | None, typer.Option(help="Depth estimator: a folder in transformers format, a Hub id, or demo.")
    ] = None,
    scale_percent: Annotated[
        float | None, typer.Option(help="Shift of the nearest point in percent of the width; default 8.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what diffusion draws.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make stereo pairs of photos or prompts as files: left, right, anaglyph and disparity; no manifest, no Ray."""
    from stereo_jobs.notebook.result import refuse_existing, saved_files

    sources = list(dict.fromkeys(sources))
    names = dict(zip(sources, _names(sources), strict=True))
    for source, name in names.items():
        _check(source)
        if not force:
            refuse_existing(saved_files(output, name).values(), "--force")
    from stereo_jobs.notebook import InputRefusedError, StereoPipeline

    pipeline = StereoPipeline.from_pretrained(model, depth=depth, **_recipe(overrides))
    if pipeline.recipe.models.stable_diffusion.path == "demo" and any(map(_is_photo, names)):
        from stereo_jobs.models.resolve import ESTIMATOR_EXAMPLE, PLAIN_EXAMPLE

        err.print(
            "note: the embedded models know rendered toy rooms only; for photos name others, for example "
            f"--model {PLAIN_EXAMPLE} --depth {ESTIMATOR_EXAMPLE}"
        )
    failed = 0
    for source, name in names.items():
        try:
            pair = _pair(pipeline, source, seed, scale_percent)
        except InputRefusedError as error:
            if len(names) == 1:
                raise InputRefusedError(f"{source}: {error}") from None
            err.print(f"error: {source}: {error}", style="red")
            failed += 1
            continue
        files = pair.save(output, name, replace=force)
        facts = {"source": source, "seed": seed, **{key: str(path) for key, path in files.items()}}
        print_facts(facts, [str(path) for path in files.values()], as_json)
    if failed:
        raise InputRefusedError(f"{failed} of {len(names)} inputs could not be made into a pair; they are named above")


def _names(sources: list[str]) -> Iterator[str]:
    """Name the files of each source, by the photo or the first words of the prompt; equal names are numbered."""
    taken: set[str] = set()
    for source in sources:
        stem = Path(source).stem if _is_photo(source) else _first_words(source)
        name = next(each for number in count(1) if (each := f"{stem}-{number}" if number > 1 else stem) not in taken)
        taken.add(name)
        yield name


def _first_words(prompt: str) -> str:
    """The beginning of a prompt as a name that is safe for files."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    cut = words if len(words) <= _NAME_CHARACTERS else words[: _NAME_CHARACTERS + 1].rpartition("-")[0]
    return cut or words[:_NAME_CHARACTERS] or "pair"


def _is_photo(source: str) -> bool:
    """Whether a source is a file, or a text that ends like the name of a photo, which no prompt does."""
    from stereo_jobs.data.images import PHOTO_SUFFIXES

    try:
        return Path(source).is_file() or source.lower().endswith(PHOTO_SUFFIXES)
    except (OSError, ValueError):  # a long prompt is no name of a file
        return False


def _check(source: str) -> None:
    """Refuse what is neither a photo that exists nor a prompt, before models are loaded."""
    if not source.strip():
        raise typer.BadParameter("a prompt is empty", param_hint="PHOTO|PROMPT")
    if _is_photo(source) and not Path(source).is_file():
        raise typer.BadParameter(f"{source}: no such file; check the path", param_hint="PHOTO|PROMPT")


def _recipe(overrides: list[str] | None) -> dict[str, Any]:
    """Fields of the recipe, and the device, from --set arguments. Raises SpecError."""
    from stereo_jobs.errors import SpecError
    from stereo_jobs.spec_reading import parse_recipe, spec_data

    data = spec_data(None, overrides)
    recipe, runtime = data.pop("recipe", {}), data.pop("runtime", {})
    if not isinstance(recipe, dict) or not isinstance(runtime, dict) or data or set(runtime) - {"device"}:
        raise SpecError("--set: `make` takes fields of recipe (recipe.method.steps=20) and runtime.device")
    for field in ("mode", "seed", "variants", "format"):
        if field in recipe:
            raise SpecError(
                f"--set recipe.{field}: `make` takes photos and prompts as they are, and --seed; leave it out"
            )
    parse_recipe(recipe)
    return recipe | runtime


def _pair(pipeline: "StereoPipeline", source: str, seed: int, scale_percent: float | None) -> "StereoImage":
    if not _is_photo(source):
        return pipeline(source, seed=seed, scale_percent=scale_percent)
    return pipeline.from_image(source, seed=seed, scale_percent=scale_percent)
