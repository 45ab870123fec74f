"""A model's files, in a folder or on the Hub: which there are, what pins them, and the way to this machine."""

import hashlib
import json
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from stereo_jobs.errors import ModelError
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
"""Name of the weight files in the folders that have any."""

DEPTH_WEIGHTS = ["*.safetensors"]
DEPTH_FILES = ["config.json", "preprocessor_config.json", *DEPTH_WEIGHTS, "*.safetensors.index.json"]
CLIP_WEIGHTS = ["model.safetensors", "model-0*.safetensors"]
"""Not all there are: repositories hold the same weights for other libraries, too."""
CLIP_PROCESSORS = ["preprocessor_config.json", "processor_config.json"]
"""Either says how pictures are prepared; transformers 5 writes the second."""
CLIP_FILES = [
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *(*CLIP_PROCESSORS, *CLIP_WEIGHTS, "model.safetensors.index.json"),
]
COMPLETE = "it needs a complete model folder"


def local_folder(path: str, part: str) -> Path | None:
    """The folder of a model that is not on the Hub; `part` is `sd`, `sd_depth` or `depth` of the embedded demo."""
    folder = DEMO_FOLDER / part if path == DEMO else Path(path).expanduser()
    return folder if folder.is_dir() else None


def part_folder(folder: Path, name: str) -> Path:
    """Folder of one part of a checkpoint. The embedded `sd_depth` takes the parts that it lacks from `sd`."""
    own = folder / name
    if folder == DEMO_FOLDER / "sd_depth" and not own.is_dir():
        return DEMO_FOLDER / "sd" / name
    return own


def fetch(spec: ModelSpec, mode: str = "text", safety_checker: bool = False) -> Path:
    """Folder with a pinned model's files, downloaded once per machine where it is on the Hub.

    Args:
        spec: of a resolved recipe.
        mode: of the recipe; the embedded demo has a checkpoint of its own for `depth`.
        safety_checker: with the files of the safety checker.
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
    except Exception as error:  # the client raises its own errors, those of httpx and of the system
        problem = type(error).__name__
    if problem:  # an unreachable Hub may also show as a folder without the weights
        raise ModelError(
            f"model {spec.path}: cannot be downloaded to this machine ({problem}); every machine of the job needs "
            "the Hub, or give the path of a folder that all of them see"
        )
    return cached


def part_of(spec: ModelSpec, mode: str) -> str:
    """Which of the embedded models a spec means: `sd`, `sd_depth` or `depth`; `clip` is none of them."""
    if isinstance(spec, StableDiffusionSpec):
        return "sd_depth" if mode == "depth" else "sd"
    return "depth" if isinstance(spec, DepthSpec) else "clip"


def patterns_of(spec: ModelSpec, safety_checker: bool) -> list[str]:
    """Patterns of the files that are pinned and loaded: not the other variants, which are gigabytes."""
    if isinstance(spec, StableDiffusionSpec):
        return _sd_patterns(spec.variant, safety_checker)
    return DEPTH_FILES if isinstance(spec, DepthSpec) else CLIP_FILES


def _sd_patterns(variant: str | None, safety_checker: bool) -> list[str]:
    folders = SD_FOLDERS + (SAFETY_FOLDERS if safety_checker else ())
    texts = [f"{folder}/*.{suffix}" for folder in folders for suffix in ("json", "txt")]
    weights = [pattern for folder in folders if folder in WEIGHTS for pattern in weight_files(folder, variant)]
    return ["model_index.json", *texts, *weights]


def weight_files(part: str, variant: str | None) -> list[str]:
    """Patterns of the weight files of a part; the second of sharded ones."""
    stem = f"{part}/{WEIGHTS[part]}" + (f".{variant}" if variant else "")
    return [f"{stem}.safetensors", f"{stem}-0*.safetensors"]


class ModelFiles(Protocol):
    """A model's files, wherever they are."""

    names: set[str]

    @property
    def revision(self) -> str:
        """What pins their content."""

    def config(self, name: str) -> dict[str, Any]:
        """One JSON file."""


def find(spec: ModelSpec, mode: str = "text", safety_checker: bool = False) -> ModelFiles:
    """The files of a model, wherever it is; arguments as for `fetch`. Raises ModelError."""
    folder = local_folder(spec.path, part_of(spec, mode))
    if folder is not None:
        return FolderFiles(spec, folder, patterns_of(spec, safety_checker))
    if isinstance(spec, StableDiffusionSpec) and Path(spec.path).expanduser().is_file():
        raise ModelError(
            f"model {spec.path}: is a single file; write it as a folder with diffusers' "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(...)"
        )
    if _looks_like_path(spec.path):
        raise ModelError(f"model {spec.path}: no such folder")
    return HubFiles(spec)


def _looks_like_path(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1


class FolderFiles:
    """Of a folder on this machine; pinned by a digest of their content."""

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
            path = self.paths.get(name, self.folder / name)
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"model {self.spec.path}: {name} is missing or broken ({error}); {COMPLETE}") from None

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
            raise ModelError(f"model {self.spec.path}: its content is {revision}, not revision {self.spec.revision}")
        return revision


class HubFiles:
    """Of a repository on the Hub; pinned by its commit."""

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
        """See ModelFiles."""
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(self.spec.path, name, revision=self.revision)
            return dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except Exception as error:  # of the client, of httpx, of the system or of JSON
            raise ModelError(
                f"model {self.spec.path}: {name} is missing or broken ({type(error).__name__}); "
                "it needs a complete model in diffusers or transformers format"
            ) from None


def has_weights(spec: ModelSpec, names: set[str], safety_checker: bool) -> bool:
    """Whether all weights that a spec needs are among the names."""
    if isinstance(spec, StableDiffusionSpec):
        return all(any_matches(names, weight_files(part, spec.variant)) for part in weighty(safety_checker))
    return any_matches(names, DEPTH_WEIGHTS if isinstance(spec, DepthSpec) else CLIP_WEIGHTS)


def weighty(safety_checker: bool) -> list[str]:
    """The parts of a Stable Diffusion checkpoint that have weights and are loaded."""
    return [part for part in WEIGHTS if part in SD_FOLDERS or safety_checker]


def any_matches(names: set[str], patterns: list[str]) -> bool:
    """Whether any of the names is of any of the patterns."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
