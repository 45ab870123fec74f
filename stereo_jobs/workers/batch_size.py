"""How many left images a worker generates together: fewer while GPU memory is short, and more again after it."""

from collections import Counter

from stereo_jobs.spec import LARGEST_AUTO_BATCH, Recipe

FIRST_WAIT = 8
"""Batches that succeed at a smaller size before the larger one, which failed once, is tried again: a failure costs
about one batch, which is little beside them."""
_GB = 1e9
_VAE_BYTES = 3 * _GB
"""Memory that no batch size changes, in half precision: the VAE's, which takes one image of 512 x 512 at a time, and
what the allocator cannot use."""
_PAIR_BYTES = 1.2 * _GB
"""Memory of a pair of 512 x 512 in half precision: the U-Net's activations with guidance, and the depth estimator's."""
_KEPT_BYTES = 0.046 * _GB
"""What is kept of its left view in one step, for both halves of guidance."""


def first_size(free_bytes: float, recipe: Recipe) -> int:
    """Choose a power of two that is likely to fit: a guess for Stable Diffusion 1.5, which running out corrects.

    It depends on the recipe and on the memory alone, so that all GPUs of one size compute in batches of one shape.

    Args:
        free_bytes: memory of the GPU beside the loaded models.
        recipe: resolved.
    """
    method, sd, size = recipe.method, recipe.models.stable_diffusion, recipe.size
    kept_steps = method.steps - method.attention_start if method.keeps_left else 0
    area = 1.0 if size is None else size.width * size.height / 512**2
    precision = 2 if sd.dtype == "float32" else 1
    pair = (_PAIR_BYTES + kept_steps * _KEPT_BYTES) * area * precision
    fitting = (0.9 * free_bytes - _VAE_BYTES * precision) / pair
    return max(n for n in (1, 2, 4, 8, LARGEST_AUTO_BATCH) if n <= max(1.0, fitting))


class BatchSize:
    """The batch size of one worker. GPU memory may run out because of one large photo, or of another process.

    A size that failed is tried again after `FIRST_WAIT` batches at half of it, and after twice as many each time that
    it fails again: a GPU that can never hold it fails about as often as the number of batches has binary digits.

    Args:
        largest: the size that the spec asks for.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.now = largest
        self._failures: Counter[int] = Counter()
        self._successes = 0

    def ran_out_of_memory(self) -> None:
        """Halve the size."""
        self._failures[self.now] += 1
        self._successes = 0
        self.now = max(1, self.now // 2)

    def succeeded(self) -> None:
        """Count a batch, and double the size when the larger one has waited for long enough."""
        self._successes += 1
        larger = min(2 * self.now, self.largest)
        # A size that never failed has not been tried: 3 is halved to 1, and 2 comes before 3.
        wait = FIRST_WAIT * 2 ** max(0, self._failures[larger] - 1)
        if larger > self.now and self._successes >= wait:
            self.now, self._successes = larger, 0
