"""The tokenizer of the demo models: in CLIP's format, with one token for each word of a caption."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

LENGTH = 40
"""Number of tokens of a prompt; the longest caption has 34."""


def new_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A tokenizer with a closed vocabulary: each of `words` is one token, any other word is split into letters."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = _merges(sorted(set(words)))
    vocabulary = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    vocabulary += dict.fromkeys("".join(pair) for pair in merges)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=LENGTH,
        closed_vocabulary=True,  # makes models/stable_diffusion.py report unknown words
    )


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """The merges, in order, that join each word into one token: byte pair encoding (Sennrich et al. 2016, Alg. 1).

    They are learned from the words alone until nothing is left to merge; applied in this order, they rebuild each word.
    Among equally frequent pairs, the pair of older symbols is merged first. (The trainer of `tokenizers` breaks ties by
    a hash, so its token numbers differ from run to run.)
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
    """The parts of a word, with each pair of `first` and `second` joined, from the left."""
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == (first, second):
            result[-1] += part
        else:
            result.append(part)
    return result
