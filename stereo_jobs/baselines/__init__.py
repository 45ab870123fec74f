"""Right views without diffusion, all behind one signature: the pixel baselines of Table 1."""

from stereo_jobs.baselines.fills import Fill, columns_of, identity, leave_blank, stretch, warp_of
from stereo_jobs.baselines.layered import layered

FILLS: dict[str, Fill] = {"identity": identity, "leave_blank": leave_blank, "stretch": stretch, "layered": layered}
"""By the name that tables and specs use."""

__all__ = ["FILLS", "Fill", "columns_of", "identity", "layered", "leave_blank", "stretch", "warp_of"]
