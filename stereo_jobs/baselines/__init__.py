"""Right views without diffusion, all behind one signature: the pixel baselines of Table 1."""

from stereo_jobs.baselines.fills import FILLS, Fill, identity, leave_blank, stretch

__all__ = ["FILLS", "Fill", "identity", "leave_blank", "stretch"]
