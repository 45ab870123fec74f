"""The method's switches: presets only fill in values, shares become steps, contradictions are refused."""

import pytest
from pydantic import ValidationError

from stereo_jobs.stereo.config import PRESETS, MethodConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_nothing_but_values(preset):
    method = MethodConfig(preset=preset)
    written_out = MethodConfig(**method.model_dump())
    assert written_out == method
    for name, value in PRESETS[preset].items():
        if name not in ("shift_step", "attention_step"):
            assert getattr(method, name) == value


def test_best_is_the_default_and_the_fields_default_to_it():
    assert MethodConfig() == MethodConfig(preset="best")
    fields = MethodConfig.model_fields
    assert all(fields[name].default == value for name, value in PRESETS["best"].items())


def test_official_is_the_published_arithmetic():
    official = MethodConfig(preset="official")
    assert (official.shift_step, official.attention_step, official.first_pair_step) == (10, 10, 11)
    assert [i for i in range(50) if official.recopies_after(i)] == [20, 30, 40]
    assert (official.guidance_scale, official.photo_guidance_scale) == (9.0, 7.5)
    assert not official.changes_left


def test_what_is_given_goes_before_the_preset():
    method = MethodConfig(preset="official", fill="noise", steps=25)
    assert (method.fill, method.steps, method.warp) == ("noise", 25, "integer")
    assert method.shift_step == 5


@pytest.mark.parametrize(
    ("steps", "share", "step"),
    [(50, 0.2, 10), (20, 0.4, 8), (25, 0.25, 6), (100, 0.29, 29), (50, 0.58, 29), (90, 0.7, 63), (50, 0.001, 0)],
)
def test_a_share_of_the_steps_becomes_a_step(steps, share, step):
    method = MethodConfig(steps=steps, shift_step=share, attention_step=share)
    assert method.shift_step == method.attention_step == step
    assert isinstance(method.shift_step, int)


@pytest.mark.parametrize(("given", "step"), [(0, 0), (0.0, 0), (1, 1), (1.0, 1), (7, 7), (7.0, 7)])
def test_whole_numbers_are_steps(given, step):
    assert MethodConfig(shift_step=given).first_pair_step == step + 1


def test_steps_may_be_written_as_a_whole_float():
    assert MethodConfig(steps=40.0) == MethodConfig(steps=40)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"shift_step": 2.5}, "shift_step must be a whole step, or a share of the steps between 0 and 1, got 2.5"),
        ({"attention_step": float("inf")}, "attention_step must be a whole step, .* got inf"),
        ({"steps": 10, "shift_step": 9}, r"shift_step must be below steps - 1 = 9, .*, got 9; the paper shifts"),
        ({"steps": 2, "shift_step": 1}, r"shift_step must be below steps - 1 = 1, .*, got 1; the paper shifts"),
        ({"shift_both": True}, "composite must be false with shift_both"),
        ({"inversion": "null_text"}, "inversion null_text needs photo_guidance_scale above 1"),
        ({"preset": "better"}, "'official' or 'best'"),
        ({"preset": ["best"]}, "'official' or 'best'"),
        ({"shift_step": -1}, "greater than or equal to 0"),
        ({"guidance_scale": 0.5}, "greater than or equal to 1"),
        ({"scale": 8}, "scale\n.*Extra inputs are not permitted"),
    ],
)
def test_contradictions_are_refused_with_the_rule_and_the_value(switches, message):
    with pytest.raises(ValidationError, match=message):
        MethodConfig(**switches)


def test_the_nearest_allowed_values_are_taken():
    assert MethodConfig(steps=10, shift_step=8).first_pair_step == 9
    assert MethodConfig(shift_both=True, composite=False).changes_left
    assert MethodConfig(inversion="null_text", photo_guidance_scale=7.5).inversion == "null_text"
    assert MethodConfig(attention_step=50).attention_step == 50  # never


@pytest.mark.parametrize(("attention", "changes"), [("off", False), ("uni", False), ("bi", True)])
def test_bidirectional_attention_changes_the_left(attention, changes):
    assert MethodConfig(attention=attention).changes_left == changes


def test_a_method_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        MethodConfig().steps = 20
