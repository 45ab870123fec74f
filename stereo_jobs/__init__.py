"""StereoDiffusion as a distributed batch job: stereo image pairs by the million, each made exactly once."""

from typing import Any

from stereo_jobs.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    """Import `StereoPipeline` when it is first used: it needs torch, which most commands do without."""
    if name == "StereoPipeline":
        from stereo_jobs.notebook import StereoPipeline

        return StereoPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what the package offers, for tab completion."""
    return ["StereoPipeline", "__version__"]
