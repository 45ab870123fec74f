"""A model's files, in a folder or on the Hugging Face Hub: their names, their revision, their download."""

import hashlib
import json
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from stereo_jobs.errors import ModelError
from stereo_jobs.local_files import refuse_special
from stereo_jobs.spec import DEMO, ClipSpec, DepthSpec, StableDiffusionSpec

ModelSpec = StableDiffusionSpec | DepthSpec | ClipSpec

DEMO_FOLDER = Path(str(resources.files("stereo_jobs.models"))) / "demo"
SD_FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SAFETY_FOLDERS = ("safety_checker", "feature_extractor")
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "safety_checker": "model",
}
"""Parts of a checkpoint that have weights, and the name of their weight files."""

DEPTH_WEIGHTS = ["*.safetensors"]
DEPTH_FILES = ["config.json", "preprocessor_config.json", *DEPTH_WEIGHTS, "*.safetensors.index.json"]
CLIP_WEIGHTS = ["model.safetensors", "model-0*.safetensors"]
"""Patterns of transformers' weight files; repositories also hold the same weights for other libraries."""
CLIP_PROCESSORS = ["preprocessor_config.json", "processor_config.json"]
"""Files that say how pictures are prepared; one is enough, and transformers 5 writes the second."""
CLIP_FILES = [
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *(*CLIP_PROCESSORS, *CLIP_WEIGHTS, "model.safetensors.index.json"),
]
COMPLETE = "it needs a complete model folder"
"""Remedy in messages about files that are missing."""


def local_folder(path: str, part: str) -> Path | None:
    """The folder of a model on this machine, or None where there is none.

    Args:
        path: a folder, a Hub id, or `demo`, as the user wrote it.
        part: which of the embedded models `demo` means, see `part_of`.

    Raises:
        ModelError: the path cannot be one: an unknown user, a name that is too long.
    """
    try:
        folder = DEMO_FOLDER / part if path == DEMO else Path(path).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"model {path[:200]}: not a usable path ({reason}); give the path of a folder") from None


def part_folder(folder: Path, name: str) -> Path:
    """The folder of one part of a checkpoint; the embedded `sd_depth` takes the parts that it lacks from `sd`."""
    own = folder / name
    if folder == DEMO_FOLDER / "sd_depth" and not own.is_dir():
        return DEMO_FOLDER / "sd" / name
    return own


def fetch(spec: ModelSpec, mode: str = "text", safety_checker: bool = False) -> Path:
    """Return the folder with a pinned model's files; models on the Hub are downloaded once per machine.

    Args:
        spec: a model of a resolved recipe.
        mode: the recipe's mode; the embedded demo has a separate checkpoint for `depth`.
        safety_checker: whether the files of the safety checker are needed, too.

    Raises:
        ModelError: the download failed.
    """
    folder = local_folder(spec.path, part_of(spec, mode))
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    files = patterns_of(spec, safety_checker)
    try:
        cached = Path(snapshot_download(spec.path, revision=spec.revision, allow_patterns=files))
        names = {path.relative_to(cached).as_posix() for path in cached.rglob("*")}
        problem = "" if has_weights(spec, names, safety_checker) else "its weights are not in the cache"
    except Exception as error:  # the client raises its own errors, httpx's and the system's
        problem = type(error).__name__
    if problem:  # where the Hub cannot be reached, the client may also return a cached folder without weights
        raise ModelError(
            f"model {spec.path}: cannot be downloaded to this machine ({problem}); every machine of the job must reach "
            "the Hub, or give the path of a folder that all of them can read"
        )
    return cached


def part_of(spec: ModelSpec, mode: str) -> str:
    """Which embedded model a spec means where its path is `demo`: `sd`, `sd_depth` or `depth`; there is no `clip`."""
    if isinstance(spec, StableDiffusionSpec):
        return "sd_depth" if mode == "depth" else "sd"
    return "depth" if isinstance(spec, DepthSpec) else "clip"


def patterns_of(spec: ModelSpec, safety_checker: bool) -> list[str]:
    """Patterns of the files that are pinned and loaded; other variants of the weights, gigabytes each, are left out."""
    if isinstance(spec, StableDiffusionSpec):
        return _sd_patterns(spec.variant, safety_checker)
    return DEPTH_FILES if isinstance(spec, DepthSpec) else CLIP_FILES


def _sd_patterns(variant: str | None, safety_checker: bool) -> list[str]:
    folders = SD_FOLDERS + (SAFETY_FOLDERS if safety_checker else ())
    texts = [f"{folder}/*.{suffix}" for folder in folders for suffix in ("json", "txt")]
    weights = [pattern for folder in folders if folder in WEIGHTS for pattern in weight_files(folder, variant)]
    return ["model_index.json", *texts, *weights]


def weight_files(part: str, variant: str | None) -> list[str]:
    """Patterns of the weight files of a part: the first for a single file, the second for sharded weights."""
    stem = f"{part}/{WEIGHTS[part]}" + (f".{variant}" if variant else "")
    return [f"{stem}.safetensors", f"{stem}-0*.safetensors"]


class ModelFiles(Protocol):
    """A model's files, in a folder or on the Hub.

    Attributes:
        names: paths of the files inside the model.
    """

    names: set[str]

    @property
    def revision(self) -> str:
        """Identifier of the files' content."""

    def config(self, name: str) -> dict[str, Any]:
        """Read one JSON file; raises ModelError where it is missing or broken."""

    def text(self, name: str) -> str:
        """Read one text file; raises ModelError where it is missing or broken."""


