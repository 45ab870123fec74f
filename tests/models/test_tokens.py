"""Which prompts are cut, found without transformers: as its CLIPTokenizer counts them, for any text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import DEMO_FOLDER, find
from stereo_jobs.models.tokens import PromptTokenizer
from stereo_jobs.spec import StableDiffusionSpec
from tests.models import tiny


def opened(path: object) -> PromptTokenizer:
    return PromptTokenizer(find(StableDiffusionSpec(path=str(path))))


@pytest.fixture(scope="module", params=["demo", "sd1", "sd2_base"])
def both(request, tmp_path_factory):
    """Ours, and transformers' with the same files: tokenizer.json, or vocab.json and merges.txt; SD 2 pads with `!`."""
    if request.param == "demo":
        return opened("demo"), CLIPTokenizer.from_pretrained(DEMO_FOLDER / "sd/tokenizer"), 40
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "sd", request.param)
    return opened(folder), CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True), 77


WORDS = st.sampled_from(
    ["red ", "a ", "circle,", "!", "!!", "wow!! ", "it's ", "'S", "<|endoftext|>", "<|ENDOFTEXT|>", "漢"]
)
PROMPTS = st.lists(WORDS | st.text(max_size=12), max_size=25).map("".join)


@settings(max_examples=60, deadline=None)
@given(prompt=PROMPTS)
def test_prompts_are_counted_as_transformers_counts_them(both, prompt):
    ours, theirs, limit = both
    assert ours.limit == limit
    assert ours.cut(prompt) == (len(theirs(prompt, verbose=False).input_ids) > limit)


@settings(max_examples=30, deadline=None)
@given(text=st.text("aAbré !<|>1'st\t\n", min_size=60, max_size=130))
def test_prompts_about_as_long_as_the_limit_too(both, text):
    ours, theirs, limit = both
    assert ours.cut(text) == (len(theirs(text, verbose=False).input_ids) > limit)


def test_broken_files_are_one_line(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "sd", "sd1")
    (folder / "tokenizer/merges.txt").write_text("not merges")
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded"):
        opened(folder)
    (folder / "tokenizer/merges.txt").unlink()
    with pytest.raises(ModelError, match=r"merges\.txt is missing or broken"):
        opened(folder)
