"""JobSpec: the complete description of a job.

`recipe` is everything that the rows depend on. It is hashed and stored in every plan, and it may not change for an
existing output. `runtime` says how the job is run. It is never hashed or stored, and it may change between runs.
"""

import hashlib
import json
import re
import urllib.parse
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from stereo_jobs import plain_data
from stereo_jobs.local_files import check_location
from stereo_jobs.logs import LogFormat
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.stereo import METHOD_VERSION
from stereo_jobs.stereo.config import MethodConfig

SCHEMA_VERSION = 2
MAX_SECONDS = 10_000_000
"""Longest time that a field may name, about four months; clocks and timers of the libraries end somewhere above it."""
LARGEST_AUTO_BATCH = 16
"""Largest `batch_size` that auto chooses: U-Nets gain little beyond it, and short batches are padded."""
DEMO = "demo"
"""Name of the models that are embedded in the package."""

Dtype = Literal["float32", "float16", "bfloat16"]
"""Precision of a network's weights and of what it computes."""
_REVISION = "Branch, tag or commit of a Hub id, as for recipe.models.stable_diffusion."


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def check_scale_percent(value: float) -> float:
    """Return `value` if it is a usable disparity scale in percent of the width; raise ValueError otherwise."""
    if not 0.5 <= abs(value) <= 30:
        hint = f"; {value} looks like a fraction: write {value * 100:g}" if 0 < abs(value) < 0.5 else ""
        raise ValueError(f"must be a percentage of the image width from 0.5 to 30 (or -0.5 to -30){hint}")
    return value


class StableDiffusionSpec(_Model):
    """Which Stable Diffusion checkpoint generates the images."""

    path: str = Field(
        DEMO,
        min_length=1,
        description="A folder in diffusers format, a Hub id (`owner/name`), or `demo`: the embedded model.",
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a Hub id. Plans store the commit it resolves to; for a folder, a digest "
        "of its content.",
    )
    variant: str | None = Field(None, description="Variant of the weight files on the Hub, for example `fp16`.")
    dtype: Dtype = Field("float32", description="Precision of the networks; latents are always kept in float32.")


class DepthSpec(_Model):
    """Which depth estimator the disparity is computed with."""

    path: str = Field(
        DEMO,
        min_length=1,
        description="A folder in transformers format, a Hub id, or `demo`: the embedded estimator. It was trained on "
        "ToyScapes only; name another one for any other Stable Diffusion checkpoint.",
    )
    revision: str | None = Field(None, description=_REVISION)
    dtype: Dtype = Field("float32", description="Precision of the network.")
    polarity: Literal["auto", "inverse", "metric"] = Field(
        "auto",
        description="What the estimator returns: inverse depth (larger is nearer) or metric depth. `auto` "
        "knows DPT, MiDaS, Depth Anything, ZoeDepth and GLPN; set it for any other family.",
    )


class ClipSpec(_Model):
    """Which CLIP model measures how well the views match the prompt."""

    path: str = Field(
        min_length=1,
        description="A folder in transformers format, or a Hub id, for example `openai/clip-vit-large-patch14`.",
    )
    revision: str | None = Field(None, description=_REVISION)
    dtype: Dtype = Field("float32", description="Precision of the network.")


class ModelsSpec(_Model):
    """The models of a job."""

    stable_diffusion: StableDiffusionSpec = Field(
        default_factory=StableDiffusionSpec, description="Generates the images."
    )
    depth: DepthSpec = Field(default_factory=DepthSpec, description="Estimates depth, from which disparity follows.")
    clip: ClipSpec | None = Field(
        None,
        description="Measures how well each view matches the prompt, for the columns `qc_clip_left` and "
        "`qc_clip_right`; null: not measured.",
    )
    safety_checker: bool = Field(
        False, description="Run the checkpoint's own safety checker on both views, and fill the column `unsafe`."
    )

    @property
    def names(self) -> str:
        """The checkpoints as the recipe names them, in one line for people."""
        named = {"": self.stable_diffusion, "depth ": self.depth, "CLIP ": self.clip}
        return ", ".join(f"{kind}{model.path}" for kind, model in named.items() if model)


