"""Floating-point operations: how many Stable Diffusion's networks take, and how many this machine manages in a second.

They are counted by PyTorch on its meta device, where tensors have shapes but no values: from the configs of a
checkpoint alone, without weights. A multiplication and the addition after it are two operations.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stereo_jobs.spec import Dtype

PROMPT_TOKENS = 77
"""Length of CLIP's text embeddings."""
Config = Mapping[str, Any]


class NetworkFlops(NamedTuple):
    """Floating-point operations of one batch of each network.

    Attributes:
        unet: a U-Net evaluation, without the attention that a pair's views pay to each other.
        encode: the VAE's encoder.
        decode: the VAE's decoder.
    """

    unet: int
    encode: int
    decode: int


def network_flops(unet: Config, vae: Config, width: int, height: int, batch: int = 1) -> NetworkFlops:
    """Count the operations of Stable Diffusion's networks (1.x, 2.x, or XL) for images of a size.

    Args:
        unet: config of the U-Net.
        vae: config of the VAE.
        width: width of the images in pixels, a size that the checkpoint takes.
        height: height of the images in pixels.
        batch: images in the batch.
    """
    with torch.device("meta"), torch.no_grad():
        denoiser, coder = UNet2DConditionModel.from_config(dict(unet)), AutoencoderKL.from_config(dict(vae))
        factor = 2 ** (len(coder.config.block_out_channels) - 1)
        size = height // factor, width // factor
        inputs = unet_inputs(denoiser, batch, size)
        latents = torch.empty(batch, coder.config.latent_channels, *size)
        images = torch.empty(batch, coder.config.in_channels, height, width)
        return NetworkFlops(
            _count(lambda: denoiser(**inputs)),
            _count(lambda: coder.encode(images)),
            _count(lambda: coder.decode(latents)),
        )


def unet_inputs(unet: nn.Module, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    """Random inputs of a U-Net, for counting and timing: on its device and in its precision.

    Args:
        unet: a U-Net of Stable Diffusion 1.x, 2.x or XL.
        batch: number of latents.
        size: height and width of the latents.
    """
    config: Any = unet.config
    weight = next(unet.parameters())

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=weight.device, dtype=weight.dtype)

    inputs: dict[str, Any] = {
        "sample": noise(batch, config.in_channels, *size),
        "timestep": torch.full((batch,), 500, device=weight.device),
        "encoder_hidden_states": noise(batch, PROMPT_TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":  # SDXL: a pooled text embedding, and six numbers about the size
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": noise(batch, pooled), "time_ids": noise(batch, 6)}
    return inputs


def _count(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@contextmanager
def counted_passes(vae: AutoencoderKL) -> Iterator[Counter[str]]:
    """Count the images that a VAE takes while the context lasts, under `encode` and `decode`."""
    passes: Counter[str] = Counter()

    def count(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: passes.update({name: len(inputs[0])})

    # Where there is one, the small layer beside the latents: a large part that was compiled before calls no hooks.
    parts = {"encode": vae.quant_conv or vae.encoder, "decode": vae.post_quant_conv or vae.decoder}
    hooks = [part.register_forward_pre_hook(count(name)) for name, part in parts.items()]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def matmul_peak(device: str, dtype: Dtype, patience_s: float = 0.5) -> float:
    """The most operations a second that a product of two large matrices reaches on this machine, in FLOP/s.

    Args:
        device: name of the torch device. A CPU computes on the threads that torch is set to.
        dtype: precision of the matrices.
        patience_s: seconds in which products are repeated; the fastest counts.
    """
    side = 8192 if device == "cuda" else 512
    matrix = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    until, fastest = time.monotonic() + patience_s, elapsed(device, lambda: matrix @ matrix)
    while time.monotonic() < until:
        fastest = min(fastest, elapsed(device, lambda: matrix @ matrix))
    return 2 * side**3 / fastest


def elapsed(device: str, work: Callable[[], object]) -> float:
    """Seconds that work takes on a device; what a GPU was given before is not counted."""
    if device != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    began_at = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    ended_at = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    began_at.record()
    work()
    ended_at.record()
    ended_at.synchronize()
    return float(began_at.elapsed_time(ended_at)) / 1000  # ms -> s
