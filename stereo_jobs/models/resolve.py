"""Finds a model and pins its content, before anything heavy is imported.

A Hub id resolves to a commit, a folder (and the embedded `demo`) to a digest of its files. Both go into the
recipe, so that a changed model is seen as a changed recipe.
"""

import hashlib
import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stereo_jobs.errors import ModelError
from stereo_jobs.spec import DEMO, DepthSpec, Recipe, Size, StableDiffusionSpec

DEMO_FOLDER = Path(str(resources.files("stereo_jobs.models"))) / "demo"
SD_FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SAFETY_FOLDERS = ("safety_checker", "feature_extractor")
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "safety_checker": "model",
}
"""Name of the weight files in the folders that have any."""

_DEPTH_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_CONVERT = "convert it with diffusers' save_pretrained(safe_serialization=True)"
_COMPLETE = "it needs a complete model folder"

PLAIN_EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEPTH_EXAMPLE = "sd2-community/stable-diffusion-2-depth"
DEPTH_FAMILY = "StableDiffusionDepth2ImgPipeline"

POLARITY = {
    "dpt": "inverse",
    "depth_anything": "inverse",
    "zoedepth": "metric",
    "glpn": "metric",
    "depth_pro": "metric",
}
"""What the estimators of a transformers family return; MiDaS checkpoints are of the family `dpt`."""


class SDFacts(NamedTuple):
    """What a Stable Diffusion checkpoint's configs say."""

    latent_factor: int
    native_size: int
    size_multiple: int


def resolve_recipe(recipe: Recipe) -> Recipe:
    """The recipe with every model pinned and the image size written out.

    Raises:
        ModelError: a model cannot be used, with the remedy.
    """
    sd, depth = recipe.models.stable_diffusion, recipe.models.depth
    wants_safety = recipe.models.safety_checker
    sd_files = _find(sd, _part(sd, recipe.mode), _sd_files(sd.variant, wants_safety))
    facts = check_stable_diffusion(sd.path, sd_files.config, recipe.mode)
    _check_sd_files(sd, sd_files.names, wants_safety)
    depth_files = _find(depth, "depth", _DEPTH_FILES)
    polarity = depth_polarity(depth, depth_files.config("config.json"))
    _check_weights(depth.path, "", {name for name in depth_files.names if "/" not in name}, ["*.safetensors"])
    size = recipe.size or Size(width=facts.native_size, height=facts.native_size)
    for name, value in (("width", size.width), ("height", size.height)):
        if value % facts.size_multiple:
            raise ModelError(
                f"recipe.size.{name}: must be a multiple of {facts.size_multiple} for {sd.path}, got {value}; "
                f"the nearest is {max(1, round(value / facts.size_multiple)) * facts.size_multiple}"
            )
    models = recipe.models.model_copy(
        update={
            "stable_diffusion": sd.model_copy(update={"revision": sd_files.revision}),
            "depth": depth.model_copy(update={"revision": depth_files.revision, "polarity": polarity}),
        }
    )
    return recipe.model_copy(update={"models": models, "size": size})


# --- What a Stable Diffusion checkpoint must be ---


