"""From metrics to a verdict: the first rule that a pair breaks is the reason, causes before their consequences."""

from collections.abc import Iterator
from typing import NamedTuple

from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.quality.measure import Metrics


class Verdict(NamedTuple):
    """Whether a pair is accepted; `reject_reason` is the name of the first rule that it breaks, None if accepted."""

    accepted: bool
    reject_reason: str | None


def judge(metrics: Metrics, config: QualityConfig) -> Verdict:
    """Judge one pair. A metric of None breaks no rule except `unmatched`: nothing confirms the label of such a pair."""
    reason = next((name for name, broken in _rules(metrics, config) if broken), None)
    return Verdict(reason is None, reason)


def _rules(m: Metrics, c: QualityConfig) -> Iterator[tuple[str, bool]]:
    """Rules in the order of their checks: those without the label, then the label, then the holes, then the rest."""
    yield "vertical_shift", _over(m.vertical_px, c.max_vertical_px)
    yield "color_cast", _over(m.color_delta, c.max_color_delta)
    yield "unmatched", c.min_density is not None and (m.density is None or m.density < c.min_density)
    yield "swapped_eyes", _under(m.fit_a, c.min_fit_a)
    yield "disparity_offset", _over(None if m.fit_b is None else abs(m.fit_b), c.max_offset_px)
    yield "no_parallax", _under(m.identity, c.min_parallax)
    yield "disparity_scale", _under(m.identity, c.min_identity) or _over(m.identity, c.max_identity)
    yield "matcher", _over(_beyond(m.bad_2, m.control_bad_2), c.max_bad_2)
    yield "raw_matcher", _over(_beyond(m.raw_bad_2, m.control_bad_2), c.max_bad_2)
    yield "left_right", _under(m.lr_consistency, c.min_lr_consistency)
    yield "backwarp", _under(m.backwarp_psnr, c.min_backwarp_psnr)
    yield "backwarp", _over(m.backwarp_lpips, c.max_backwarp_lpips)
    yield "backwarp", _over(m.raw_backwarp_lpips, c.max_backwarp_lpips)
    yield "siou", _under(m.siou, c.min_siou)
    yield "other_depth", _under(m.depth_rank, c.min_depth_rank)
    yield "holes", _over(m.hole_share, c.max_hole_share)
    yield "empty_holes", _over(m.seam, c.max_empty_seam)
    yield "blurred_holes", _under(m.hole_sharpness, c.min_hole_sharpness)
    yield "seam", _over(m.seam, c.max_seam)
    yield "ghost", _over(m.ghost, c.max_ghost)
    yield "speckle", _over(m.speckle, c.max_speckle)
    yield "depth_doubt", _over(m.depth_confidence, c.max_depth_confidence)
    yield "prompt_mismatch", _under(m.clip_left, c.min_clip) or _under(m.clip_right, c.min_clip)


def _over(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def _under(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value < limit


def _beyond(bad: float | None, control: float | None) -> float | None:
    """Share of wrong pixels among those that the matcher gets right on a perfect pair."""
    if bad is None or control is None or control >= 1:
        return None if control is not None else bad
    return (bad - control) / (1 - control)
