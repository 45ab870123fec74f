"""The bar of a call: one step for each time that the U-Net is called."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from stereo_jobs.pipeline.generator import PairGenerator


@contextmanager
def bar_of_steps(generator: PairGenerator, pairs: int, shown: bool | None) -> Iterator[None]:
    """Show a bar while the generator makes pairs one after the other.

    Args:
        generator: its U-Net is counted.
        pairs: number of pairs to make.
        shown: whether to show it; None: in notebooks and terminals, and not in scripts whose output goes to a file.
    """
    if shown is None:
        shown = "ipykernel" in sys.modules or sys.stderr.isatty()
    with tqdm(total=pairs * _calls(generator), desc="denoising", unit="step", leave=False, disable=not shown) as bar:
        hook = generator.sd.unet.register_forward_hook(lambda *call: bar.update() and None)
        try:
            yield
        finally:
            hook.remove()


def _calls(generator: PairGenerator) -> int:
    """How often the U-Net is called for a pair; less where photos need an inversion by optimisation."""
    method, photo = generator.method, generator.recipe.mode in ("image", "inpaint")
    inverted = 0 if method.inversion == "renoise" else method.steps
    left = method.steps if not photo else inverted if method.diffuses_pair else 0
    filled = inverted + method.steps if generator.recipe.mode == "inpaint" else 0
    return left + filled + (method.steps - 1 - int(method.shift_step) if method.diffuses_pair else 0)
