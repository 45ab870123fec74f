"""Checkpoints of the published sizes make pairs in all of their modes, within the documented memory."""

import json
import subprocess
import sys

import pytest

PARAMETERS = {"sd1": (859_520_964, 123_060_480), "sd2_depth": (865_913_604, 340_387_840)}
WIDTH = {"sd1": 768, "sd2_depth": 1024}
EVALUATIONS = {
    # Two steps and a prompt: the left view with guidance, the right one without; a photo is inverted.
    "sd1": {"text": 4 + 1, "image": 2 + 1, "inpaint": 2 + 4 + 2 + 1},
    "sd2_depth": {"depth": 4 + 1},
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", PARAMETERS)
def test_at_full_size_pairs_are_made_in_every_mode(family):
    # On two busy cores: SD 1.5 22 min (7.6 min of CPU) and 5.8 GB, SD 2 depth 8 min and 6.6 GB.
    # Half precision is slow on most CPUs.
    command = [sys.executable, "-m", "tests.models.full_size", family, "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1790)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    print(facts)
    assert (facts["unet_parameters"], facts["text_encoder_parameters"]) == PARAMETERS[family]
    assert facts["vae_parameters"] == 83_653_863
    assert facts["shapes"] == {
        "predicted": [2, 4, 64, 64],
        "images": [1, 3, 512, 512],
        "encoded": [1, 4, 64, 64],
        "text": [2, 77, WIDTH[family]],
    }
    assert facts["finite"]
    assert facts["pairs"] == {
        mode: {"right": [256, 256, 3], "evaluations": spent} for mode, spent in EVALUATIONS[family].items()
    }
    assert max(value for name, value in facts.items() if name.endswith("_gb")) < 9