class ScaleRange(_Model):
    """A range of `scale_percent`. Each row draws its own value, which its seed determines."""

    min: float = Field(description="Smallest shift of the nearest point, in percent of the width.")
    max: float = Field(description="Largest shift of the nearest point, in percent of the width.")

    _units = field_validator("min", "max")(check_scale_percent)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min >= self.max or self.min * self.max < 0:
            raise ValueError(f"needs min < max of one sign, got min {self.min:g} and max {self.max:g}")
        return self


class Variants(_Model):
    """Several pairs per manifest row; variant k of row `x` has the id `x~k`."""

    seeds: PositiveInt = Field(1, le=10_000, description="Number of different seeds per row.")
    scale_percent: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(
        (), description="Several disparity scales per seed; their pairs share the left image."
    )

    @field_validator("scale_percent")
    @classmethod
    def _units(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            check_scale_percent(value)
        if len(set(values)) != len(values):
            raise ValueError(f"must not name a scale twice, got {list(values)}")
        return values

    @property
    def per_row(self) -> int:
        """Number of pairs that one manifest row becomes."""
        return self.seeds * max(1, len(self.scale_percent))


class Size(_Model):
    """Size of the generated images."""

    width: int = Field(ge=32, le=4096, description="Width in pixels; a multiple of the latent factor.")
    height: int = Field(ge=32, le=4096, description="Height in pixels; a multiple of the latent factor.")


Mode = Literal["text", "depth", "image", "inpaint"]
Encoding = Literal["plain", "foundation_stereo"]


class Recipe(_Model):
    """Everything that the rows depend on. It is hashed: another recipe needs another output."""

    mode: Mode = Field(
        "text",
        description="Input of a row. text: a prompt. depth: a prompt with a depth map, or with an image to estimate it "
        "from. image: a photo, which becomes the left view. inpaint: a photo with a mask; the masked part is filled "
        "first (Fig. 8).",
    )
    models: ModelsSpec = Field(default_factory=ModelsSpec, description="Checkpoints and their precision.")
    method: MethodConfig = Field(
        default_factory=MethodConfig,
        description="Settings of the StereoDiffusion method: a preset, and switches that change it.",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the job. A row without its own seed gets a hash of this one and its id."
    )
    scale_percent: float | ScaleRange = Field(
        8.0, description="Shift of the nearest point in percent of the width (s in the paper), or a range {min, max}."
    )
    variants: Variants = Field(default_factory=Variants, description="Several pairs per manifest row.")
    size: Size | None = Field(
        None,
        description="Size of generated images; null: the size the model was trained on. A photo keeps its shape and "
        "size: it is processed at the same area, and the views are brought back to its size.",
    )
    disparity_scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Stored value of one pixel of disparity in `disparity` and `true_disparity`: 256 for KITTI, 1 for "
        "whole pixels. null: floats are pixels, and maps of integers are refused. A row's column `disparity_scale` "
        "goes before it.",
    )
    disparity_encoding: Encoding = Field(
        "plain",
        description="How disparity maps hold a value. plain: in one channel. foundation_stereo: in the three bytes of "
        "an RGB picture, (255 * 255 * R + 255 * G + B) / 1000 pixels. A row's column `disparity_encoding` goes before "
        "it.",
    )
    disparity_unknown: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Stored value of disparity maps that means unknown, beside inf and NaN, which always do. null: 0 "
        "in maps of integers, none in maps of floats. A row's column `disparity_unknown` goes before it.",
    )
    resize_maps: Literal["refuse", "nearest", "linear"] = Field(
        "refuse",
        description="What happens to a depth map, disparity map or mask of another size than its photo. refuse: the "
        "row fails. nearest, linear: it is resized if its shape is the photo's, and disparities grow with the width; "
        "masks are always resized by nearest. linear: a pixel is unknown if one of the samples it is made of, up to "
        "four, is.",
    )
    negative_prompt: str = Field("", max_length=2000, description="Negative prompt of rows that have none.")
    quality: QualityConfig = Field(
        default_factory=QualityConfig, description="Metrics without ground truth, and a verdict, for every pair."
    )
    format: Literal["parquet"] = Field("parquet", description="Format of the shards.")

    @model_validator(mode="after")
    def _text_has_no_pixels(self) -> Self:
        if self.mode == "text" and self.method.geometry == "metric":
            raise ValueError("method.geometry metric needs known disparities, and mode text has none; use relative")
        return self

    @model_validator(mode="after")
    def _given_to_photos(self) -> Self:
        if self.method.right_view == "given" and self.mode != "image":
            raise ValueError(f"method.right_view given needs photos: set mode to image, not {self.mode}")
        return self

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.disparity_encoding != "plain" and self.disparity_scale is not None:
            raise ValueError(
                f"disparity_encoding {self.disparity_encoding} has a scale of its own; remove disparity_scale, or set "
                "disparity_encoding to plain"
            )
        return self

    @model_validator(mode="after")
    def _clip_for_its_rule(self) -> Self:
        if self.quality.min_clip is not None and self.models.clip is None:
            raise ValueError("quality.min_clip needs a CLIP model; set models.clip, or quality.min_clip to null")
        return self

    @field_validator("scale_percent")
    @classmethod
    def _units(cls, value: float | ScaleRange) -> float | ScaleRange:
        return value if isinstance(value, ScaleRange) else check_scale_percent(value)

    @property
    def inverts(self) -> bool:
        """Whether the pair starts from latents that are found for a picture (Sec. 3.4)."""
        return self.method.diffuses_pair and (self.mode in ("image", "inpaint") or self.method.two_pass)

    def canonical(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, with the versions that the rows also depend on."""
        versions = {"schema_version": SCHEMA_VERSION, "method_version": METHOD_VERSION}
        return self.model_dump(mode="json") | versions


class ActorRange(_Model):
    """Smallest and largest number of actors; the cluster's free resources decide in between."""

    min: PositiveInt = Field(description="Work starts when this many actors are ready.")
    max: PositiveInt = Field(description="Largest number of actors.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"needs min <= max, got min {self.min} and max {self.max}")
        return self


_LABEL = "(?!-)[a-z0-9-]{1,63}(?<!-)"
_HOST = re.compile(rf"({_LABEL}\.)*{_LABEL}|[0-9a-f:.]*:[0-9a-f:.]*", re.IGNORECASE)


def _has_host(url: str) -> bool:
    """Return whether boto3 will find a host in the URL, and a port that can be one."""
    try:
        parts = urllib.parse.urlsplit(url)
        return bool(_HOST.fullmatch(parts.hostname or "")) and (parts.port or 0) >= 0 and len(parts.netloc) <= 255
    except ValueError:
        return False


_BUCKET = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class StorageSpec(_Model):
    """S3 access. Missing credentials are resolved by the standard AWS chain (environment, profile, instance role)."""

    endpoint_url: str | None = Field(
        None, pattern=r"^https?://[!-~]+$", description="URL of an S3 server other than AWS, with http:// or https://."
    )
    region: str | None = Field(None, description="AWS region.")
    profile: str | None = Field(None, description="Profile in the AWS configuration files.")
    access_key_id: SecretStr | None = Field(
        None, description="Access key, as ${ENV}; better leave it to the AWS credential chain."
    )
    secret_access_key: SecretStr | None = Field(
        None, description="Secret key, as ${ENV}; better leave it to the AWS credential chain."
    )
    anonymous: bool | tuple[str, ...] = Field(
        False,
        description="Read public buckets without credentials. true: all buckets of the job; a list of bucket names "
        "(`[laion-photos]`): these only, while all others, such as the output's, are accessed with credentials.",
    )

    @field_validator("endpoint_url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value and "@" in value:
            raise ValueError(
                "the URL has a password in it, which S3 does not use; set access_key_id and secret_access_key instead"
            )
        if value and not _has_host(value):
            raise ValueError("the URL needs a host, with a port from 0 to 65535 if it has one: http://host:8333")
        return value

    @model_validator(mode="after")
    def _both_keys(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together; set both or neither")
        return self

    @field_validator("anonymous", mode="before")
    @classmethod
    def _all_or_some(cls, value: Any) -> Any:
        if not isinstance(value, bool | list | tuple):
            raise ValueError("must be true, false, or a list of bucket names")
        for name in [] if isinstance(value, bool) else value:
            if not (isinstance(name, str) and _BUCKET.fullmatch(name)):
                raise ValueError(
                    f"must list names of buckets, without s3:// and prefix; {plain_data.shown(name)} is none"
                )
        return value

    @model_validator(mode="after")
    def _no_credentials_to_ignore(self) -> Self:
        named = [name for name in ("profile", "access_key_id") if getattr(self, name) is not None]
        if self.anonymous is True and named:
            raise ValueError(
                f"anonymous: true uses no credentials, and {named[0]} is set; drop one of them, or list in anonymous "
                "the buckets that need no credentials"
            )
        return self

    def for_bucket(self, bucket: str) -> Self:
        """Return the settings of one bucket, whose `anonymous` is true or false."""
        if isinstance(self.anonymous, bool):
            return self
        if bucket not in self.anonymous:
            return self.model_copy(update={"anonymous": False})
        none = {"profile": None, "access_key_id": None, "secret_access_key": None}
        return self.model_copy(update={"anonymous": True} | none)


class Runtime(_Model):
    """How the job is run. It is never hashed and may change between runs of one output."""

    actors: PositiveInt | ActorRange | None = Field(
        None,
        description="Number of actors, each with its own models. null: one per GPU of the present nodes, or one per "
        "CPU if there are no GPUs. A number or {min, max} is also requested from an autoscaling cluster.",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="Device of the models; auto: CUDA if there is a GPU."
    )
    gpus_per_actor: float = Field(
        1.0, gt=0, le=64, description="GPUs per actor; with a fraction, several actors share one GPU."
    )
    cpus_per_actor: float = Field(1.0, ge=0, le=1024, description="CPUs that Ray reserves per actor.")
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        4,
        description="Pairs that are denoised together; shorter batches are padded to this size. auto: as many as the "
        "GPU's memory is likely to hold, at most 16, alike for GPUs of one size; 1 on a CPU. Either is halved while "
        "GPU memory runs out.",
    )
    compile: bool = Field(
        False,
        description="Compile U-Net and VAE with torch.compile. The first batch of each actor then takes minutes, which "
        "pays on a GPU for jobs of many rows; torch needs a C++ compiler on the machine. Pictures differ by float "
        "noise before rounding, as with another batch_size.",
    )
    shard_rows: PositiveInt = Field(
        128,
        le=100_000,
        description="Rows per shard, the unit of recovery. A change applies to the next plan generation.",
    )
    row_attempts: PositiveInt = Field(2, le=10, description="Attempts at a row before it is recorded as failed.")
    shard_attempts: PositiveInt = Field(3, le=100, description="Attempts at a shard before the run stops.")
    shard_timeout_s: float = Field(
        3600.0,
        gt=0,
        description="Maximum seconds per shard; then the actor is replaced and the shard is retried.",
    )
    batch_timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Maximum seconds per batch; then the actor is replaced. A row that causes this twice is "
        "recorded as failed. A row whose reading, or scoring and encoding, takes longer (or longer than half of "
        "shard_timeout_s) is recorded as failed at once (TimedOut).",
    )
    start_timeout_s: float = Field(
        900.0, gt=0, description="Maximum seconds for the first actors to load their models."
    )
    spot_notice: str | None = Field(
        None,
        description="Source of preemption notices for spot machines: `aws` or `gcp` (their metadata services), or the "
        "path of a file that appears before preemption. No more shards are dispatched to actors on such a machine.",
    )
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        description="Seconds after SIGTERM in which running shards may finish; then they are abandoned.",
    )
    max_failure_ratio: float = Field(
        0.1, ge=0, le=1, description="The run stops when a larger fraction of its rows than this has failed."
    )
    lease_ttl_s: float = Field(
        60.0,
        ge=0,
        description="Seconds without a sign of life from a run before another run may take over its output; 0 disables "
        "the lease.",
    )
    allowed_prefixes: tuple[str, ...] | None = Field(
        None,
        description="Folders and prefixes that image URIs of a manifest may point to; null: the manifest's own folder.",
    )
    max_image_bytes: PositiveInt = Field(
        64 * 1024**2, description="Maximum size of an input in bytes; larger ones are rejected before download."
    )
    max_image_pixels: PositiveInt = Field(
        50_000_000, description="Maximum number of pixels of an input; larger ones are rejected before decoding."
    )
    ray_address: str | None = Field(
        None, description="Address of an existing Ray cluster; null: RAY_ADDRESS, or a local one."
    )
    log_format: LogFormat = Field(
        "text",
        description="Format of the logs, also those of actors: text for people, or JSON objects with the ids of job, "
        "shard and row.",
    )
    storage: StorageSpec = Field(default_factory=StorageSpec, description="S3 access.")

    @field_validator("batch_size", mode="wrap")
    @classmethod
    def _number_or_auto(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError("must be a whole number from 1 to 1024, or auto") from None

    @field_validator("shard_timeout_s", "batch_timeout_s", "start_timeout_s", "drain_timeout_s", "lease_ttl_s")
    @classmethod
    def _fit_timers(cls, value: float) -> float:
        if not value <= MAX_SECONDS:
            raise ValueError(f"must be at most {MAX_SECONDS} seconds")
        return value

    @property
    def largest_batch(self) -> int:
        """The largest batch size that an actor may take."""
        return LARGEST_AUTO_BATCH if self.batch_size == "auto" else self.batch_size

    @field_validator("allowed_prefixes")
    @classmethod
    def _readable(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for value in values or ():
            check_location(value)
            if value.startswith("s3://") and ".." in urllib.parse.unquote(value).split("/"):
                raise ValueError("'..' is not allowed in an s3:// prefix")
        return values


class JobSpec(_Model):
    """One job: a manifest becomes a dataset, following a recipe."""

    manifest: str | tuple[str, ...] = Field(
        description="Parquet files: a file, a glob or a folder (prefix), local or s3://; or a list of these."
    )
    output: str = Field(min_length=1, description="Folder or s3:// prefix of the dataset.")
    recipe: Recipe = Field(default_factory=Recipe, description="Everything that the rows depend on.")
    runtime: Runtime = Field(default_factory=Runtime, description="How the job is run.")

    @field_validator("manifest")
    @classmethod
    def _some_manifest(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all([value] if isinstance(value, str) else value):
            raise ValueError("must name at least one Parquet file, glob or folder")
        for pattern in [value] if isinstance(value, str) else value:
            check_location(pattern)
        return value

    @field_validator("output")
    @classmethod
    def _some_place(cls, value: str) -> str:
        check_location(value)
        return value

    @property
    def manifests(self) -> tuple[str, ...]:
        """The manifest patterns, always as a tuple."""
        return (self.manifest,) if isinstance(self.manifest, str) else self.manifest


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form, as hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
