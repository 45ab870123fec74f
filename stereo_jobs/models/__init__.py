"""The models of a job: found and pinned without torch, loaded with it.

| module | what it holds |
|---|---|
| `files` | a model's files, in a folder or on the Hugging Face Hub: their names, their revision, their download |
| `resolve` | checks of a recipe's models by their configs; every model pinned to a revision |
| `device` | whether this machine has a GPU |
| `tokens` | which prompts are longer than the text encoder reads, found without torch |
| `weights` | loading of one network, from safetensors only |
| `stable_diffusion` | Stable Diffusion 1.x / 2.x: text encoder, U-Net, VAE, noise schedule |
| `depth_estimator` | monocular depth estimators |
| `clip` | CLIP scores of pictures and prompts |
| `flops` | operations of Stable Diffusion's networks, counted from configs; how many this machine does a second |
| `safety` | the safety checker of Stable Diffusion 1.x |

The folder `demo` holds small embedded models; its README is their model card.
"""
