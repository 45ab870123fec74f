"""Pictures for CLIP, and its preprocessing written out."""

import numpy as np
import torch
from PIL import Image


def pictures(count=6, size=(300, 400)):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize(size[::-1])) for image in coarse])


def pixel_values(images):
    """CLIP's preprocessing: the shorter edge to 224, the middle square, CLIP's mean and deviation."""
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    out = []
    for image in images:
        height, width = image.shape[:2]
        scale = 224 / min(height, width)
        resized = Image.fromarray(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        top, left = (resized.height - 224) // 2, (resized.width - 224) // 2
        square = np.asarray(resized)[top : top + 224, left : left + 224] / 255
        out.append(((square - mean) / deviation).transpose(2, 0, 1))
    return torch.tensor(np.stack(out), dtype=torch.float32)
