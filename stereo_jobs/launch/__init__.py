"""Launch files: a job spec and a few options become what a cluster scheduler takes. Text only, nothing is started."""

from stereo_jobs.launch.options import KINDS, Kind, LaunchOptions, make_options
from stereo_jobs.launch.render import render

__all__ = ["KINDS", "Kind", "LaunchOptions", "make_options", "render"]
