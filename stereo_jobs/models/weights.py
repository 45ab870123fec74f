"""Loading of weights: safetensors only, nothing made up, errors with a remedy."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from stereo_jobs.errors import ModelError

# A bar for each part of a model, from every actor, tells nobody anything.
transformers_logging.disable_progress_bar()


def load_part(kind: Any, folder: Path, dtype: torch.dtype, device: str, **options: Any) -> Any:
    """One network of a checkpoint, ready for inference; untyped, as the libraries are.

    Args:
        kind: class with `from_pretrained`, of diffusers or transformers.
        folder: of this part.
        dtype: of its weights.
        device: where it goes.
        options: further ones for `from_pretrained`.

    Raises:
        ModelError: files are missing or broken, or do not hold every weight of the network.
    """
    try:
        network, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,  # the other way needs `accelerate`; diffusers would say so at every load
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {folder}: cannot be loaded ({error})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        # The libraries would fill them with noise and only warn.
        raise ModelError(
            f"model {folder}: {len(missing)} weights are missing, first {missing[0]}; fetch the complete checkpoint"
        )
    return network.to(device).eval().requires_grad_(False)
