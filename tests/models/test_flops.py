"""Operations counted on the meta device, against sums by hand; passes of a VAE counted where they happen."""

import functools
import time

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stereo_jobs.models.flops import counted_passes, elapsed, matmul_peak, network_flops, unet_inputs
from tests.models.tiny import configs, network

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def counted(size=64, batch=1, family="sd1"):
    files = configs(family)
    return network_flops(files["unet/config.json"], files["vae/config.json"], size, size, batch)


def test_operations_grow_with_the_batch_and_the_size():
    one, two, large = counted(), counted(batch=2), counted(128)
    assert two == tuple(2 * each for each in one)
    # Convolutions grow with the pixels, attention with their square; what is done for the prompt does not grow.
    assert 3.5 < large.unet / one.unet < 16
    assert 4 < large.encode / one.encode < 16
    assert one.decode > one.encode > 0


def test_the_vae_against_layers_counted_by_hand():
    vae = AutoencoderKL.from_config(configs("sd1")["vae/config.json"])
    seen = [0]

    def add(layer, inputs, output):
        positions = output.numel() // (layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)
        seen[0] += 2 * layer.weight.numel() * positions

    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with torch.no_grad():
        vae.encode(torch.zeros(1, 3, 64, 64))
    attention = 2 * (8 * 8) ** 2 * 64 * 2  # two products of 64 positions with 64 channels, in the middle
    assert counted().encode == seen[0] + attention


def test_the_loaded_network_takes_what_was_counted():
    unet = network("unet", configs("sd1")["unet/config.json"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(**unet_inputs(unet, 2, (8, 8)))
    attention = counted().unet * 2 - counter.get_total_flops()
    assert 0 <= attention < 0.1 * counter.get_total_flops()  # fused attention on a CPU is not in PyTorch's count


@pytest.mark.parametrize("family", ["sd2_v", "sd2_depth"])
def test_every_family_is_counted(family):
    assert min(counted(family=family)) > 1e6


@pytest.mark.slow
def test_stable_diffusion_at_its_size():
    files = configs("sd1", full=True)
    found = network_flops(files["unet/config.json"], files["vae/config.json"], 512, 512)
    assert found.unet == pytest.approx(0.80e12, rel=0.01)
    assert found.encode == pytest.approx(1.12e12, rel=0.01)
    assert found.decode == pytest.approx(2.51e12, rel=0.01)


def test_passes_are_counted_while_the_context_lasts():
    vae = AutoencoderKL.from_config(configs("sd1")["vae/config.json"])
    with torch.no_grad():
        with counted_passes(vae) as passes:
            vae.encode(torch.zeros(2, 3, 16, 16))
            vae.decode(torch.zeros(3, 4, 2, 2))
            vae.decode(torch.zeros(1, 4, 2, 2))
        vae.decode(torch.zeros(1, 4, 2, 2))
    assert passes == {"encode": 2, "decode": 4}


def test_the_peak_is_that_of_a_product():
    assert 1e8 < matmul_peak("cpu", "float32", patience_s=0.01) < 1e14


def test_elapsed_is_the_time_of_the_work():
    assert elapsed("cpu", lambda: time.sleep(0.02)) >= 0.02
