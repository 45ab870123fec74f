"""The depth estimator of the demo models: a small Depth Anything, trained on ToyScapes."""

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
)

from stereo_jobs.pixels import F32, Bools
from stereo_jobs.stereo.disparity import relative_disparity
from stereo_jobs.toyscapes.render import ToyScape, render
from stereo_jobs.toyscapes.scenes import draw_scene
from stereo_jobs.toyscapes.training import Batch, Schedule

SCHEDULE = Schedule(steps=1800, batch=16, learning_rate=1e-3, warmup=500, ema=0.998)
EDGE_PX = 3
"""Distance in pixels up to which a pixel is near a depth edge."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def new_depth() -> DepthAnythingForDepthEstimation:
    """The untrained network: Dinov2 with patches of 8 pixels; it predicts relative inverse depth."""
    backbone = Dinov2Config(
        image_size=128,
        patch_size=8,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        mlp_ratio=3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    network = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=8,
            reassemble_hidden_size=96,
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_sizes=[24, 32, 48, 64],
            fusion_hidden_size=32,
            head_hidden_size=16,
        )
    )
    nn.init.constant_(network.head.conv3.bias, 0.5)  # otherwise its ReLU may start dead
    # No image uses these weights, and data-parallel training needs a gradient for every trained weight.
    network.backbone.embeddings.mask_token.requires_grad_(False)
    network.neck.fusion_stage.layers[0].residual_layer1.requires_grad_(False)
    return network


class DepthLoss(nn.Module):
    """Absolute error of inverse depth in [0, 1]; billboards and depth edges have higher weights."""

    def __init__(self, depth: DepthAnythingForDepthEstimation) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of a batch: `pixels` B,3,H,W normalised, `target` and `weight` B,H,W."""
        error = self.depth(batch["pixels"]).predicted_depth.float() - batch["target"]
        across, down = (error[..., 1:] - error[..., :-1]).abs(), (error[..., 1:, :] - error[..., :-1, :]).abs()
        loss: Tensor = (error.abs() * batch["weight"]).mean() + 0.5 * (across.mean() + down.mean())
        return loss


class DepthLesson:
    """Trains the estimator on fresh renders, with the blur, noise and tints of generated images."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.networks = DepthLoss(new_depth())

    def draw(self, step: int, rank: int, device: str) -> Batch:
        """Both views of newly drawn scenes, with target and weight of each pixel."""
        rng = np.random.default_rng([4, step, rank])
        pixels, targets, weights = [], [], []
        for _ in range(self.schedule.batch // 2):
            scene = render(draw_scene(int(rng.integers(2**40))))
            for image, disparity in ((scene.left, scene.disparity), (scene.right, scene.right_disparity)):
                target = normalised(disparity)
                pixels.append(disturb(image, rng))
                targets.append(target)
                weights.append(1 + 3.0 * _dilated(depth_edges(target), EDGE_PX) + 1.0 * _standing(disparity))
        return {
            "pixels": normalise_pixels(np.stack(pixels)).to(device),
            "target": torch.from_numpy(np.stack(targets)).to(device),
            "weight": torch.from_numpy(np.stack(weights).astype(np.float32)).to(device),
        }

    def evaluate(self, networks: nn.Module) -> dict[str, float]:
        """Mean errors on 32 held-out scenes: everywhere, and near depth edges."""
        scenes = [render(draw_scene(seed, "test")) for seed in range(32)]
        with torch.inference_mode():
            pixels = normalise_pixels(np.stack([scene.left for scene in scenes]))
            found = networks.depth(pixels.to(next(networks.parameters()).device)).predicted_depth  # type: ignore[operator]
        everywhere, at_edges = errors(found.float().cpu().numpy(), scenes)
        return {"error": float(np.mean(everywhere)), "edge_error": float(np.mean(at_edges))}


def errors(inverse_depth: F32, scenes: list[ToyScape]) -> tuple[list[float], list[float]]:
    """Mean absolute error of the min-max normalised inverse depth of each image: everywhere, and near depth edges.

    Args:
        inverse_depth: estimates N,H,W at any scale and offset.
        scenes: the N rendered scenes.
    """
    everywhere, at_edges = [], []
    for found, scene in zip(inverse_depth, scenes, strict=True):
        truth = normalised(scene.disparity)
        error = np.abs(normalised(found) - truth)
        everywhere.append(float(error.mean()))
        at_edges.append(float(error[_dilated(depth_edges(truth), EDGE_PX)].mean()))
    return everywhere, at_edges


def normalised(depth: F32) -> F32:
    """Min-max normalise H,W to [0, 1]; zero if all values are equal."""
    return np.asarray(relative_disparity(torch.from_numpy(depth)[None])[0].numpy(), np.float32)


def depth_edges(depth: F32) -> Bools:
    """Depth edges: both pixels of each jump of normalised inverse depth by more than 0.05."""
    edges = np.zeros(depth.shape, bool)
    across, down = np.abs(np.diff(depth, axis=1)) > 0.05, np.abs(np.diff(depth, axis=0)) > 0.05
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def disturb(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Degrade an image H,W,3 at random: blur, noise and a tint."""
    result = image.astype(np.float32)
    if rng.random() < 0.5:
        result = cv2.GaussianBlur(result, (0, 0), rng.uniform(0.3, 1.2)).astype(np.float32)
    if rng.random() < 0.5:
        result += rng.standard_normal(result.shape, np.float32) * np.float32(rng.uniform(0, 6))
    result *= rng.uniform(0.9, 1.1, 3).astype(np.float32)
    return np.clip(result, 0, 255).astype(np.uint8)


def normalise_pixels(images: NDArray[np.uint8]) -> Tensor:
    """B,H,W,3 uint8 -> B,3,H,W float32, normalised like the model's image processor does."""
    scaled = (images.astype(np.float32) / 255 - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    return torch.from_numpy(scaled).permute(0, 3, 1, 2)


def export(networks: nn.Module, folder: Path) -> None:
    """Write the estimator in float16 and its image processor, in transformers format."""
    networks.depth.half().save_pretrained(folder)  # type: ignore[union-attr, operator]
    processor = DPTImageProcessorPil(
        size={"height": 128, "width": 128},
        ensure_multiple_of=8,
        keep_aspect_ratio=False,
        resample=3,
        do_pad=False,
        image_mean=list(_MEAN),
        image_std=list(_STD),
    )
    processor.save_pretrained(folder)
    networks.float()


def _dilated(mask: Bools, radius: int) -> Bools:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((2 * radius - 1,) * 2, np.uint8)) > 0)


def _standing(disparity: F32) -> Bools:
    """Pixels of billboards: their disparity differs from the median of the row, which is the room's."""
    background = np.median(disparity, axis=1, keepdims=True)
    return np.asarray(np.abs(disparity - background) > 0.25)
