"""The whole job with the embedded Stable Diffusion and depth models."""

import time

import numpy as np
import pytest

from stereo_jobs.data.images import decode_disparity
from stereo_jobs.run.demo import demo_spec
from stereo_jobs.run.driver import run
from tests.datasets import rows, verdict
from tests.output.test_lease import contents

SHORT = {
    "method": {"preset": "official", "steps": 8, "shift_step": 1, "attention_step": 1, "recopy_interval": 3},
    "scale_percent": 12,
    "quality": {"enabled": True},
}
PROMPTS = ["a red circle on the left, green floor, grey wall", "a blue square in the middle, sand floor, pink wall"]


def test_ray_and_local_and_any_sharding_agree_byte_for_byte(make_spec, make_manifest, tmp_path):
    manifest = make_manifest(rows=4, prompt=[*PROMPTS, "", PROMPTS[0]])
    on_ray = make_spec(manifest, str(tmp_path / "ray"), SHORT, shard_rows=2, max_failure_ratio=0.5)
    local = make_spec(manifest, str(tmp_path / "local"), SHORT, shard_rows=3, max_failure_ratio=0.5)
    assert run(on_ray).succeeded == 3
    run(local, local=True)
    assert verdict(on_ray).ok
    made = rows(on_ray)
    assert made == rows(local)
    for row in made.values():
        disparity = decode_disparity(row["disparity"]["bytes"])
        assert disparity.max() >= 4
        assert set(np.unique(disparity)) <= {0.0, 4.0, 8.0, 12.0, 16.0}
        assert row["unet_evaluations"] == 2 * 8 + 2 * 6
        assert row["accepted"] in (True, False)
        assert None not in (row["qc_epe"], row["qc_backwarp_lpips"], row["qc_siou"], row["qc_depth_confidence"])
    assert made["row-0000"]["left"] != made["row-0003"]["left"], "another id is another seed"


@pytest.mark.slow
def test_the_demo_and_the_demo_again(tmp_path):
    spec = demo_spec(str(tmp_path / "demo"))
    assert run(spec).succeeded == 16
    found = verdict(spec)
    assert (found.ok, found.succeeded) == (True, 16)
    for row in rows(spec).values():
        disparity = decode_disparity(row["disparity"]["bytes"])
        assert disparity.max() - disparity.min() >= 4
        assert row["qc_bad_2"] < 0.1
    before = contents(spec.output)
    started = time.monotonic()
    assert run(demo_spec(str(tmp_path / "demo"))).complete
    assert time.monotonic() - started < 10
    assert contents(spec.output) == before


@pytest.mark.slow
def test_killed_with_real_models_and_resumed_byte_for_byte(make_spec, make_manifest, tmp_path):
    from tests.run.processes import killed_in_the_middle

    manifest = make_manifest(rows=4, prompt=PROMPTS * 2)
    whole, killed = (make_spec(manifest, str(tmp_path / name), SHORT, shard_rows=1) for name in ("whole", "killed"))
    run(whole, local=True)
    killed_in_the_middle(killed, tmp_path)
    assert len(contents(killed.output)) < len(contents(whole.output))
    run(killed, local=True)
    assert verdict(killed).ok
    assert rows(killed) == rows(whole)