def check_stable_diffusion(path: str, config: Callable[[str], dict[str, Any]], mode: str = "text") -> SDFacts:
    """Refuse what is not a Stable Diffusion 1.x / 2.x checkpoint that `mode` can use.

    Args:
        path: as the user wrote it, for messages.
        config: reads one JSON file of the checkpoint by its name.
        mode: `depth` takes a depth-conditioned checkpoint, the others the plain one.

    Raises:
        ModelError: what it is, what the mode takes, what to do.
    """
    family = config("model_index.json").get("_class_name")
    if family not in ("StableDiffusionPipeline", DEPTH_FAMILY):
        raise ModelError(f"model {path}: is a {family}; {_taken(mode)}")
    unet, vae, text = (config(f"{part}/config.json") for part in ("unet", "vae", "text_encoder"))
    latent, channels = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if channels != latent + (mode == "depth"):
        hint = "; for a depth-conditioned one set recipe.mode to depth" if channels == latent + 1 else ""
        raise ModelError(
            f"model {path}: its U-Net takes {channels} channels and its VAE makes {latent}; {_taken(mode)}{hint}"
        )
    width, given = unet.get("cross_attention_dim"), text.get("hidden_size")
    if width and given and width != given:
        raise ModelError(
            f"model {path}: its U-Net reads text embeddings of width {width} and its text encoder makes {given}; "
            "the parts are of different checkpoints, fetch them from one"
        )
    _check_scheduler(path, config("scheduler/scheduler_config.json"))
    for name, part, keys in (
        ("unet", unet, ("sample_size", "block_out_channels")),
        ("vae", vae, ("block_out_channels",)),
    ):
        for key in keys:
            if not part.get(key):
                raise ModelError(f"model {path}: {name}/config.json lacks {key!r}; {_COMPLETE}")
    latent_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return SDFacts(
        latent_factor=latent_factor,
        native_size=unet["sample_size"] * latent_factor,
        size_multiple=latent_factor * 2 ** (len(unet["block_out_channels"]) - 1),
    )


def _taken(mode: str) -> str:
    if mode == "depth":
        return (
            f"depth mode takes a depth-conditioned checkpoint ({DEPTH_FAMILY}, 4 latent channels and one of depth), "
            f"for example {DEPTH_EXAMPLE}"
        )
    return (
        f"{mode} mode takes Stable Diffusion 1.x or 2.x (StableDiffusionPipeline in diffusers format, "
        f"4 latent channels), for example {PLAIN_EXAMPLE}"
    )


def _check_scheduler(path: str, scheduler: dict[str, Any]) -> None:
    """Refuse noise schedules that the samplers do not follow. Raises ModelError."""
    for key, default, known in (
        ("prediction_type", "epsilon", ("epsilon", "v_prediction")),
        ("beta_schedule", "scaled_linear", ("scaled_linear", "linear")),
        ("rescale_betas_zero_snr", False, (False, None)),
        ("trained_betas", None, (None,)),
    ):
        value = scheduler.get(key, default)
        if value not in known:
            allowed = " or ".join(str(choice) for choice in known if choice is not None) or "absent"
            raise ModelError(
                f"model {path}: {key} {value!r} is not {allowed}, the noise schedules of Stable Diffusion 1.x and 2.x "
                f"that the samplers know; use a checkpoint trained with one of them, for example {PLAIN_EXAMPLE}"
            )


