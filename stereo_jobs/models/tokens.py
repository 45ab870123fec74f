"""Finds prompts that are longer than a checkpoint's text encoder reads, without torch and transformers."""

import re
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from stereo_jobs.errors import ModelError
from stereo_jobs.models.files import COMPLETE, ModelFiles

_ENDS = 2
"""Tokens that are added to every prompt, at its start and at its end."""
_SPECIAL = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
_SPECIAL["bos_token"] = "<|startoftext|>"
"""Special tokens, in the order in which transformers adds them, and their texts where no file says others."""
_OVERRIDES = "tokenizer/special_tokens_map.json"
_MOST_KNOWN = 100_000
"""Words whose number of tokens is remembered."""
_PIECES = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_ASCII_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
"""The same for ASCII text in lower case without special tokens."""


class PromptTokenizer:
    """Knows which prompts are too long: CLIP's byte pair encoding (Radford et al. 2021, Sec. 2.4).

    Args:
        files: files of a Stable Diffusion checkpoint.

    Attributes:
        limit: tokens of a prompt that the text encoder reads, start and end included; 77 for CLIP.

    Raises:
        ModelError: the tokenizer's files are missing or broken.
    """

    def __init__(self, files: ModelFiles) -> None:
        config = files.config("tokenizer/tokenizer_config.json")
        if _OVERRIDES in files.names:
            config |= files.config(_OVERRIDES)
        positions = files.config("text_encoder/config.json").get("max_position_embeddings", 77)
        self.limit = int(min(config.get("model_max_length") or positions, positions))
        special: dict[str, AddedToken] = {}
        for name, default in _SPECIAL.items():
            token = _added(config.get(name) or default)
            special[token.content] = token  # of two with one text, the later one's flags hold
        self._special = [text.lower() for text in special]
        self._known: dict[str, int] = {}
        try:
            self._tokenizer = _tokenizer(files, [*special.values()])
        except ModelError:
            raise
        except Exception as error:  # for a broken file, the tokenizers library raises plain `Exception`
            raise ModelError(f"model: its tokenizer cannot be loaded ({error}); {COMPLETE}") from None

    def cut(self, prompt: str) -> bool:
        """Whether the text encoder reads only the beginning of a prompt."""
        if not prompt.isascii():
            return self._encoded(prompt) > self.limit - _ENDS
        # A token covers at least one byte, so that what is short needs no counting.
        return len(prompt) > self.limit - _ENDS and self._count_ascii(prompt.lower()) > self.limit - _ENDS

    def _count_ascii(self, prompt: str) -> int:
        """Count tokens word by word: each word is encoded alone, and most have been met before."""
        if any(token in prompt for token in self._special):
            return self._encoded(prompt)
        return sum(map(self._count_piece, _ASCII_PIECES.findall(prompt)))

    def _count_piece(self, piece: str) -> int:
        if piece not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[piece] = self._encoded(piece)
        return self._known[piece]

    def _encoded(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


def _tokenizer(files: ModelFiles, special: list[AddedToken]) -> Tokenizer:
    """Build the tokenizer from the vocabulary and merges of a checkpoint, as transformers' CLIPTokenizer does."""
    if "tokenizer/tokenizer.json" in files.names:
        stored = files.config("tokenizer/tokenizer.json")
        vocabulary, merges = stored["model"]["vocab"], [_merge(line) for line in stored["model"]["merges"]]
    else:
        vocabulary = files.config("tokenizer/vocab.json")
        lines = files.text("tokenizer/merges.txt").splitlines()
        merges = [_merge(line) for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def _merge(line: str | list[str]) -> tuple[str, str]:
    left, right = line.split() if isinstance(line, str) else line
    return left, right


def _added(token: str | dict[str, Any]) -> AddedToken:
    """A special token as tokenizer_config.json writes it: its text, or its text with flags."""
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    flags = {name: bool(token.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(token["content"], special=True, **flags)
