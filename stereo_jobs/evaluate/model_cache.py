"""Models that stay loaded from one case to the next: most cases of an evaluation differ in their method alone."""

from typing import Any

import torch

from stereo_jobs.pipeline.generator import StereoPipeline
from stereo_jobs.spec import Recipe
from stereo_jobs.workers.worker import load_pipeline


class KeptModels:
    """Loads as `load_pipeline` does, in this process, and gives the next recipe the same models where it has them."""

    def __init__(self) -> None:
        self._kept: tuple[Any, StereoPipeline] | None = None

    def __call__(self, recipe: Recipe, device: str, batch_size: int) -> StereoPipeline:
        """See `stereo_jobs.workers.worker.GeneratorFactory`."""
        wanted = recipe.models, recipe.mode == "depth", device
        if self._kept is None or self._kept[0] != wanted:
            self._kept = None  # two Stable Diffusions may be more than a GPU holds
            loaded = load_pipeline(recipe, device, batch_size)
            assert isinstance(loaded, StereoPipeline)
            self._kept = wanted, loaded
        models = self._kept[1]
        if models.sd.device == "cpu":
            torch.set_num_threads(1)  # of this thread, as `load_pipeline` does it
        return StereoPipeline(models.sd, models.depth, recipe, batch_size, safety=models.safety, clip=models.clip)
