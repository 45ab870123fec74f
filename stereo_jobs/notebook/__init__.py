"""The method for a notebook: one call, one result that shows itself. A job calls the same `PairGenerator`.

| module | what it does |
|---|---|
| `pipeline` | `StereoPipeline`: loads models, makes pairs from prompts, photos and depth maps |
| `result` | `StereoImage`: a pair that shows and saves itself |
| `inputs` | photos and maps as people have them: paths, PIL images, arrays |
| `arguments` | unknown arguments answered with the right name |
| `progress` | the bar of a call |
"""

from stereo_jobs.notebook.inputs import InputRefusedError
from stereo_jobs.notebook.pipeline import StereoPipeline
from stereo_jobs.notebook.result import StereoImage, StereoImages

__all__ = ["InputRefusedError", "StereoImage", "StereoImages", "StereoPipeline"]
