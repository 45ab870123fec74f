"""StereoDiffusion as a distributed batch job: stereo image pairs by the million, each made exactly once."""

import os
from typing import TYPE_CHECKING, Any

from stereo_jobs.version import __version__ as __version__

if os.name != "posix":
    raise ImportError(
        "stereo-jobs runs on Linux and macOS only: it needs the hard links, file locks and signals of POSIX; on "
        "Windows use WSL"
    )

if TYPE_CHECKING:
    from stereo_jobs.notebook import StereoPipeline as StereoPipeline
else:

    def __getattr__(name: str) -> Any:
        """Import `StereoPipeline` when it is first used: it needs torch, which most commands do without."""
        if name == "StereoPipeline":
            from stereo_jobs.notebook import StereoPipeline

            return StereoPipeline
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what the package offers, for tab completion."""
    return ["StereoPipeline", "__version__"]
