"""The paper, as pure tensor code: StereoDiffusion (Wang et al., CVPR Workshops 2024).

| module | paper |
|---|---|
| `config` | every switch of the method, and the presets |
| `disparity` | Sec. 3.1, Eq. 2: from depth to a shift in pixels |
| `warp` | Sec. 3.1, Eq. 3: Stereo Pixel Shift, with the masks it implies |
| `attention` | Sec. 3.3, Alg. 1: uni- and bidirectional self-attention |
| `solver` | Eq. 1: the steps of DDIM and of DPM-Solver++ |
| `sampler` | Sec. 3.2, Eq. 6-8: denoising of the left view and of the pair; inpainting (Sec. 5) |
| `inversion` | Sec. 3.4, Eq. 9-10: from a photo to latents that lead back to it |
| `repaint` | Table 1: RePaint, a baseline |
| `fill` | the background continued into holes |
| `composite` | the finished right view: the left's own pixels, diffusion in the holes |

Words and units: `disparity` belongs to the LEFT view, in pixels of the grid it is on; positive is nearer and
moves content LEFT in the right view (`x_right = x_left - d`).
"""

# Part of every recipe: raised when the same recipe would give other pixels.
METHOD_VERSION = 1
