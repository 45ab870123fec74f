"""Keeps models loaded from one job of an evaluation to the next: most of these jobs differ in their method alone."""

from typing import NamedTuple

import torch

from stereo_jobs.pipeline.generator import PairGenerator, choose_device
from stereo_jobs.spec import ModelsSpec, Recipe


class _Key(NamedTuple):
    """Everything that decides which models are loaded."""

    models: ModelsSpec
    depth_conditioned: bool
    device: str


class ModelCache:
    """Loads a generator like `load_generator`, in this process, and reuses the models where a recipe has the same."""

    def __init__(self) -> None:
        self._kept: dict[_Key, PairGenerator] = {}

    def __call__(self, recipe: Recipe, device: str, batch_size: int) -> PairGenerator:
        """Return a generator of a recipe; a `GeneratorFactory` of `stereo_jobs.workers.worker`."""
        device = choose_device(device)
        if device == "cpu":
            torch.set_num_threads(1)  # in this thread, see `load_generator`
        key = _Key(recipe.models, recipe.mode == "depth", device)
        if key not in self._kept:
            self._kept.clear()  # two Stable Diffusions may need more memory than a GPU has
            self._kept[key] = PairGenerator.load(recipe, device, batch_size)
        return self._kept[key].with_recipe(recipe, batch_size)