def _check_sd_files(spec: StableDiffusionSpec, names: set[str], wants_safety: bool) -> None:
    """Refuse a checkpoint that lacks weights, the tokenizer's files or a wanted safety checker. Raises ModelError."""
    if wants_safety and not {"safety_checker/config.json", "feature_extractor/preprocessor_config.json"} <= names:
        raise ModelError(
            f"model {spec.path}: has no safety_checker and feature_extractor, which recipe.models.safety_checker "
            f"asks for; set that to false, or use a checkpoint that has them, for example {PLAIN_EXAMPLE}"
        )
    for part in WEIGHTS:
        if part in SD_FOLDERS or wants_safety:
            _check_weights(spec.path, part, names, _weight_files(part, spec.variant), spec.variant)
    if "tokenizer/tokenizer.json" not in names and not {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= names:
        raise ModelError(
            f"model {spec.path}: tokenizer holds neither tokenizer.json nor vocab.json and merges.txt; {_COMPLETE}"
        )


def _has_weights(spec: StableDiffusionSpec | DepthSpec, names: set[str], safety_checker: bool) -> bool:
    if isinstance(spec, DepthSpec):
        return _any_matches(names, ["*.safetensors"])
    parts = [part for part in WEIGHTS if part in SD_FOLDERS or safety_checker]
    return all(_any_matches(names, _weight_files(part, spec.variant)) for part in parts)


def _any_matches(names: set[str], patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _check_weights(path: str, part: str, names: set[str], wanted: list[str], variant: str | None = None) -> None:
    """Refuse a part without safetensors weights of its variant; pickles are never loaded. Raises ModelError."""
    if _any_matches(names, wanted):
        return
    in_part = sorted(name for name in names if name.startswith(f"{part}/") or not part)
    others = [name for name in in_part if name.endswith(".safetensors")]
    pickled = [name for name in in_part if name.endswith(_PICKLES)]
    if others:
        kind = f"of variant {variant!r}" if variant else "without a variant"
        raise ModelError(
            f"model {path}: no {part} weights {kind}, only {others[0]}; set recipe.models.stable_diffusion.variant "
            "to what there is, or null"
        )
    raise ModelError(
        f"model {path}: no .safetensors weights"
        + (f" in {part}" if part else "")
        + (f", only pickles ({pickled[0]}), which are never loaded" if pickled else "")
        + f"; {_CONVERT}"
    )


def depth_polarity(spec: DepthSpec, config: dict[str, Any]) -> str:
    """`inverse` or `metric`, from the spec or the family. Raises ModelError where nobody knows."""
    if spec.polarity != "auto":
        return spec.polarity
    family = str(config.get("model_type"))
    if family == "depth_anything" and config.get("depth_estimation_type") == "metric":
        return "metric"
    if family not in POLARITY:
        raise ModelError(
            f"depth model {spec.path}: it is not known whether the family {family!r} returns inverse or "
            "metric depth; declare recipe.models.depth.polarity"
        )
    return POLARITY[family]


# --- Folders and the Hub ---


def local_folder(path: str, part: str) -> Path | None:
    """The folder of a model that is not on the Hub; `part` is `sd`, `sd_depth` or `depth` of the embedded demo."""
    if path == DEMO:
        return DEMO_FOLDER / part
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def part_folder(folder: Path, name: str) -> Path:
    """Folder of one part of a checkpoint. The embedded `sd_depth` takes the parts that it lacks from `sd`."""
    own = folder / name
    if folder == DEMO_FOLDER / "sd_depth" and not own.is_dir():
        return DEMO_FOLDER / "sd" / name
    return own


def fetch(spec: StableDiffusionSpec | DepthSpec, mode: str = "text", safety_checker: bool = False) -> Path:
    """Folder with a pinned model's files, downloaded once per machine where it is on the Hub.

    Args:
        spec: of a resolved recipe.
        mode: of the recipe; the embedded demo has a checkpoint of its own for `depth`.
        safety_checker: with the files of the safety checker.
    """
    folder = local_folder(spec.path, _part(spec, mode))
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    files = _sd_files(spec.variant, safety_checker) if isinstance(spec, StableDiffusionSpec) else _DEPTH_FILES
    try:
        cached = Path(snapshot_download(spec.path, revision=spec.revision, allow_patterns=files))
        names = {path.relative_to(cached).as_posix() for path in cached.rglob("*")}
        problem = "" if _has_weights(spec, names, safety_checker) else "its weights are not in the cache"
    except Exception as error:  # the client raises its own errors, those of httpx and of the system
        problem = type(error).__name__
    if problem:  # an unreachable Hub may also show as a folder without the weights
        raise ModelError(
            f"model {spec.path}: cannot be downloaded to this machine ({problem}); every machine of the job needs "
            "the Hub, or give the path of a folder that all of them see"
        )
    return cached


def _part(spec: StableDiffusionSpec | DepthSpec, mode: str) -> str:
    if isinstance(spec, DepthSpec):
        return "depth"
    return "sd_depth" if mode == "depth" else "sd"


def _sd_files(variant: str | None, safety_checker: bool) -> list[str]:
    """Patterns of the files that are pinned and loaded: not the other variants, which are gigabytes."""
    folders = SD_FOLDERS + (SAFETY_FOLDERS if safety_checker else ())
    texts = [f"{folder}/*.{suffix}" for folder in folders for suffix in ("json", "txt")]
    weights = [pattern for folder in folders if folder in WEIGHTS for pattern in _weight_files(folder, variant)]
    return ["model_index.json", *texts, *weights]


def _weight_files(part: str, variant: str | None) -> list[str]:
    stem = f"{part}/{WEIGHTS[part]}" + (f".{variant}" if variant else "")
    return [f"{stem}.safetensors", f"{stem}-0*.safetensors"]  # the second of sharded weights


class _Files(Protocol):
    """A model's files, wherever they are."""

    names: set[str]

    @property
    def revision(self) -> str: ...

    def config(self, name: str) -> dict[str, Any]: ...


def _find(spec: StableDiffusionSpec | DepthSpec, part: str, patterns: list[str]) -> _Files:
    folder = local_folder(spec.path, part)
    if folder is not None:
        return _FolderFiles(spec, folder, patterns)
    if isinstance(spec, StableDiffusionSpec) and Path(spec.path).expanduser().is_file():
        raise ModelError(
            f"model {spec.path}: is a single file; write it as a folder with diffusers' "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(...)"
        )
    if _looks_like_path(spec.path):
        raise ModelError(f"model {spec.path}: no such folder")
    return _HubFiles(spec)


def _looks_like_path(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1


class _FolderFiles:
    def __init__(self, spec: StableDiffusionSpec | DepthSpec, folder: Path, patterns: list[str]) -> None:
        self.spec, self.folder, self.patterns = spec, folder, patterns
        parts = ["", *sorted({pattern.rpartition("/")[0] for pattern in patterns} - {""})]
        self.paths = {
            f"{part}/{path.name}".lstrip("/"): path
            for part in parts
            for path in part_folder(folder, part).glob("*")
            if path.is_file()
        }
        self.names = set(self.paths)

    def config(self, name: str) -> dict[str, Any]:
        try:
            path = self.paths.get(name, self.folder / name)
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"model {self.spec.path}: {name} is missing or broken ({error}); {_COMPLETE}") from None

    @cached_property
    def revision(self) -> str:
        content = hashlib.sha256()
        for name, path in sorted(self.paths.items()):
            if _any_matches({name}, self.patterns):
                with path.open("rb") as file:
                    content.update(f"{name}\n".encode())
                    content.update(hashlib.file_digest(file, "sha256").digest())
        revision = f"sha256:{content.hexdigest()[:32]}"
        if self.spec.revision not in (None, revision):
            raise ModelError(f"model {self.spec.path}: its content is {revision}, not revision {self.spec.revision}")
        return revision


class _HubFiles:
    def __init__(self, spec: StableDiffusionSpec | DepthSpec) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        self.spec = spec
        try:
            info = HfApi().model_info(spec.path, revision=spec.revision, timeout=30)
        except GatedRepoError:
            raise ModelError(
                f"model {spec.path}: its licence must be accepted; do so on its page on the Hub and set HF_TOKEN"
            ) from None
        except RepositoryNotFoundError:
            raise ModelError(
                f"model {spec.path}: not on the Hub under this name, or private (set HF_TOKEN), and no folder "
                "of this name exists here"
            ) from None
        except RevisionNotFoundError:
            raise ModelError(
                f"model {spec.path}: has no revision {spec.revision}; give a branch, tag or commit, or null"
            ) from None
        except OfflineModeIsEnabled:
            raise ModelError(
                f"model {spec.path}: no folder of this name, and HF_HUB_OFFLINE=1 forbids asking the Hub"
            ) from None
        except Exception as error:  # of the client, of httpx or of the system
            raise ModelError(
                f"model {spec.path}: the Hub cannot be reached or refuses ({type(error).__name__}); "
                "give the path of a local folder instead"
            ) from None
        self.revision = str(info.sha)
        self.names = {sibling.rfilename for sibling in info.siblings or []}

    def config(self, name: str) -> dict[str, Any]:
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(self.spec.path, name, revision=self.revision)
            return dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except Exception as error:  # of the client, of httpx, of the system or of JSON
            raise ModelError(
                f"model {self.spec.path}: {name} is missing or broken ({type(error).__name__}); "
                "it needs a complete model in diffusers or transformers format"
            ) from None
