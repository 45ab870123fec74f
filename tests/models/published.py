"""Configs of Stable Diffusion checkpoints as their repositories publish them.

From CompVis/stable-diffusion-v1-4, runwayml/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1-base and
stabilityai/stable-diffusion-2-1 (768-v); the depth-conditioned one is SD 2 base with a fifth input channel.
CLIP is openai/clip-vit-large-patch14.
"""

from typing import Any

_BLOCKS = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
}
_SD1_UNET = _BLOCKS | {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0.dev0",
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "in_channels": 4,
    "sample_size": 64,
}
_SD2_UNET = _BLOCKS | {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "in_channels": 4,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 64,
    "use_linear_projection": True,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_CLIP = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "vocab_size": 49408,
}
_VIT_L = _CLIP | {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "transformers_version": "4.23.1",
}
_OPENCLIP_H = _CLIP | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
    "transformers_version": "4.25.0.dev0",
}
_PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_V_DDIM = _PNDM | {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"}
_SAFETY_CHECKER = {
    "_name_or_path": "CompVis/stable-diffusion-safety-checker",
    "architectures": ["StableDiffusionSafetyChecker"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {
        "dropout": 0.0,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
    },
    "torch_dtype": "float32",
    "vision_config": {
        "dropout": 0.0,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}
_FEATURE_EXTRACTOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


def _token(content: str) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def _tokenizer(pad: str) -> dict[str, dict[str, Any]]:
    special = {name: _token(f"<|{text}|>") for name, text in _SPECIAL.items()}
    return {
        "tokenizer/tokenizer_config.json": {
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": "<|endoftext|>",  # also in SD 2: special_tokens_map.json overrides it
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_class": "CLIPTokenizer",
        }
        | {name: {"__type": "AddedToken"} | token for name, token in special.items()},
        "tokenizer/special_tokens_map.json": special | {"pad_token": pad},
    }


_SPECIAL = {"bos_token": "startoftext", "eos_token": "endoftext", "unk_token": "endoftext"}


def _index(family: str) -> dict[str, Any]:
    return {
        "_class_name": family,
        "_diffusers_version": "0.8.0",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _family(
    unet: dict[str, Any],
    text: dict[str, Any],
    scheduler: dict[str, Any],
    pad: str,
    family: str = "StableDiffusionPipeline",
) -> dict[str, dict[str, Any]]:
    return {
        "model_index.json": _index(family),
        "unet/config.json": unet,
        "vae/config.json": _VAE,
        "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": scheduler,
        **_tokenizer(pad),
    }


PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": _family(_SD1_UNET, _VIT_L, _PNDM, "<|endoftext|>"),
    "sd2_base": _family(_SD2_UNET, _OPENCLIP_H, _PNDM, "!"),
    "sd2_v": _family(_SD2_UNET | {"sample_size": 96}, _OPENCLIP_H, _V_DDIM, "!"),
    "sd2_depth": _family(_SD2_UNET | {"in_channels": 5}, _OPENCLIP_H, _PNDM, "!", "StableDiffusionDepth2ImgPipeline"),
}
"""Family -> file -> content."""

SAFETY = {
    "safety_checker/config.json": _SAFETY_CHECKER,
    "feature_extractor/preprocessor_config.json": _FEATURE_EXTRACTOR,
}
"""The additional files of Stable Diffusion 1.x."""

CLIP: dict[str, dict[str, Any]] = {
    "config.json": {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": _VIT_L | {"architectures": None, "projection_dim": 768},
        "text_config_dict": None,
        "torch_dtype": "float32",
        "vision_config": {
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "hidden_act": "quick_gelu",
            "hidden_size": 1024,
            "image_size": 224,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 4096,
            "layer_norm_eps": 1e-05,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "vision_config_dict": None,
    },
    "preprocessor_config.json": _FEATURE_EXTRACTOR,
    **{name.removeprefix("tokenizer/"): content for name, content in _tokenizer("<|endoftext|>").items()},
}
"""File -> content."""