def find(spec: ModelSpec, mode: str = "text", safety_checker: bool = False) -> ModelFiles:
    """Find the files of a model, in a folder or on the Hub; arguments as for `fetch`.

    Raises:
        ModelError: there is no such model, or the Hub cannot be reached.
    """
    folder = local_folder(spec.path, part_of(spec, mode))
    if folder is not None:
        return FolderFiles(spec, folder, patterns_of(spec, safety_checker))
    if isinstance(spec, StableDiffusionSpec) and Path(spec.path).expanduser().is_file():
        raise ModelError(
            f"model {spec.path}: is a single file; convert it to a folder with diffusers' "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(...)"
        )
    if _looks_like_path(spec.path):
        raise ModelError(
            f"model {spec.path}: no such folder; give the path of a folder, or a Hub id such as owner/name"
        )
    return HubFiles(spec)


def _looks_like_path(path: str) -> bool:
    """Whether this cannot be a Hub id (`owner/name`)."""
    return path.startswith(("/", ".", "~")) or path.count("/") != 1


class FolderFiles:
    """Files of a folder on this machine, pinned by a digest of their content."""

    def __init__(self, spec: ModelSpec, folder: Path, patterns: list[str]) -> None:
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
        """See ModelFiles."""
        try:
            return dict(json.loads(self.text(name)))
        except (ValueError, TypeError) as error:
            raise self._broken(name, error) from None

    def text(self, name: str) -> str:
        """See ModelFiles."""
        try:
            path = self.paths.get(name, self.folder / name)
            refuse_special(path)
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise self._broken(name, error) from None

    def _broken(self, name: str, error: Exception) -> ModelError:
        return ModelError(f"model {self.spec.path}: {name} is missing or broken ({error}); {COMPLETE}")

    @cached_property
    def revision(self) -> str:
        """See ModelFiles."""
        content = hashlib.sha256()
        for name, path in sorted(self.paths.items()):
            if any_matches({name}, self.patterns):
                with path.open("rb") as file:
                    content.update(f"{name}\n".encode())
                    content.update(hashlib.file_digest(file, "sha256").digest())
        revision = f"sha256:{content.hexdigest()[:32]}"
        if self.spec.revision not in (None, revision):
            raise ModelError(
                f"model {self.spec.path}: its content is {revision}, not revision {self.spec.revision}; restore the "
                "folder, or set the revision to null for a new output"
            )
        return revision


class HubFiles:
    """Files of a repository on the Hub, pinned by its commit."""

    def __init__(self, spec: ModelSpec) -> None:
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
                f"model {spec.path}: its licence must be accepted; accept it on its page on the Hub and set HF_TOKEN"
            ) from None
        except RepositoryNotFoundError:
            raise ModelError(
                f"model {spec.path}: not on the Hub under this name, and no folder of this name exists here; check the "
                "name, or set HF_TOKEN if the model is private"
            ) from None
        except RevisionNotFoundError:
            raise ModelError(
                f"model {spec.path}: has no revision {spec.revision}; give an existing branch, tag or commit, or null"
            ) from None
        except OfflineModeIsEnabled:
            raise ModelError(
                f"model {spec.path}: no folder of this name, and HF_HUB_OFFLINE=1 forbids asking the Hub; give the "
                "path of a folder, or unset HF_HUB_OFFLINE"
            ) from None
        except Exception as error:  # the client's, httpx's or the system's
            raise ModelError(
                f"model {spec.path}: the Hub cannot be reached or refuses access ({type(error).__name__}); "
                "give the path of a local folder instead"
            ) from None
        self.revision = str(info.sha)
        self.names = {sibling.rfilename for sibling in info.siblings or []}

    def config(self, name: str) -> dict[str, Any]:
        """See ModelFiles."""
        try:
            return dict(json.loads(self.text(name)))
        except (ValueError, TypeError) as error:
            raise self._broken(name, error) from None

    def text(self, name: str) -> str:
        """See ModelFiles."""
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(self.spec.path, name, revision=self.revision)
            return Path(path).read_text(encoding="utf-8")
        except Exception as error:  # the client's, httpx's or the system's
            raise self._broken(name, error) from None

    def _broken(self, name: str, error: Exception) -> ModelError:
        return ModelError(
            f"model {self.spec.path}: {name} is missing or broken ({type(error).__name__}); "
            "it needs a complete model in diffusers or transformers format"
        )


def has_weights(spec: ModelSpec, names: set[str], safety_checker: bool) -> bool:
    """Whether all weights that a spec needs are among the names."""
    if isinstance(spec, StableDiffusionSpec):
        return all(any_matches(names, weight_files(part, spec.variant)) for part in weighty(safety_checker))
    return any_matches(names, DEPTH_WEIGHTS if isinstance(spec, DepthSpec) else CLIP_WEIGHTS)


def weighty(safety_checker: bool) -> list[str]:
    """Parts of a Stable Diffusion checkpoint that have weights and are loaded."""
    return [part for part in WEIGHTS if part in SD_FOLDERS or safety_checker]


def any_matches(names: set[str], patterns: list[str]) -> bool:
    """Whether any of the names matches any of the patterns."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
