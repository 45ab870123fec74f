"""StereoDiffusion as a distributed batch job: stereo image pairs by the million, each made exactly once."""

__version__ = "0.1.0"
