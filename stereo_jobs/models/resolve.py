"""Finds a model and pins its content, before anything heavy is imported.

A Hub id resolves to a commit, a folder (and the embedded `demo`) to a digest of its files. Both go into the
recipe, so that a changed model is seen as a changed recipe.
"""

import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from stereo_jobs.errors import ModelError
from stereo_jobs.spec import DEMO, DepthSpec, Recipe, Size, StableDiffusionSpec

SD_FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_SD_FILES = ["model_index.json", *(f"{folder}/*" for folder in SD_FOLDERS)]
_DEPTH_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")

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
    sd_revision, sd_config = _pin(sd, _SD_FILES, "model_index.json")
    facts = check_stable_diffusion(sd.path, sd_config)
    depth_revision, depth_config = _pin(depth, _DEPTH_FILES, "config.json")
    polarity = depth_polarity(depth, depth_config("config.json"))
    size = recipe.size or Size(width=facts.native_size, height=facts.native_size)
    for name, value in (("width", size.width), ("height", size.height)):
        if value % facts.size_multiple:
            raise ModelError(
                f"recipe.size.{name}: must be a multiple of {facts.size_multiple} for {sd.path}, got {value}; "
                f"the nearest is {max(1, round(value / facts.size_multiple)) * facts.size_multiple}"
            )
    models = recipe.models.model_copy(
        update={
            "stable_diffusion": sd.model_copy(update={"revision": sd_revision}),
            "depth": depth.model_copy(update={"revision": depth_revision, "polarity": polarity}),
        }
    )
    return recipe.model_copy(update={"models": models, "size": size})


def check_stable_diffusion(path: str, config: Callable[[str], dict[str, Any]]) -> SDFacts:
    """Refuse what is not a usable Stable Diffusion 1.x / 2.x checkpoint. Raises ModelError."""
    family = config("model_index.json").get("_class_name")
    if family != "StableDiffusionPipeline":
        raise ModelError(
            f"model {path}: is a {family}; text mode takes Stable Diffusion 1.x or 2.x "
            "(StableDiffusionPipeline in diffusers format)"
        )
    unet, vae = config("unet/config.json"), config("vae/config.json")
    latent = vae.get("latent_channels", 4)
    if unet.get("in_channels") != latent:
        raise ModelError(
            f"model {path}: its U-Net takes {unet.get('in_channels')} channels and its VAE makes {latent}; "
            "text mode needs the two equal (inpainting and depth checkpoints are of other modes)"
        )
    prediction = config("scheduler/scheduler_config.json").get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ModelError(f"model {path}: prediction_type {prediction!r} is not epsilon or v_prediction")
    for name, part, keys in (
        ("unet", unet, ("sample_size", "block_out_channels")),
        ("vae", vae, ("block_out_channels",)),
    ):
        for key in keys:
            if not part.get(key):
                raise ModelError(f"model {path}: {name}/config.json lacks {key!r}; it needs a complete model folder")
    latent_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return SDFacts(
        latent_factor=latent_factor,
        native_size=unet["sample_size"] * latent_factor,
        size_multiple=latent_factor * 2 ** (len(unet["block_out_channels"]) - 1),
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
    """The folder of a model that is not on the Hub; `part` is `sd` or `depth` of the embedded demo."""
    if path == DEMO:
        return Path(str(resources.files("stereo_jobs.models"))) / "demo" / part
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def fetch(spec: StableDiffusionSpec | DepthSpec) -> Path:
    """Folder with a pinned model's files, downloaded once per machine where it is on the Hub."""
    is_sd = isinstance(spec, StableDiffusionSpec)
    folder = local_folder(spec.path, "sd" if is_sd else "depth")
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    patterns = _SD_FILES if is_sd else _DEPTH_FILES
    pickles = [f"*{suffix}" for suffix in _PICKLES] + ["*.msgpack", "*.onnx", "*.h5"]
    return Path(snapshot_download(spec.path, revision=spec.revision, allow_patterns=patterns, ignore_patterns=pickles))


def _pin(
    spec: StableDiffusionSpec | DepthSpec, patterns: list[str], index: str
) -> tuple[str, Callable[[str], dict[str, Any]]]:
    part = "sd" if isinstance(spec, StableDiffusionSpec) else "depth"
    folder = local_folder(spec.path, part)
    if folder is None and _looks_like_path(spec.path):
        raise ModelError(f"model {spec.path}: no such folder")
    pinned = _pin_hub(spec) if folder is None else _pin_folder(spec, folder, patterns)
    revision, config = pinned
    config(index)
    return revision, config


def _looks_like_path(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1


def _pin_folder(
    spec: StableDiffusionSpec | DepthSpec, folder: Path, patterns: list[str]
) -> tuple[str, Callable[[str], dict[str, Any]]]:
    def config(name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"model {spec.path}: {name} is missing or broken ({error}); it needs a complete model folder"
            ) from None

    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    weights = _check_weights(spec.path, [str(path.relative_to(folder)) for path in files])
    content = hashlib.sha256()
    for path in files:
        if not path.name.endswith(_PICKLES) and (path.suffix != ".safetensors" or path.name in weights):
            with path.open("rb") as file:
                content.update(f"{path.relative_to(folder).as_posix()}\n".encode())
                content.update(hashlib.file_digest(file, "sha256").digest())
    revision = f"sha256:{content.hexdigest()[:32]}"
    if spec.revision not in (None, revision):
        raise ModelError(f"model {spec.path}: its content is {revision}, not revision {spec.revision}")
    return revision, config


def _pin_hub(spec: StableDiffusionSpec | DepthSpec) -> tuple[str, Callable[[str], dict[str, Any]]]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        info = HfApi().model_info(spec.path, revision=spec.revision, timeout=30)
    except RepositoryNotFoundError:
        raise ModelError(
            f"model {spec.path}: not on the Hub under this name, or private (set HF_TOKEN), and no folder "
            "of this name exists here"
        ) from None
    except OfflineModeIsEnabled:
        raise ModelError(
            f"model {spec.path}: no folder of this name, and HF_HUB_OFFLINE=1 forbids asking the Hub"
        ) from None
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise ModelError(
            f"model {spec.path}: the Hub cannot be reached or refuses ({type(error).__name__}); "
            "give the path of a local folder instead"
        ) from None
    revision = str(info.sha)
    _check_weights(spec.path, [sibling.rfilename for sibling in info.siblings or []])

    def config(name: str) -> dict[str, Any]:
        return dict(json.loads(Path(hf_hub_download(spec.path, name, revision=revision)).read_text()))

    return revision, config


def _check_weights(path: str, names: list[str]) -> set[str]:
    """Names (without folder) of the safetensors files; pickles are never loaded. Raises ModelError."""
    weights = {name.rpartition("/")[2] for name in names if name.endswith(".safetensors")}
    if not weights:
        pickled = [name for name in names if name.endswith(_PICKLES)]
        raise ModelError(
            f"model {path}: no .safetensors weights"
            + (f", only pickles ({pickled[0]}), which are never loaded" if pickled else "")
            + "; convert it with diffusers' save_pretrained(safe_serialization=True)"
        )
    return weights
