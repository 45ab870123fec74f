"""All metrics of a pair without ground truth, in one call. The only network is LPIPS; no GPU, nothing random."""

from dataclasses import asdict, dataclass, fields

import numpy as np

from stereo_jobs.pixels import F32, Bools, Image
from stereo_jobs.quality.appearance import measure_appearance
from stereo_jobs.quality.depth_agreement import depth_doubt, depth_rank
from stereo_jobs.quality.geometry import measure_geometry
from stereo_jobs.quality.labelled_pair import Views, check_sizes
from stereo_jobs.quality.matcher import match
from stereo_jobs.quality.working_size import WorkingSize


@dataclass(frozen=True)
class Metrics:
    """The metrics of a pair: the columns `qc_*` of a dataset. None: there was nothing to measure it on.

    docs/quality.md says what each number means, and which values are good.
    """

    epe: float | None
    bad_2: float | None
    d1: float | None
    density: float | None
    fit_a: float | None
    fit_b: float | None
    lr_consistency: float | None
    backwarp_psnr: float | None
    backwarp_ssim: float | None
    backwarp_lpips: float | None
    siou: float | None
    identity: float | None
    vertical_px: float | None
    color_delta: float | None
    hole_share: float | None
    hole_sharpness: float | None
    seam: float | None
    ghost: float | None
    speckle: float | None
    clip_left: float | None
    clip_right: float | None
    depth_confidence: float | None
    depth_rank: float | None
    control_bad_2: float | None
    raw_epe: float | None
    raw_bad_2: float | None
    raw_backwarp_lpips: float | None


def measure(
    left: Image,
    right: Image,
    disparity: F32,
    nonocc_left: Bools,
    hole_right: Bools,
    *,
    raw_right: Image | None = None,
    true_right: Image | None = None,
    depth: F32 | None = None,
    mirrored_depth: F32 | None = None,
    clip_left: float | None = None,
    clip_right: float | None = None,
    scale_sign: int = 1,
) -> Metrics:
    """Measure one pair: holes, ghosts, edges and heights at its `WorkingSize`, all others where views are compared.

    Pixels in the metrics are pixels of the size at which they are measured.

    Args:
        left: H,W,3 uint8.
        right: H,W,3 uint8, the finished right view.
        disparity: H,W float32, the applied shift in pixels of the left view (x_right = x_left - d); not finite where it
            is unknown.
        nonocc_left: H,W bool, left pixels that the right view shows.
        hole_right: H,W bool, right pixels without a source in the left view.
        raw_right: H,W,3 uint8, the right view before it was composited; None: no composite.
        true_right: H,W,3 uint8, the view of a real camera; None: not known. Only `siou` uses it.
        depth: inverse depth, as estimated for the left view, at any size in the pair's shape; without it, both
            depth metrics are None.
        mirrored_depth: the same, as estimated for the mirrored left view.
        clip_left: CLIP score of the left view with its prompt; None: not scored.
        clip_right: CLIP score of the right view with its prompt; None: not scored.
        scale_sign: negative where the second view lies to the left, so that the smallest disparity is the nearest.

    Raises:
        ValueError: an image is not H,W,3 uint8, or the sizes differ.
    """
    check_sizes(left, right, disparity, nonocc_left, hole_right, raw_right=raw_right, true_right=true_right)

    def at(size: WorkingSize) -> Views:
        return Views.of(
            size.image(left),
            size.image(right),
            size.disparity(disparity),
            size.mask(nonocc_left),
            size.mask(hole_right),
            raw_right=None if raw_right is None else size.image(raw_right),
            true_right=None if true_right is None else size.image(true_right),
            scale_sign=scale_sign,
        )

    whole, size = WorkingSize.of(*disparity.shape), WorkingSize.compared(*disparity.shape)
    views = at(whole)
    small = views if size == whole else at(size)
    found = match(small.left, small.right, small.reach)
    values = asdict(measure_geometry(views, small, found)) | asdict(measure_appearance(views, small, found))
    if depth is not None:
        nearness = size.disparity(disparity if scale_sign >= 0 else -disparity)
        depth = size.values(depth)
        values["depth_rank"] = depth_rank(nearness, depth, np.isfinite(nearness))
        if mirrored_depth is not None:
            values["depth_confidence"] = depth_doubt(depth, size.values(mirrored_depth))
    values |= {"clip_left": clip_left, "clip_right": clip_right}
    finite = {name: float(value) for name, value in values.items() if value is not None and np.isfinite(value)}
    return Metrics(**{field.name: finite.get(field.name) for field in fields(Metrics)})
