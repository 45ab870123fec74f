"""Thresholds of quality control. Imports nothing heavy: a job's spec holds them."""

from pydantic import BaseModel, ConfigDict, Field


class QualityConfig(BaseModel):
    """What is measured of every pair, and which pairs are accepted. A threshold of null switches its rule off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(
        True, description="Measure every pair: fills the columns `qc_*`, `accepted`, `reject_reason`."
    )
    drop_rejected: bool = Field(
        False,
        description="Leave rejected pairs out of the data and list them among the errors as `rejected`, which "
        "`max_failure_ratio` does not count and `retry-failed` does not try again. False keeps them, marked.",
    )
    max_vertical_px: float | None = Field(
        0.5, gt=0, description="`vertical_shift`: corners lie higher or lower in the right view, median pixels."
    )
    max_color_delta: float | None = Field(
        2.0, gt=0, description="`color_cast`: mean CIE Lab difference of pixels that match."
    )
    min_density: float | None = Field(
        0.1, gt=0, le=1, description="`unmatched`: share of the visible pixels that a stereo matcher finds again."
    )
    min_fit_a: float | None = Field(-0.3, le=0, description="`swapped_eyes`: slope of matched over labelled disparity.")
    max_offset_px: float | None = Field(
        1.5, gt=0, description="`disparity_offset`: matched minus labelled disparity at zero, pixels."
    )
    min_parallax: float | None = Field(
        0.3,
        gt=0,
        le=1,
        description="`no_parallax`: matched over labelled disparity of near things; 0 is a copied view.",
    )
    min_identity: float | None = Field(
        0.7, gt=0, le=1, description="`disparity_scale`: matched over labelled disparity of near things, at least."
    )
    max_identity: float | None = Field(1.4, ge=1, description="`disparity_scale`: the same, at most.")
    max_bad_2: float | None = Field(
        0.6,
        gt=0,
        le=1,
        description="`matcher`, and `raw_matcher` for the right view before the composite: share of matched pixels "
        "more than 2 pixels off the label, beyond what the matcher gets wrong on a perfect pair (`qc_control_bad_2`).",
    )
    min_lr_consistency: float | None = Field(
        None, gt=0, le=1, description="`left_right`: share of matches that the matcher confirms from the right view."
    )
    min_backwarp_psnr: float | None = Field(
        None, gt=0, description="`backwarp`: dB of the right view warped back against the left."
    )
    max_backwarp_lpips: float | None = Field(
        None, gt=0, description="`backwarp`: LPIPS of the same, also of the right view before the composite."
    )
    min_siou: float | None = Field(
        None, gt=0, le=1, description="`siou`: edges and change against the filled pixel warp."
    )
    max_hole_share: float | None = Field(
        None, gt=0, le=1, description="`holes`: share of the right view without a source."
    )
    max_empty_seam: float | None = Field(
        40.0, gt=1, description="`empty_holes`: the seam's gradient, as for max_seam, of holes that nobody filled."
    )
    max_seam: float | None = Field(
        10.0, gt=1, description="`seam`: gradient across the holes' seam over the gradient around it."
    )
    min_hole_sharpness: float | None = Field(
        0.08, gt=0, description="`blurred_holes`: variance of the Laplacian in the holes over that beside them."
    )
    max_depth_confidence: float | None = Field(
        None, gt=0, description="`depth_doubt`: difference of the depth of the left view and of its mirror image."
    )
    min_depth_rank: float | None = Field(
        0.5,
        gt=-1,
        le=1,
        description="`other_depth`: rank correlation of the label's steps with the left view's depth.",
    )
    min_clip: float | None = Field(
        None,
        gt=0,
        le=100,
        description="`prompt_mismatch`: the smaller CLIP score of the two views with the prompt; needs `models.clip`.",
    )
