"""The catalogue of methods: valid, told apart by name and folder, and in step with the paper's figures."""

import pytest

from stereo_jobs.errors import SpecError
from stereo_jobs.evaluate.experiments import Case, slug
from stereo_jobs.evaluate.methods import BEST, TABLES, TECHNIQUES, by_name, chosen, folders, sweep
from stereo_jobs.evaluate.protocols import PROTOCOLS, level_by_name, protocol_by_name
from stereo_jobs.evaluate.tables import paper
from stereo_jobs.evaluate.tables.compare import _caption, scores_table
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
    kinds = {(MethodConfig(**method.switches).model_dump_json(), method.disparity, method.prompts) for method in ALL}
    assert len(kinds) == len({method.name for method in ALL})


def test_techniques_are_what_their_marks_say():
    for method, (attention, recopies, deblur) in TECHNIQUES.values():
        config = MethodConfig(**method.switches)
        assert config.attention == ("uni" if attention else "off")
        assert config.recopy_interval == (10 if recopies else 0)
        assert config.fill == ("noise" if deblur else "zero")
        assert (config.inversion, method.slow) == ("null_text", True)


def test_techniques_have_the_letters_of_fig_5_on_pictures():
    letters = [_caption("techniques", name) for name in TECHNIQUES]
    assert letters == ["P", "P S", "P A", "G AS", "G ASD", "P ASD", "P AS"]
    assert _caption("methods", "stereodiffusion") == "stereodiffusion"


def test_published_figures_are_of_protocols_and_of_methods_or_named_programs():
    assert set(paper.PUBLISHED) <= set(PROTOCOLS)
    assert set(paper.IN_BRACKETS) == set(paper.PUBLISHED)
    for published in paper.PUBLISHED.values():
        assert set(published) <= {method.name for method in ALL} | set(paper.OTHER_PROGRAMS)


def test_figures_of_other_programs_stand_below_a_table_that_lacks_them():
    case = Case("x", "middlebury", by_name("stereodiffusion"), None)
    scores = {"x": {"scene": {"psnr": 17.0, "ssim": 0.5, "lpips": 0.3}}}
    table = scores_table("methods", PROTOCOLS["end_to_end"], [case], scores)
    assert [table.cells[0, j].paper for j in range(3)] == [17.06, 0.525, 0.304]
    assert table.notes[0] == "In square brackets the means that StereoSpace's paper prints."
    assert table.notes[1] == (
        "Published for Middlebury, as PSNR / SSIM / LPIPS: ZeroStereo 17.48 / 0.537 / 0.264; "
        "GenStereo 18.54 / 0.599 / 0.184; StereoSpace 17.04 / 0.541 / 0.234."
    )
    squashed = scores_table("methods", PROTOCOLS["squash"], [case], scores)
    assert not squashed.has_paper
    assert "GenStereo 25.14 / 0.911 / -." in squashed.notes[0]


def test_protocols_measure_what_they_can():
    estimated = BEST.estimated()
    assert PROTOCOLS["paper"].measurable([BEST, estimated]) == [BEST, estimated]
    for name in ("metric", "squash", "end_to_end", "cycle"):
        assert PROTOCOLS[name].measurable([BEST, estimated]) == [BEST]
    assert not PROTOCOLS["end_to_end"].gives_disparity(BEST)
    with pytest.raises(SpecError, match="protocol 'nope': not known; there are: paper, metric, squash"):
        protocol_by_name("nope")
    with pytest.raises(SpecError, match="level 'nope': not known; there are: plain, structured, crowded, hard"):
        level_by_name("nope")


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
    assert MethodConfig(**late.switches).shift_step == 10


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
