"""The nouns of a job: a row of the manifest, a stereo pair, a failed row, a committed shard. Imports no torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

ID_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$"
ID_RULE = "1 to 200 characters of A-Z a-z 0-9 . _ - and not starting with a dot"
_ID = re.compile(ID_PATTERN)


def valid_id(value: str) -> bool:
    """Tell whether `value` may be the id of a manifest row."""
    return _ID.fullmatch(value) is not None


@dataclass(frozen=True)
class Camera:
    """The camera of a row, to turn metric depth into disparity (Eq. 2). None: the row does not say.

    Attributes:
        focal_px: focal length in pixels.
        baseline: distance of both cameras, in the unit of the depth.
        doffs_px: difference of both principal points, in pixels.
    """

    focal_px: float | None = None
    baseline: float | None = None
    doffs_px: float | None = None


@dataclass(frozen=True)
class DisparityEncoding:
    """What the stored values of a row's disparity maps mean.

    Attributes:
        encoding: how a value lies in the channels: `plain` or `foundation_stereo`, see `Recipe.disparity_encoding`.
        scale: stored value of a disparity of one pixel; None: floats are pixels, and integers are refused.
        unknown: stored value that means unknown; None: 0 among integers, and none among floats.
    """

    encoding: str = "plain"
    scale: float | None = None
    unknown: float | None = None


@dataclass(frozen=True)
class Row:
    """One pair to be made: a manifest row, or one variant of it.

    Attributes:
        id: unique in the dataset; `<id>~k` for variant k of a manifest row.
        seed: 63 bits; rows of one prompt and seed share the left image.
        scale_percent: shift of the nearest point in percent of the width.
        inputs: bytes of the manifest's image columns that the mode needs.
        depth_kind: what the `depth` input holds: `inverse` or `metric` depth.
        camera: the camera, as far as the row describes it.
        carried: the manifest's further columns, written as `src_*`: arrays of one cell, which pass bit for bit.
        error: why the row could not be read; it is then reported and not generated. None: the row is good.
        disparity: what the values of `disparity` and `true_disparity` mean.
    """

    id: str
    prompt: str
    negative_prompt: str
    seed: int
    scale_percent: float
    inputs: dict[str, bytes] = field(default_factory=dict)
    depth_kind: str = "inverse"
    camera: Camera = Camera()
    carried: dict[str, Any] = field(default_factory=dict)
    error: "RowError | None" = None
    disparity: DisparityEncoding = DisparityEncoding()


QUALITY_PREFIX = "qc_"
"""Prefix of the columns with metrics that need no ground truth."""
TRUE_PREFIX = "true_"
"""Prefix of the columns with scores against the true right view."""
REJECTED = "rejected"
"""Error type of a finished pair that its verdict leaves out: it is no failure and is not retried."""


@dataclass(frozen=True)
class RowError:
    """A row that failed, as data and not as an exception.

    Attributes:
        id: id of the row.
        error_type: a short name, such as `InvalidRow`, or the name of an exception.
        error_message: names the field, the rule, the value and the remedy where it can.
        attempts: how often the row was tried.
        row: its position in the shard; -1 where it has none yet.
    """

    id: str
    error_type: str
    error_message: str
    attempts: int = 1
    row: int = -1


class LeftDepth(NamedTuple):
    """Depth that the estimator finds in a finished left view, at the size at which quality control compares the views.

    Attributes:
        plain: H,W float32 inverse depth of the left view.
        mirrored: H,W float32 inverse depth of the left view turned left to right; itself still turned.
    """

    plain: NDArray[np.float32]
    mirrored: NDArray[np.float32]


class ClipScores(NamedTuple):
    """CLIP scores of both views with the row's prompt, 0 to 100; larger is better."""

    left: float
    right: float


@dataclass(frozen=True)
class ModelScores:
    """What models find in a finished pair.

    Attributes:
        depth: None where quality control is off.
        clip: None where quality control is off, without a CLIP model, and without a prompt.
        unsafe: whether the safety checker flags either view; None where it is off.
    """

    depth: LeftDepth | None = None
    clip: ClipScores | None = None
    unsafe: bool | None = None


class TrueHoles(NamedTuple):
    """Right pixels that the left view does not show, by the true disparity.

    Attributes:
        hole: H,W bool, True where the left view does not show the pixel.
        known: H,W bool, True where `hole` is known.
    """

    hole: NDArray[np.bool_]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """What a row says of the true right view.

    Attributes:
        right: H,W,3 uint8, what a camera saw there.
        holes: None without a true disparity.
    """

    right: NDArray[np.uint8]
    holes: TrueHoles | None = None


