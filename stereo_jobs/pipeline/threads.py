"""How many threads of a CPU the models compute on. Float results depend on it, by about 1e-6."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stereo_jobs.pipeline.generator import PairGenerator

_SMALL = 50_000_000
"""Number of parameters below which a U-Net is faster on one thread: the embedded models are, by far on a busy CPU."""


def sensible_threads(generator: PairGenerator) -> int:
    """Return one thread for small models, as in a job, and torch's own number for large ones."""
    parameters = sum(each.numel() for each in generator.sd.unet.parameters())
    return 1 if parameters < _SMALL else torch.get_num_threads()


@contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """Compute on some threads; what other code of the process has chosen is set again afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
