"""ToyScapes: small rendered stereo scenes with exact truth, and the demo models trained on them.

| module | what it does |
|---|---|
| `scenes` | what is in a scene, drawn from a seed, and its caption |
| `structures` | what no single row can continue, painted on the walls of level `hard` |
| `render` | images, disparity and occlusion of a scene |
| `manifest` | writes scenes as a manifest |
| `tokenizer` | the tokenizer of captions |
| `training` | the training loop of all demo models |
| `vae` | trains the VAE |
| `decoder` | trains the VAE's decoder further, and measures its ringing |
| `diffusion` | trains the U-Net and the text encoder |
| `depth` | trains the depth estimator |
| `judge` | trains a classifier that judges generated images |
| `figures` | measures the trained models on held-out scenes |
| `__main__` | the command line: `python -m stereo_jobs.toyscapes` |
"""
