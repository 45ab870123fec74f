"""The demo models' tokenizer: CLIP's format, one token for every word of a caption."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

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


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pair merges, in order, that join each word into one token.

    Byte pair encoding (Sennrich et al. 2016, Alg. 1), learned from the words alone until nothing is left to merge:
    applied in the order in which they were learned the merges rebuild every word. Of equally frequent pairs the one
    of older symbols is first. (The trainer of `tokenizers` leaves that to a hash, and numbers tokens anew each time.)
    """
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    letters = sorted({letter for word in words for letter in word[:-1]})
    symbols = dict.fromkeys([*letters, *(parts[-1] for parts in pieces)])
    order = {symbol: i for i, symbol in enumerate(symbols)}
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for parts in pieces for pair in pairwise(parts)):
        first, second = min(counts, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        merges.append((first, second))
        order.setdefault(first + second, len(order))
        pieces = [_merged(parts, first, second) for parts in pieces]
    return merges


def _merged(parts: list[str], first: str, second: str) -> list[str]:
    """The parts of a word with every such pair joined, from the left."""
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == (first, second):
            result[-1] += part
        else:
            result.append(part)
    return result
