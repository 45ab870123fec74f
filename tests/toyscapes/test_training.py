"""The training loop: a killed and resumed training ends where an undisturbed one does, to the bit."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from stereo_jobs.toyscapes import training
from stereo_jobs.toyscapes.training import Machine, Schedule, averaged, train
from tests.conftest import REPOSITORY
from tests.toyscapes.lessons import EVERY_STEP, LINE, BothRanksLesson, LineLesson, Mortal, short_depth_lesson
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same(one, other):
    """Two checkpoints are equal to the bit: weights, averages, the optimiser's moments, the step."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


# --- Killed and resumed ---


def test_a_killed_training_ends_where_an_undisturbed_one_does(tmp_path):
    """With the depth estimator's own lesson."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "tests.toyscapes.lessons", str(killed)]
    done = subprocess.run(command, cwd=REPOSITORY, timeout=PATIENCE_S, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert checkpoint(killed)["step"] == 1
    make, schedule = short_depth_lesson()
    train(make, schedule, killed)
    train(make, schedule, whole)
    assert checkpoint(whole)["step"] == 2
    assert_same(checkpoint(killed), checkpoint(whole))


def test_two_processes_of_which_one_is_killed_end_where_one_does_that_sees_both_batches(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    both = replace(LINE, batch=2 * LINE.batch)  # shared by the two
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        train(Mortal(LineLesson, 4, 1), both, killed, Machine(processes=2, checkpoint_s=EVERY_STEP))
    assert checkpoint(killed)["step"] == 4
    train(LineLesson, both, killed, Machine(processes=2))
    train(BothRanksLesson, LINE, whole)
    assert checkpoint(whole)["step"] == LINE.steps
    assert_same(checkpoint(killed), checkpoint(whole))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_sees_the_whole_batch_whatever_the_number_of_processes(tmp_path, processes):
    train(Counted(tmp_path), LINE, tmp_path, Machine(processes=processes))
    shares = [int(path.read_text()) for path in sorted(tmp_path.glob("samples-*"))]
    assert shares == [LINE.batch // processes] * processes


@dataclass(frozen=True)
class Counted:
    """Makes lessons that write down how many samples a process draws."""

    folder: Path

    def __call__(self, schedule):
        lesson = LineLesson(schedule)
        real = lesson.draw

        def draw(step, rank, device):
            batch = real(step, rank, device)
            (self.folder / f"samples-{rank}").write_text(str(len(batch["x"])))
            return batch

        lesson.draw = draw
        return lesson


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared evenly by 3 processes"):
        train(LineLesson, LINE, tmp_path, Machine(processes=3))


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    train(LineLesson, LINE, whole)
    disturbed.mkdir()
    half = (whole / "checkpoint.pt").read_bytes()[:500]
    (disturbed / "checkpoint.partial").write_bytes(half)
    train(LineLesson, LINE, disturbed)
    assert_same(checkpoint(disturbed), checkpoint(whole))
    (disturbed / "checkpoint.partial").write_bytes(half)
    assert averaged(LineLesson, LINE, disturbed)[2] == LINE.steps


def test_a_checkpoint_is_one_of_two_whole_files_at_every_moment(tmp_path, monkeypatch):
    """A kill in the middle of its write leaves the one before."""
    real, saved = torch.save, []

    def dies_halfway(state, path):
        saved.append(state["step"])
        if len(saved) == 3:
            real(state, path)
            path.write_bytes(path.read_bytes()[:500])
            raise KeyboardInterrupt
        real(state, path)

    monkeypatch.setattr(torch, "save", dies_halfway)
    with pytest.raises(KeyboardInterrupt):
        train(LineLesson, LINE, tmp_path / "killed", Machine(checkpoint_s=EVERY_STEP))
    monkeypatch.undo()
    assert checkpoint(tmp_path / "killed")["step"] == 2
    train(LineLesson, LINE, tmp_path / "killed")
    train(LineLesson, LINE, tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole"))


def test_a_finished_training_stays_as_it_is(tmp_path):
    train(LineLesson, LINE, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    train(LineLesson, LINE, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_training_can_be_prolonged_before_its_last_fifth(tmp_path):
    """Nothing of the shorter schedule is left in the weights."""
    short, long = replace(LINE, steps=20), replace(LINE, steps=40)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted, short, tmp_path / "prolonged", Machine(checkpoint_s=EVERY_STEP))
    assert checkpoint(tmp_path / "prolonged")["step"] == 16
    train(LineLesson, long, tmp_path / "prolonged")
    train(LineLesson, long, tmp_path / "long")
    assert_same(checkpoint(tmp_path / "prolonged"), checkpoint(tmp_path / "long"))


class Interrupted(LineLesson):
    """Ctrl-C at step 16."""

    def draw(self, step, rank, device):
        if step == 16:
            raise KeyboardInterrupt
        return super().draw(step, rank, device)


# --- What is learned ---


def test_the_line_is_learned(tmp_path):
    schedule = replace(LINE, steps=600, batch=16)
    train(LineLesson, schedule, tmp_path)
    _, networks, step = averaged(LineLesson, schedule, tmp_path)
    assert (step, networks.training) == (600, False)
    torch.testing.assert_close(networks.weights.detach(), torch.arange(1.0, 6.0), atol=0.1, rtol=0)
    assert float(networks.bias.detach()) == pytest.approx(-1, abs=0.1)


def test_the_seed_decides_the_first_weights(tmp_path):
    def first(folder, seed):
        train(LineLesson, replace(LINE, steps=1, learning_rate=0.0, seed=seed), tmp_path / folder)
        return checkpoint(tmp_path / folder)["networks"]["weights"]

    assert torch.equal(first("a", 0), first("b", 0))
    assert not torch.equal(first("a", 0), first("c", 1))


def test_averaged_weights_follow_the_trained_ones(tmp_path):
    """Slow reference: the first weights as they are, then a step of at most `1 - ema` towards each next one."""
    after = []

    class Recording(LineLesson):
        def draw(self, step, rank, device):
            after.append(self.networks.weights.detach().clone())  # what the step before has made
            return super().draw(step, rank, device)

    schedule = replace(LINE, steps=30)
    train(Recording, schedule, tmp_path)
    state = checkpoint(tmp_path)
    expected = None
    for count, weights in enumerate([*after[1:], state["networks"]["weights"]]):
        decay = min(schedule.ema, (1 + count) / (10 + count))
        expected = weights if expected is None else decay * expected + (1 - decay) * weights
    torch.testing.assert_close(state["average"]["module.weights"], expected)
    assert not torch.allclose(expected, state["networks"]["weights"], atol=1e-3)


def test_nothing_trained_has_no_average(tmp_path):
    with pytest.raises(FileNotFoundError):
        averaged(LineLesson, LINE, tmp_path)


def test_progress_is_told_line_by_line(tmp_path):
    train(LineLesson, LINE, tmp_path, Machine(checkpoint_s=EVERY_STEP))
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, LINE.steps + 1))
    assert all(line["of"] == LINE.steps and line["samples_per_s"] > 0 for line in lines)
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["bias"] == pytest.approx(float(checkpoint(tmp_path)["average"]["module.bias"]))


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_used_where_the_machine_has_it(tmp_path, monkeypatch, native):
    used = []

    class Watching(LineLesson):
        def draw(self, step, rank, device):
            self.networks.register_forward_pre_hook(lambda *_: used.append(torch.is_autocast_enabled("cpu")))
            return super().draw(step, rank, device)

    monkeypatch.setattr(training, "_has_bfloat16", lambda device: native)
    train(Watching, replace(LINE, steps=1), tmp_path)
    assert used == [native]


# --- The schedule ---


def test_the_learning_rate_is_a_trapezoid():
    schedule = Schedule(steps=1000, batch=1, learning_rate=0.4, warmup=100)
    rates = [schedule.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.004)
    assert rates[49] == pytest.approx(0.2)
    assert rates[99:801] == pytest.approx([0.4] * 702)
    assert rates[900] == pytest.approx(0.2)
    assert rates[999] == pytest.approx(0.002)
    assert rates[:100] == sorted(rates[:100])
    assert rates[800:] == sorted(rates[800:], reverse=True)


def test_a_longer_schedule_begins_like_a_shorter_one():
    short, long = (Schedule(steps=steps, batch=1, learning_rate=1, warmup=100) for steps in (1000, 5000))
    assert [short.rate(step) for step in range(801)] == [long.rate(step) for step in range(801)]
