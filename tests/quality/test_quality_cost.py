"""The benchmark of quality control counts all of it, each part once."""

import pytest

from benchmarks import quality_cost
from stereo_jobs.quality.measure import measure


@pytest.mark.usefixtures("one_thread")
def test_every_part_is_counted_once():
    pair = quality_cost.pair_of(1, 64, 0.08)
    assert pair["disparity"].max() == pytest.approx(0.08 * 64)
    before = measure(**pair)
    seconds = quality_cost.cost([pair])
    assert seconds["all"] == pytest.approx(sum(seconds.values()) - seconds["all"])
    assert {name for name, spent in seconds.items() if spent > 0} >= {"matching", "LPIPS", "warp", "rest"}
    assert measure(**pair) == before, "nothing stays patched"
    lines = quality_cost.table({"64 px": seconds}).splitlines()
    assert lines[0] == "| part | 64 px |"
    assert lines[2].startswith("| all |")
