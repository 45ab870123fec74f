"""Predictions for another GPU: arithmetic by hand, and what is refused."""

import pytest

from stereo_jobs.errors import SpecError
from stereo_jobs.run.cost_model import DEFAULT_SHARE, GPUS, Arithmetic, known_gpu, predict

MEASURED = Arithmetic(flops=50e12, unet_flops=0.8e12, dtype="float16", peak=200e12, share=0.25)


def test_a_share_that_a_gpu_had_is_kept():
    found = predict("A100", MEASURED, "NVIDIA L4")
    assert (found.peak, found.share, found.measured) == (312e12, 0.25, True)
    assert found.pair_s == pytest.approx(50 / 312 / 0.25)


def test_a_cpu_says_nothing_about_the_share_of_a_gpu():
    found = predict("A100", MEASURED, "cpu")
    assert (found.share, found.measured) == (DEFAULT_SHARE, False)
    assert found.pair_s == pytest.approx(50 / 312 * 3)


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "RTX-4090"])
def test_names_are_found_as_people_write_them(name):
    assert known_gpu(name) == "RTX 4090"


def test_an_unknown_gpu_is_refused_with_the_list():
    with pytest.raises(SpecError, match=r"--gpu: the peak of 'H900' is not known; give one of T4, .*B200, or measure"):
        known_gpu("H900")


def test_a_precision_without_tensor_cores_is_refused():
    bfloat16 = Arithmetic(**vars(MEASURED) | {"dtype": "bfloat16"})
    with pytest.raises(SpecError, match=r"--gpu: T4 has no tensor cores for .*dtype = bfloat16; set that to float16"):
        predict("T4", bfloat16, "cpu")
    assert predict("L4", bfloat16, "cpu").peak == 121e12


def test_half_precision_is_faster_on_every_gpu():
    single = Arithmetic(**vars(MEASURED) | {"dtype": "float32"})
    assert all(predict(gpu, single, "cpu").pair_s > predict(gpu, MEASURED, "cpu").pair_s for gpu in GPUS)
