"""The benchmark that compares ways to make a pair: its plain loop is the published method, and its sums are right."""

import pytest
import torch

from benchmarks import side_by_side
from benchmarks.plain_loop import shifted
from stereo_jobs.stereo.warp import forward_warp


def test_pixels_shifted_one_by_one_are_those_of_the_warp():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(4, 6, 9, generator=generator)
    disparity = torch.randint(0, 4, (6, 9), generator=generator).float()
    right, written = shifted(latent, disparity)
    warp = forward_warp(disparity[None], torch.ones(1))
    assert torch.equal(written, warp.filled[0])
    assert torch.equal(right, warp(latent[None])[0])


@pytest.fixture(scope="module")
def short(one_thread):
    return side_by_side.compare(side_by_side.embedded(), 1, [1, 2], short=True)


def test_the_plain_loop_and_official_make_the_same_picture(short):
    assert short["different"] <= side_by_side.SHARE


def test_evaluations_of_two_steps_are_counted_for_each_pair(short):
    counted = {name: one["evaluations"] for name, one in short["ways"].items()}
    both = {"official": 4 + 2, "best": 4 + 1}
    assert counted == {"plain loop": 4 + 8, "two images": 8} | both | {f"{k}, batch of 2": n for k, n in both.items()}


def test_a_whole_run_is_the_sum_of_its_calls(short):
    longer = {"different": 0.0, "ways": {}}
    for name, one in short["ways"].items():
        calls = {call: 10 * count for call, count in one["calls"].items()}
        longer["ways"][name] = one | {"calls": calls, "evaluations": 10 * one["evaluations"]}
    for name, one in side_by_side.extrapolated(short, longer)["ways"].items():
        calls = short["ways"][name]["calls"]
        spent = sum(count * one["call_seconds"][call] for call, count in calls.items())
        assert one["seconds"] == pytest.approx(one["beside"] + 10 * spent)


def test_the_table_has_a_line_for_each_way(short):
    lines = side_by_side.table(short["ways"]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in short["ways"]]
    assert lines[2].split(" | ")[2:4] == ["1.00", f"{plain_over_two(short):.2f}"]


def plain_over_two(short):
    return short["ways"]["plain loop"]["seconds"] / short["ways"]["two images"]["seconds"]
