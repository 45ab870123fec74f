"""Starting jobs on clusters: launch files for schedulers, and submission to a running Ray cluster.

| module | what it does |
|---|---|
| `options` | the options of a launch file, validated |
| `portable` | a job spec that can be sent to another machine, checked for secrets and local paths |
| `render` | spec and options in, text of a launch file out |
| `kubernetes` | the Kubernetes resources of a launch file, as dictionaries |
| `submit` | submit a job to a running Ray cluster, follow it, stop it |

A launch file is text only; writing one starts nothing. Only `submit` imports Ray, and only to use its Jobs API.
"""

from stereo_jobs.launch.options import KINDS, Kind, LaunchOptions, make_options
from stereo_jobs.launch.render import render

__all__ = ["KINDS", "Kind", "LaunchOptions", "make_options", "render"]
