"""Quality control of finished pairs: metrics and verdict as columns, the same for job and notebook."""

from dataclasses import asdict
from typing import Any

from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.quality.measure import Metrics, measure
from stereo_jobs.quality.verdict import judge
from stereo_jobs.records import QUALITY_PREFIX, StereoPair


def measure_pair(pair: StereoPair) -> Metrics:
    """The metrics of a pair, which need no ground truth."""
    return measure(
        pair.left,
        pair.right,
        pair.disparity,
        pair.mask_nonocc_left,
        pair.mask_hole_right,
        raw_right=pair.raw_right,
        true_right=pair.true_right,
        depth=pair.depth,
        mirrored_depth=pair.mirrored_depth,
        clip_left=pair.clip_left,
        clip_right=pair.clip_right,
        scale_sign=pair.scale_sign,
    )


def quality_cells(pair: StereoPair, config: QualityConfig) -> dict[str, Any]:
    """The columns `qc_*`, `accepted` and `reject_reason` of a pair; none where quality control is off."""
    if not config.enabled:
        return {}
    metrics = measure_pair(pair)
    return {QUALITY_PREFIX + name: value for name, value in asdict(metrics).items()} | judge(metrics, config)._asdict()
