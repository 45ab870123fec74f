"""The paper, as pure tensor code: StereoDiffusion (Wang et al., CVPR Workshops 2024).

| module | what it holds |
|---|---|
| `config` | every switch of the method, and the presets |
| `disparity` | from depth to a shift in pixels (Sec. 3.1, Eq. 2) |
| `edges` | depth edges where the picture has them |
| `matting` | what of a pixel beside an object is the object's, told by samples of both colours |
| `warp` | Stereo Pixel Shift and the masks that follow from it (Sec. 3.1, Eq. 3) |
| `attention` | self-attention across the views, and what is kept of the left one for it (Sec. 3.3, Alg. 1) |
| `timesteps` | at which timesteps a checkpoint's steps run |
| `solver` | the steps of DDIM (Eq. 1) and of DPM-Solver++ |
| `sampler` | denoising of the left view and of the pair (Sec. 3.2, Eq. 6-8); inpainting (Sec. 5) |
| `inversion` | from a photo to its latents at every noise level (Sec. 3.4, Eq. 9-10) |
| `repaint` | RePaint, a baseline (Table 1) |
| `fill` | which background goes on into holes, and continuing it row by row |
| `membrane` | continuing it smoothly, from all rows at once |
| `bands` | pictures in bands of rows, so that memory does not grow with them |
| `image_warp` | the warp of an image at its own size, in bands |
| `rims` | the soft outlines of objects, taken apart into object and background |
| `composite` | the finished right view: the left's own pixels, diffusion in the holes |

Conventions: `disparity` always belongs to the LEFT view and is measured in pixels of the grid it is on. Positive
disparity is nearer and moves content LEFT in the right view (`x_right = x_left - d`).
"""

# Part of every recipe: increase it when the same recipe would give different pixels.
METHOD_VERSION = 2
