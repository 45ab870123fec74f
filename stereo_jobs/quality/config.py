"""Thresholds of quality control. This module imports nothing heavy, because a job's spec contains its config."""

from pydantic import BaseModel, ConfigDict, Field


class QualityConfig(BaseModel):
    """Quality control of every pair: whether it is measured, and the rules of acceptance. Null switches a rule off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(
        True, description="Measure every pair and fill the columns `qc_*`, `accepted` and `reject_reason`."
    )
    drop_rejected: bool = Field(
        False,
        description="Leave rejected pairs out of the data and list them among the errors as `rejected`; these do not "
        "count for `max_failure_ratio` and `retry-failed` does not retry them. False keeps them with `accepted` false.",
    )
    max_vertical_px: float | None = Field(
        0.5,
        gt=0,
        description="`vertical_shift`: largest vertical offset of corners between the views, median in pixels.",
    )
    max_color_delta: float | None = Field(
        2.0, gt=0, description="`color_cast`: largest mean CIE Lab difference of matched pixels."
    )
    min_density: float | None = Field(
        0.1,
        gt=0,
        le=1,
        description="`unmatched`: smallest share of the visible pixels that the stereo matcher must match.",
    )
    min_fit_a: float | None = Field(
        -0.3, le=0, description="`swapped_eyes`: smallest slope of the line fitted to matched over labelled disparity."
    )
    max_offset_px: float | None = Field(
        1.5,
        gt=0,
        description="`disparity_offset`: largest offset of the line fitted to matched over labelled disparity, pixels.",
    )
    min_parallax: float | None = Field(
        0.3,
        gt=0,
        le=1,
        description="`no_parallax`: smallest ratio of matched to labelled disparity of near things; 0: a copied view.",
    )
    min_identity: float | None = Field(
        0.7,
        gt=0,
        le=1,
        description="`disparity_scale`: smallest ratio of matched to labelled disparity of near things.",
    )
    max_identity: float | None = Field(
        1.4, ge=1, description="`disparity_scale`: largest ratio of matched to labelled disparity of near things."
    )
    max_bad_2: float | None = Field(
        0.6,
        gt=0,
        le=1,
        description="`matcher`, and `raw_matcher` for the right view before the composite: largest share of matched "
        "pixels that are more than 2 pixels off the label, beyond the share that the matcher gets wrong on a perfect "
        "pair (`qc_control_bad_2`).",
    )
    min_lr_consistency: float | None = Field(
        None,
        gt=0,
        le=1,
        description="`left_right`: smallest share of matches that the matcher confirms from the right view.",
    )
    min_backwarp_psnr: float | None = Field(
        None, gt=0, description="`backwarp`: smallest PSNR of the right view, warped back, against the left, dB."
    )
    max_backwarp_lpips: float | None = Field(
        None,
        gt=0,
        description="`backwarp`: largest LPIPS of the right view, warped back, against the left; also for the right "
        "view before the composite.",
    )
    min_siou: float | None = Field(
        None,
        gt=0,
        le=1,
        description="`siou`: smallest stereo intersection over union (edges and change) with the left view warped by "
        "the label.",
    )
    max_hole_share: float | None = Field(
        None, gt=0, le=1, description="`holes`: largest share of the right view without a source in the left view."
    )
    max_empty_seam: float | None = Field(
        40.0,
        gt=1,
        description="`empty_holes`: like max_seam, but high enough that only holes left empty exceed it.",
    )
    max_seam: float | None = Field(
        10.0, gt=1, description="`seam`: largest ratio of the gradient across a hole's seam to the gradient around it."
    )
    min_hole_sharpness: float | None = Field(
        0.08,
        gt=0,
        description="`blurred_holes`: smallest ratio of the Laplacian's variance in the holes to that beside them.",
    )
    max_ghost: float | None = Field(
        0.1,
        ge=0,
        lt=1,
        description="`ghost`: largest share of the boundary between holes and background that carries colour of the "
        "object in front.",
    )
    max_speckle: float | None = Field(
        0.02,
        ge=0,
        lt=1,
        description="`speckle`: largest share of the holes' pixels that stand out of their surroundings, beyond the "
        "same share of the background beside them.",
    )
    max_depth_confidence: float | None = Field(
        None,
        gt=0,
        description="`depth_doubt`: largest difference of the depths estimated for the left view and for its mirror "
        "image, as a share of the range.",
    )
    min_depth_rank: float | None = Field(
        0.5,
        gt=-1,
        le=1,
        description="`other_depth`: smallest rank correlation of steps in the label with steps in the left view's "
        "estimated depth.",
    )
    min_clip: float | None = Field(
        None,
        gt=0,
        le=100,
        description="`prompt_mismatch`: smallest CLIP score that both views must reach with the prompt; needs "
        "`models.clip`.",
    )
