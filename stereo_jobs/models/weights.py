"""Loading of one network: from safetensors only, and only if no weight is missing."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from stereo_jobs.errors import ModelError

# Every worker would show a progress bar for each part of a model.
transformers_logging.disable_progress_bar()


def load_part(kind: Any, folder: Path, dtype: torch.dtype, device: str, **options: Any) -> Any:
    """Load one network of a checkpoint, ready for inference. It is untyped, as diffusers and transformers are.

    Args:
        kind: a class of diffusers or transformers with `from_pretrained`.
        folder: the folder of this network.
        dtype: precision of its weights.
        device: name of the torch device to load it to.
        options: further options for `from_pretrained`.

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
            low_cpu_mem_usage=False,  # True needs `accelerate`, and diffusers would warn at every load
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {folder}: cannot be loaded ({error})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        # The libraries would fill them with random numbers and only warn.
        raise ModelError(
            f"model {folder}: {len(missing)} weights are missing, first {missing[0]}; fetch the complete checkpoint"
        )
    return network.to(device).eval().requires_grad_(False)
