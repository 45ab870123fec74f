"""Whether this machine has a GPU, found out without loading PyTorch, and what to do where it has none."""

import os
from pathlib import Path

from stereo_jobs.errors import SpecError

NO_GPU_REMEDY = "set it to auto or cpu, or use a machine with a GPU and its driver"
"""Remedy in messages about a device `cuda` that is not there."""

_DEVICE_FILES = ("nvidia[0-9]*", "nvidia-caps", "nvhost-gpu", "nvgpu", "nvmap", "dxg", "kfd")
"""Device files of GPUs below /dev: NVIDIA's drivers, also on Jetson; WSL; ROCm."""
_HIDDEN = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def may_have_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether this machine may have a GPU for PyTorch; False is certain, and True is only likely.

    Args:
        devices: the folder of device files.
    """
    if any(os.environ.get(name, "all").strip() in ("", "-1", "NoDevFiles") for name in _HIDDEN):
        return False
    return any(next(devices.glob(pattern), None) for pattern in _DEVICE_FILES)


def refuse_missing_gpu(device: str) -> None:
    """Refuse to go on where `runtime.device` is cuda and this machine has no GPU. Raises SpecError."""
    if device == "cuda" and not may_have_gpu():
        raise SpecError(f"runtime.device: cuda is asked for, and this machine has no GPU; {NO_GPU_REMEDY}")
