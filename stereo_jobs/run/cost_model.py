"""How long the models of another GPU would take for a pair: operations, over its published peak and a share of it."""

from dataclasses import dataclass
from typing import get_args

from stereo_jobs.errors import SpecError
from stereo_jobs.spec import Dtype

# TFLOP/s as NVIDIA publishes them, dense (its sheets name them "with sparsity", twice as many): float32 without tensor
# cores; float16 and bfloat16 on tensor cores that add in float32, as PyTorch has them do. Data sheets of T4, V100
# (SXM2), A10G, L4, L40S, A100, H100 (SXM), H200 and B200 (HGX); whitepapers of GA102 (RTX 3090) and Ada (RTX 4090).
_PUBLISHED: dict[str, tuple[float, float, float | None]] = {
    # name: float32, float16, bfloat16 (None: not on its tensor cores)
    "T4": (8.1, 65, None),
    "V100": (15.7, 125, None),
    "A10G": (35, 70, 70),
    "L4": (30.3, 121, 121),
    "RTX 3090": (35.6, 71, 71),
    "RTX 4090": (82.6, 165.2, 165.2),
    "L40S": (91.6, 362, 362),
    "A100": (19.5, 312, 312),
    "H100": (67, 989, 989),
    "H200": (67, 989, 989),
    "B200": (80, 2250, 2250),
}
GPUS = tuple(_PUBLISHED)
"""Names of the GPUs whose peaks are known."""

DEFAULT_SHARE = 1 / 3
"""Share of its published peak that a GPU is taken to reach where none was measured. PyTorch's measurements on an A100
in bfloat16 (pytorch.org/blog/accelerating-generative-ai-3, and its tables) give 0.35 for SDXL with fused attention, and
0.33 for SD 1.5 compiled, at batches of one. A newer GPU reaches less until its batches are large."""


@dataclass(frozen=True)
class Arithmetic:
    """What U-Net and VAE compute for a pair, and what the measuring machine can.

    Attributes:
        flops: floating-point operations of a pair, on average.
        unet_flops: those of one U-Net evaluation of one image.
        dtype: precision of the networks.
        peak: operations a second of large matrix products in this precision, measured.
        share: share of `peak` that the models had while they made the measured pairs, depth and scores included.
    """

    flops: float
    unet_flops: float
    dtype: Dtype
    peak: float
    share: float


@dataclass(frozen=True)
class Prediction:
    """What a GPU would take, from its published peak.

    Attributes:
        gpu: name of the GPU.
        dtype: precision of the networks.
        peak: its published operations a second in this precision, dense.
        share: share of the peak that it is taken to reach.
        measured: whether the share was measured on a GPU; else it is `DEFAULT_SHARE`.
        pair_s: seconds of the models for a pair.
    """

    gpu: str
    dtype: Dtype
    peak: float
    share: float
    measured: bool
    pair_s: float


def predict(gpu: str, arithmetic: Arithmetic, device: str) -> Prediction:
    """Predict the seconds that a GPU's models take for a pair.

    Args:
        gpu: one of GPUS; case, spaces and hyphens do not matter.
        arithmetic: what the measured pairs took.
        device: where they were measured. A CPU's share says nothing about a GPU's.

    Raises:
        SpecError: the GPU is not known, or does not compute in this precision on its tensor cores.
    """
    name, dtype = known_gpu(gpu), arithmetic.dtype
    teraflops = dict(zip(get_args(Dtype), _PUBLISHED[name], strict=True))[dtype]
    if teraflops is None:
        raise SpecError(
            f"--gpu: {name} has no tensor cores for recipe.models.stable_diffusion.dtype = {dtype}; set that to float16"
        )
    peak, measured = teraflops * 1e12, device != "cpu"
    share = arithmetic.share if measured else DEFAULT_SHARE
    return Prediction(name, dtype, peak, share, measured, arithmetic.flops / (peak * share))


def known_gpu(gpu: str) -> str:
    """Return the name of a GPU as GPUS has it. Raises SpecError where it is not known."""

    def plain(name: str) -> str:
        return name.replace(" ", "").replace("-", "").lower()

    names = {plain(name): name for name in GPUS}
    if plain(gpu) not in names:
        raise SpecError(
            f"--gpu: the peak of {gpu!r} is not known; give one of {', '.join(GPUS)}, or measure on that GPU: "
            "plan --estimate, run there, needs no --gpu"
        )
    return names[plain(gpu)]