@dataclass(frozen=True)
class StereoPair:
    """One finished pair. Images are H,W,3 uint8, disparities H,W float32 in pixels, masks H,W bool.

    Attributes:
        disparity: APPLIED disparity of the left view: what the pixels really did.
        disparity_requested: before quantisation and clipping; None when equal.
        disparity_of: `first_left` where the method changed the left view after depth was estimated on it.
        mask_nonocc_left: left pixels that are visible in the right view.
        mask_hole_right: right pixels without a source, filled by diffusion.
        mask_border_right: the part of the holes at the frame's edge.
        unet_evaluations: U-Net evaluations that went into this pair; a left image shared by several scales
            counts in each of them, so that the number depends on the row alone.
        raw_right: the right view before the composite; None where there was none.
        left_psnr: photo modes: PSNR in dB of the left view against the photo, outside of a mask, at most 100.
        scale_sign: -1 where the second view lies to the left, so that the smallest disparity is the nearest.
        model_scores: what models find in the finished views.
        truth: what the row says of the true right view; None where it says nothing.
        prompt_cut: whether the text encoder read only the beginning of the prompt or of the negative prompt.
    """

    id: str
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    disparity: NDArray[np.float32]
    disparity_requested: NDArray[np.float32] | None
    disparity_of: Literal["left", "first_left"]
    mask_nonocc_left: NDArray[np.bool_]
    mask_hole_right: NDArray[np.bool_]
    mask_border_right: NDArray[np.bool_]
    unet_evaluations: int
    raw_right: NDArray[np.uint8] | None = None
    left_psnr: float | None = None
    scale_sign: Literal[1, -1] = 1
    model_scores: ModelScores = ModelScores()
    truth: Truth | None = None
    prompt_cut: bool = False


class Mean(BaseModel):
    """The mean of a metric over the pairs that have it."""

    model_config = ConfigDict(frozen=True)

    count: int
    mean: float


class QualitySummary(BaseModel):
    """Counts of verdicts and means of metrics over some pairs, pairs that were dropped for their verdict included."""

    model_config = ConfigDict(frozen=True)

    judged: int = 0
    accepted: int = 0
    reasons: dict[str, int] = Field({}, description="Rejected pairs by `reject_reason`.")
    means: dict[str, Mean] = Field({}, description="Means by column name, such as `qc_epe`.")

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "QualitySummary":
        """Summarise rows of a dataset, given by column; rows without a verdict do not count."""
        judged = [row for row in rows if row.get("accepted") is not None]
        reasons = [row["reject_reason"] for row in judged if not row["accepted"]]
        values: dict[str, list[float]] = {}
        for row in judged:
            for name, value in row.items():
                if name.startswith(QUALITY_PREFIX) and value is not None:
                    values.setdefault(name, []).append(value)
        return cls(
            judged=len(judged),
            accepted=len(judged) - len(reasons),
            reasons={reason: reasons.count(reason) for reason in sorted(set(reasons))},
            means={name: Mean(count=len(found), mean=sum(found) / len(found)) for name, found in values.items()},
        )

    def merged(self, other: "QualitySummary") -> "QualitySummary":
        """Return the summary of both sets of pairs together."""
        reasons = {name: self.reasons.get(name, 0) + n for name, n in other.reasons.items()}
        means = dict(self.means)
        for name, theirs in other.means.items():
            ours = means.get(name, Mean(count=0, mean=0.0))
            count = ours.count + theirs.count
            mean = (ours.count * ours.mean + theirs.count * theirs.mean) / count
            means[name] = Mean(count=count, mean=mean)
        return QualitySummary(
            judged=self.judged + other.judged,
            accepted=self.accepted + other.accepted,
            reasons=dict(sorted((self.reasons | reasons).items())),
            means=means,
        )

    @property
    def acceptance(self) -> float | None:
        """Share of the judged pairs that were accepted, in [0, 1]; None where none was judged."""
        return self.accepted / self.judged if self.judged else None


WEIGHTED = re.compile(r"\([^()]*[^()\d:]\s*:\s*(?:[0-4](?:\.\d*)?|\.\d+|5(?:\.0*)?)\s*\)")
"""Attention weights of other programs, such as `(red:1.4)`. A text like `(16:9)` or `(at 10:30)` has none."""
_COUNT = Field(0, ge=0, lt=2**53)


