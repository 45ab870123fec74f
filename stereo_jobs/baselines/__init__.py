"""Right views without diffusion: the pixel baselines of StereoDiffusion's Table 1, all with the signature of `Fill`.

| module | what it holds |
|---|---|
| `fills` | the signature, and the baselines `identity`, `leave_blank` and `stretch` |
| `layered` | the baseline `layered`: 3D photography without a network |
"""

from stereo_jobs.baselines.fills import Fill, columns_of, identity, image_warp, leave_blank, stretch, warp_of
from stereo_jobs.baselines.layered import layered

FILLS: dict[str, Fill] = {"identity": identity, "leave_blank": leave_blank, "stretch": stretch, "layered": layered}
"""The baselines, under the names that tables and specs use."""

__all__ = ["FILLS", "Fill", "columns_of", "identity", "image_warp", "layered", "leave_blank", "stretch", "warp_of"]
