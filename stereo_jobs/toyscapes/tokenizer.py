"""The demo models' tokenizer: CLIP's format, one token for every word of a caption."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

LENGTH = 40
"""Tokens of a prompt; the longest caption has 34."""


def new_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A tokenizer whose vocabulary is closed: `words` are single tokens, others fall apart into letters."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = _merges(sorted(set(words)))
    vocabulary = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    vocabulary += dict.fromkeys("".join(pair) for pair in merges)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=LENGTH,
        closed_vocabulary=True,  # read by models/stable_diffusion.py, which then reports unknown words
    )


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write it in transformers format."""
    tokenizer.save_pretrained(folder)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pair merges, in order, that join each word into one token.

    Learned by the usual algorithm from the words alone until nothing is left to merge: applied in the order in
    which they were learned they rebuild every word.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(words, trainer)
    return [(first, second) for first, second in json.loads(learner.to_str())["model"]["merges"]]