class PromptNotes(BaseModel):
    """Counts of prompts of which the model reads something else than their author may think.

    Negative prompts count as well. Each example is the id of the first such row.
    """

    model_config = ConfigDict(frozen=True)

    cut: Annotated[int, _COUNT] = Field(0, description="Prompts longer than the text encoder reads; the rest is cut.")
    cut_example: str = ""
    weighted: Annotated[int, _COUNT] = Field(0, description="Prompts with attention weights, which are read as text.")
    weighted_example: str = ""

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "PromptNotes":
        """Count among rows with `id`, `prompt`, `negative_prompt` and `prompt_cut`, the last as StereoPair has it."""
        cut, weighted = [], []
        for row in rows:
            if row.get("prompt_cut"):
                cut.append(row["id"])
            if find_weight(row.get("prompt"), row.get("negative_prompt")):
                weighted.append(row["id"])
        return cls(
            cut=len(cut),
            cut_example=cut[0] if cut else "",
            weighted=len(weighted),
            weighted_example=weighted[0] if weighted else "",
        )

    def merged(self, other: "PromptNotes") -> "PromptNotes":
        """Return the counts of both together, with the examples of this one where it has them."""
        return PromptNotes(
            cut=self.cut + other.cut,
            cut_example=self.cut_example or other.cut_example,
            weighted=self.weighted + other.weighted,
            weighted_example=self.weighted_example or other.weighted_example,
        )


def find_weight(*prompts: str | None) -> str | None:
    """Return the first attention weight in any of the prompts, such as `(red:1.4)`; None where there is none."""
    found = (WEIGHTED.search(prompt) for prompt in prompts if prompt and ":" in prompt)
    return next((match[0] for match in found if match), None)


class ShardRecord(BaseModel):
    """Counts and timings of one committed shard. They stand in its own footer and, as a cache, in `_job/commits/`."""

    model_config = ConfigDict(frozen=True)

    generation: int
    shard: int
    fingerprint: str = Field(description="Fingerprint of the plan generation.")
    planned: int
    succeeded: int
    failed: int
    rejected: int = Field(0, description="Pairs that `drop_rejected` left out; they do not count as failed.")
    failures: dict[str, int] = Field({}, description="Failed rows by error type.")
    quality: QualitySummary = QualitySummary()
    prompts: PromptNotes = PromptNotes()
    unet_evaluations: int = 0
    seconds: float = Field(description="Seconds from the first batch to the last, in the model thread.")
    worker: str = ""
    sha256: str = Field("", description="SHA-256 of the whole object; empty inside the object itself.")
    bytes: int = Field(0, description="Size of the object; 0 inside the object itself.")


# --- The columns of a dataset (schema_version 2) ---

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_METRICS = (
    *("qc_epe", "qc_bad_2", "qc_d1", "qc_density", "qc_fit_a", "qc_fit_b", "qc_lr_consistency"),
    *("qc_backwarp_psnr", "qc_backwarp_ssim", "qc_backwarp_lpips", "qc_siou", "qc_identity", "qc_vertical_px"),
    *("qc_color_delta", "qc_hole_share", "qc_hole_sharpness", "qc_seam", "qc_ghost", "qc_speckle"),
    *("qc_clip_left", "qc_clip_right"),
    *("qc_depth_confidence", "qc_depth_rank", "qc_control_bad_2"),
    *("qc_raw_epe", "qc_raw_bad_2", "qc_raw_backwarp_lpips"),
    *("true_psnr", "true_psnr_nonocc", "true_psnr_occ"),
    *("true_ssim", "true_ssim_nonocc", "true_ssim_occ"),
    *("true_lpips", "true_lpips_nonocc", "true_lpips_occ"),
)

IMAGE_COLUMNS = (
    "left",
    "right",
    "disparity",
    "disparity_requested",
    "mask_nonocc_left",
    "mask_hole_right",
    "mask_border_right",
)
RUN_PREFIX = "run_"
"""Prefix of the only columns that may differ between two runs of one recipe."""
CARRIED_PREFIX = "src_"
"""Prefix of the columns that are carried over from the manifest."""

DATASET_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("left", _IMAGE),
        ("right", _IMAGE),
        ("disparity", _IMAGE),
        ("disparity_requested", _IMAGE),
        ("disparity_of", pa.string()),
        ("mask_nonocc_left", _IMAGE),
        ("mask_hole_right", _IMAGE),
        ("mask_border_right", _IMAGE),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seed", pa.int64()),
        ("scale_percent", pa.float64()),
        ("focal_px", pa.float64()),
        ("baseline", pa.float64()),
        ("doffs_px", pa.float64()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("mode", pa.string()),
        ("preset", pa.string()),
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("depth_model", pa.string()),
        ("depth_model_revision", pa.string()),
        ("unet_evaluations", pa.int32()),
        ("left_psnr", pa.float32()),
        ("unsafe", pa.bool_()),
        ("accepted", pa.bool_()),
        ("reject_reason", pa.string()),
        *((name, pa.float32()) for name in _METRICS),
        ("run_seconds", pa.float64()),
        ("run_attempt", pa.int32()),
        ("run_batch", pa.int32()),
        ("run_version", pa.string()),
        ("run_device", pa.string()),
    ]
)

ERROR_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("attempts", pa.int32()),
    ]
)
