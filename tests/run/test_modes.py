"""Every mode in both presets: killed, resumed and verified jobs equal uninterrupted ones, byte for byte."""

import numpy as np
import pytest

from stereo_jobs.data.images import decode_disparity, decode_rgb
from stereo_jobs.run.driver import run
from stereo_jobs.spec import StorageSpec
from stereo_jobs.toyscapes.manifest import write_manifest
from tests.datasets import rows, verdict
from tests.models.tiny import write_checkpoint
from tests.output.test_lease import contents
from tests.run.processes import killed_in_the_middle

PRESETS = {
    "official": {"preset": "official", "steps": 5, "recopy_interval": 2, "null_text_iterations": 2},
    "best": {"preset": "best", "steps": 5},
}


@pytest.fixture(scope="session")
def depth_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd2_depth"
    write_checkpoint(folder, "sd2_depth")
    return str(folder)


@pytest.fixture
def spec_of(make_spec, tmp_path, request):
    """A job of four ToyScapes rows in shards of one."""

    def make(mode: str, preset: str, name: str):
        manifest = tmp_path / "manifest" / f"{mode}.parquet"
        if not manifest.exists():
            write_manifest(str(manifest), StorageSpec(), rows=4, mode=mode, level="structured")
        recipe = {"mode": mode, "method": PRESETS[preset], "scale_percent": 12}
        if mode == "depth":
            path = request.getfixturevalue("depth_checkpoint")
            recipe |= {
                "models": {"stable_diffusion": {"path": path}, "depth": {"path": "demo"}},
                "size": {"width": 64, "height": 64},
            }
        return make_spec(manifest, str(tmp_path / name), recipe, shard_rows=1)

    return make


def test_photos_keep_their_pixels_and_labels_through_the_job(spec_of, tmp_path):
    spec = spec_of("image", "best", "out")
    assert run(spec, local=True).succeeded == 4
    assert verdict(spec).ok
    for row in rows(spec).values():
        left, right = decode_rgb(row["left"]["bytes"], 10**6), decode_rgb(row["right"]["bytes"], 10**6)
        assert (row["mode"], row["preset"], row["left_psnr"]) == ("image", "best", 100)
        assert row["src_level"] == "structured"
        # Outside of the holes the right view is the left one, moved by the label.
        disparity = decode_disparity(row["disparity"]["bytes"])
        seen = decode_rgb(row["mask_nonocc_left"]["bytes"], 10**6)[..., 0] > 0
        y, x = np.nonzero(seen & (disparity == disparity.round()))
        target = x - disparity[y, x].astype(int)
        assert np.abs(left[y, x].astype(int) - right[y, target]).mean() < 3


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("mode", ["text", "depth", "image"])
@pytest.mark.slow
def test_killed_and_resumed_byte_for_byte(spec_of, tmp_path, mode, preset):
    whole, killed = spec_of(mode, preset, "whole"), spec_of(mode, preset, "killed")
    run(whole, local=True)
    killed_in_the_middle(killed, tmp_path)
    assert len(contents(killed.output)) < len(contents(whole.output))
    assert run(killed, local=True).complete
    assert verdict(killed).ok
    assert rows(killed) == rows(whole)
