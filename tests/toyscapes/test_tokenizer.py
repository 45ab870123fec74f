"""The demo tokenizer: a word of a caption is one token, and it says that it knows no others."""

import itertools
import zlib

import pytest
from transformers import CLIPTokenizer

from stereo_jobs.toyscapes.scenes import SPLITS, VOCABULARY, draw_scene
from stereo_jobs.toyscapes.tokenizer import LENGTH, new_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def loaded(tokenizer, tmp_path_factory):
    """The tokenizer after a round trip through a folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def captions():
    return [draw_scene(seed, split).caption for split in SPLITS for seed in range(200)]


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_every_word_of_the_vocabulary_is_one_token(tokenizer):
    assert [pieces(tokenizer, word) for word in VOCABULARY] == [[f"{word}</w>"] for word in VOCABULARY]


def test_a_caption_has_a_token_a_word_between_start_and_end(tokenizer, captions):
    for caption in captions:
        words = caption.replace(",", " ,").split()
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(caption)["input_ids"])
        assert tokens == ["<|startoftext|>", *(f"{word}</w>" for word in words), "<|endoftext|>"]


def longest() -> str:
    """The caption of a crowded scene whose objects all have a pattern, before a wall with windows."""
    scenes = (draw_scene(seed, "train", "crowded") for seed in itertools.count())
    return next(
        scene.caption
        for scene in scenes
        if [board.pattern != "plain" for board in scene.billboards] == [True] * 3
        and (scene.floor, scene.wall) == ("tiled", "windows")
    )


def test_the_longest_caption_fits(tokenizer, captions):
    caption = longest()
    assert max(len(tokenizer(text)["input_ids"]) for text in [*captions, caption]) == 34 <= LENGTH
    assert len(tokenizer(caption)["input_ids"]) == 34
    padded = tokenizer(caption, padding="max_length", truncation=True)["input_ids"]
    assert len(padded) == LENGTH == tokenizer.model_max_length


def test_a_long_prompt_is_cut_and_keeps_its_end(tokenizer):
    ids = tokenizer("a red circle " * 30, padding="max_length", truncation=True)["input_ids"]
    assert (len(ids), ids[-1]) == (LENGTH, tokenizer.eos_token_id)


def test_ids_lie_within_the_vocabulary(tokenizer, captions):
    ids = [i for caption in captions for i in tokenizer(caption)["input_ids"]]
    assert max(ids) < len(tokenizer)
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id} == {len(tokenizer) - 2, len(tokenizer) - 1}
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("word", ["hexagon", "photo", "reds", "cir", "plain", "schön"])
def test_unknown_words_fall_apart(tokenizer, word):
    tokens = pieces(tokenizer, word)
    assert len(tokens) > 1
    assert tokenizer.unk_token_id not in tokenizer(word, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokenizer(word, add_special_tokens=False)["input_ids"]).strip() == word


def test_capitals_and_spaces_do_not_matter(tokenizer):
    assert tokenizer("A  Red circle ,GREEN floor")["input_ids"] == tokenizer("a red circle, green floor")["input_ids"]


def test_a_round_trip_keeps_every_id(tokenizer, loaded, captions):
    texts = [*captions, "", "an unknown hexagon", "A RED  circle"]
    for options in ({}, {"padding": "max_length", "truncation": True}):
        assert loaded(texts, **options)["input_ids"] == tokenizer(texts, **options)["input_ids"]
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == LENGTH


def test_that_the_vocabulary_is_closed_survives_the_round_trip(tokenizer, loaded):
    assert tokenizer.init_kwargs["closed_vocabulary"] is True
    assert loaded.init_kwargs["closed_vocabulary"] is True


def test_a_word_has_the_same_id_in_every_process_and_for_ever(tokenizer):
    """Text encoders are trained on ids: the numbers are what they were then."""
    for again in (VOCABULARY, VOCABULARY[::-1], set(VOCABULARY)):
        assert new_tokenizer(again).get_vocab() == tokenizer.get_vocab()
    ids = [tokenizer.get_vocab()[f"{word}</w>"] for word in VOCABULARY]
    assert zlib.crc32(str(ids).encode()) == 1914707054
    ids = tokenizer("an orange star in front of a red circle")["input_ids"]
    assert ids == [629, 530, 613, 600, 550, 609, 562, 320, 571, 607, 630]
