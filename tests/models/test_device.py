"""Whether this machine has a GPU, without torch."""

import pytest
import torch

from stereo_jobs.errors import SpecError
from stereo_jobs.models.device import may_have_gpu, refuse_missing_gpu
from stereo_jobs.pipeline.generator import choose_device


@pytest.mark.parametrize(
    ("files", "variable", "expected"),
    [
        (["null"], None, False),
        (["nvidia0", "nvidiactl"], None, True),
        (["nvidia0"], "0,1", True),
        (["nvidia0"], "", False),
        (["nvidia0"], "-1", False),
        (["nvidiactl", "nvidia-uvm"], None, False),
        (["dxg"], None, True),
        (["kfd"], None, True),
    ],
)
def test_device_files_and_the_environment_tell(tmp_path, monkeypatch, files, variable, expected):
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    for name in files:
        (tmp_path / name).touch()
    assert may_have_gpu(tmp_path) == expected


def test_no_machine_is_refused_on_which_torch_finds_a_gpu():
    assert may_have_gpu() or not torch.cuda.is_available()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_one_line(monkeypatch):
    with pytest.raises(SpecError, match=r"device: cuda is asked for, and PyTorch .* finds no GPU here; set it to auto"):
        choose_device("cuda")
    assert (choose_device("auto"), choose_device("cpu")) == ("cpu", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        SpecError, match=r"runtime\.device: cuda is asked for, and this machine has no GPU; set it to auto"
    ):
        refuse_missing_gpu("cuda")
    refuse_missing_gpu("auto")
