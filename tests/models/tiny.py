"""Checkpoints with random weights in the on-disk format of the published ones: tiny, or at full size."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from tests.models.published import CLIP, PUBLISHED, SAFETY

FAMILIES = tuple(PUBLISHED)

_UNET = {"block_out_channels": [32, 64, 64, 64], "layers_per_block": 1}
_SD1 = {
    "unet/config.json": _UNET | {"sample_size": 8, "cross_attention_dim": 48},
    "text_encoder/config.json": {"hidden_size": 48, "num_attention_heads": 3},
}
_SD2 = {
    "unet/config.json": _UNET | {"sample_size": 8, "cross_attention_dim": 64, "attention_head_dim": [1, 2, 4, 4]},
    "text_encoder/config.json": {"hidden_size": 64, "num_attention_heads": 4, "projection_dim": 32},
}
TINY = {
    "sd1": _SD1,
    "sd2_base": _SD2,
    "sd2_v": _SD2 | {"unet/config.json": _SD2["unet/config.json"] | {"sample_size": 16}},
    "sd2_depth": _SD2,
}
"""Config values of the tiny checkpoints that are smaller than the published ones; all others are the published ones."""
_ALL = {
    "vae/config.json": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1},
    "text_encoder/config.json": {"intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 600},
}
_WORDS = ("a", "red", "circle", "cat")


def configs(family: str, full: bool = False, safety_checker: bool = False) -> dict[str, dict[str, Any]]:
    """The JSON files of a checkpoint, by their names."""
    files = copy.deepcopy(PUBLISHED[family] | (SAFETY if safety_checker else {}))
    if not full:
        for changes in (TINY[family], _ALL):
            for name, change in changes.items():
                files[name] |= change
        if safety_checker:
            tiny = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
            files["safety_checker/config.json"]["vision_config"] |= tiny
            files["safety_checker/config.json"]["projection_dim"] = 24
    return files


def network(part: str, config: dict[str, Any]) -> nn.Module:
    """One network of a checkpoint, with random weights."""
    if part == "unet":
        return UNet2DConditionModel.from_config(config)
    if part == "vae":
        return AutoencoderKL.from_config(config)
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**config))
    return StableDiffusionSafetyChecker(CLIPConfig(**config))


def write_checkpoint(
    folder: Path,
    family: str,
    *,
    full: bool = False,
    resaved: bool = False,
    safety_checker: bool = False,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        folder: is made.
        family: one of FAMILIES.
        full: at the published size; else tiny, for 64x64 images (`sd2_v`: 128x128), with the VAE's factor of 8.
        resaved: as the installed libraries save it; else with the names that the published weights have.
        safety_checker: with `safety_checker/` and `feature_extractor/`.
        variant: of the weight files.
        dtype: of the weights.
        seed: of the weights.
    """
    files = configs(family, full, safety_checker)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2))
    write_tokenizer(folder / "tokenizer")
    for i, (part, stem) in enumerate(_STEMS.items()):
        if f"{part}/config.json" not in files:
            continue
        torch.manual_seed(seed + i)
        made = network(part, files[f"{part}/config.json"])
        if dtype != torch.float32:
            made.to(dtype)
        if resaved:
            made.save_pretrained(folder / part, variant=variant)
        else:
            weights = {name: value.contiguous() for name, value in _as_published(part, made.state_dict()).items()}
            save_file(
                weights, folder / part / f"{stem}{f'.{variant}' if variant else ''}.safetensors", {"format": "pt"}
            )
    return folder


_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "safety_checker": "model",
}


def write_clip(folder: Path, seed: int = 0) -> Path:
    """Write a tiny CLIP with the published configs and names of weights, and return its folder.

    The weights are larger than a new network's, so that texts and pictures differ.
    """
    files = copy.deepcopy(CLIP)
    tiny = {"num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 24}
    files["config.json"] |= {"projection_dim": 24}
    files["config.json"]["text_config"] |= tiny | {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 600}
    files["config.json"]["vision_config"] |= tiny | {"hidden_size": 48, "intermediate_size": 96, "patch_size": 32}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    write_tokenizer(folder)
    torch.manual_seed(seed)
    weights = {
        name: torch.randn_like(value) * 0.2 if value.ndim > 1 else value.contiguous()
        for name, value in CLIPModel(CLIPConfig(**files["config.json"])).state_dict().items()
    }
    positions = {"text_model": 77, "vision_model": 50}
    weights |= {f"{part}.embeddings.position_ids": torch.arange(count)[None] for part, count in positions.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_tokenizer(folder: Path) -> None:
    """CLIP's format, vocab.json and merges.txt, with bytes and a few words; ids of its signs as CLIP has them."""
    merges = [
        (word[:i], word[i] + ("</w>" if i == len(word) - 1 else "")) for word in _WORDS for i in range(1, len(word))
    ]
    alphabet = sorted(ByteLevel.alphabet())  # "!" is 0, as in CLIP
    vocabulary = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    vocabulary += dict.fromkeys("".join(pair) for pair in merges)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in dict.fromkeys(merges))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def _as_published(part: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of the published files, which older libraries wrote."""
    if part == "text_encoder":
        renamed = {f"text_model.{name}": value for name, value in weights.items()}
        return renamed | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    if part == "safety_checker":
        renamed = {
            name.replace("vision_model.", "vision_model.vision_model.", 1): value for name, value in weights.items()
        }
        return renamed | {"vision_model.vision_model.embeddings.position_ids": torch.arange(257)[None]}
    if part == "vae":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        return {_replace(name, old) if ".attentions." in name else name: value for name, value in weights.items()}
    return weights


def _replace(name: str, words: dict[str, str]) -> str:
    for word, other in words.items():
        name = name.replace(f".{word}.", f".{other}.")
    return name
