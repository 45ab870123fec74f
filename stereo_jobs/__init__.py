"""StereoDiffusion as a distributed batch job: stereo image pairs by the million, each made exactly once."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`stereo_jobs.StereoPipeline`, imported when it is asked for: it needs torch, which most verbs do without."""
    if name == "StereoPipeline":
        from stereo_jobs.generate import StereoPipeline

        return StereoPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
