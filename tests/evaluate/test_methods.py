"""The catalogue of methods: valid, told apart by name and folder, and in step with the paper's figures."""

import pytest

from stereo_jobs.errors import SpecError
from stereo_jobs.evaluate.experiments import slug
from stereo_jobs.evaluate.methods import BEST, TABLES, TECHNIQUES, by_name, chosen, folders, sweep
from stereo_jobs.evaluate.tables import paper
from stereo_jobs.stereo.config import MethodConfig

ALL = [method for methods in TABLES.values() for method in methods]


@pytest.mark.parametrize("geometry", ["relative", "metric"])
def test_every_method_is_valid(geometry):
    for method in ALL:
        MethodConfig(**method.switches, geometry=geometry)


def test_a_name_and_a_folder_mean_one_method():
    by_name_and_folder = {(method.name, slug(method.name)): method for method in ALL}
    assert len({name for name, _ in by_name_and_folder}) == len({folder for _, folder in by_name_and_folder})
    assert all(by_name_and_folder[method.name, slug(method.name)] == method for method in ALL)


def test_no_two_methods_are_the_same_one():
    kinds = {(MethodConfig(**method.switches).model_dump_json(), method.disparity) for method in ALL}
    assert len(kinds) == len({method.name for method in ALL})


def test_techniques_are_what_their_marks_say():
    for method, (attention, recopies, deblur) in TECHNIQUES.values():
        config = MethodConfig(**method.switches)
        assert config.attention == ("uni" if attention else "off")
        assert config.recopy_interval == (10 if recopies else 0)
        assert config.fill == ("noise" if deblur else "zero")
        assert (config.inversion, method.slow) == ("null_text", True)


def test_the_papers_figures_belong_to_methods():
    assert set(paper.SCORES) | set(paper.SECONDS) <= {method.name for method in ALL}
    assert set(TECHNIQUES) <= set(paper.SCORES)


def test_only_hundreds_of_evaluations_make_a_method_slow():
    for method in ALL:
        config = MethodConfig(**method.switches)
        expected = config.right_view == "repaint" or (config.diffuses_pair and config.inversion == "null_text")
        assert method.slow == expected, method.name


def test_methods_are_chosen_by_name():
    assert [method.name for method in chosen("methods", ["best", "stretch"])] == ["stretch", "best"]
    assert by_name("best, attention off").switches == {"attention": "off"}
    with pytest.raises(SpecError, match="method 'nope': not known; there are: identity; leave_blank"):
        by_name("nope")


def test_a_sweep_sets_one_switch():
    early, late = sweep("shift_step=0.1,0.5", BEST)
    assert (early.name, early.switches) == ("best, shift_step 0.1", {"shift_step": 0.1})
    assert MethodConfig(**late.switches).shift_step == 25


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("shift_step", "write it as FIELD=VALUE"),
        ("shift=1", "write it as FIELD=VALUE"),
        ("geometry=metric", "write it as FIELD=VALUE"),
        ("shift_step=49", "shift_step must be below steps"),
        ("fill=water", "Input should be"),
    ],
)
def test_a_wrong_sweep_is_named(text, complaint):
    with pytest.raises(SpecError, match=complaint):
        sweep(text, BEST)


@pytest.mark.parametrize("text", ["somewhere", "=dir", "name="])
def test_a_wrong_folder_is_named(text):
    with pytest.raises(SpecError, match="write it as NAME=DIR"):
        folders([text])
