"""Unknown arguments are answered with the right name, also those that other libraries of diffusion models take."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from stereo_jobs.errors import StereoJobsError
from stereo_jobs.stereo.config import MethodConfig

P = ParamSpec("P")
T = TypeVar("T")

_AT_LOADING = {
    **{name: f'method={{"{name}": ...}}' for name in MethodConfig.model_fields},
    "num_inference_steps": 'method={"steps": ...}',
    "num_steps": 'method={"steps": ...}',
    "cfg_scale": 'method={"guidance_scale": ...}',
    "torch_dtype": 'dtype="float16"',
    "precision": 'dtype="float16"',
    "device_map": 'device="cuda"',
    "num_threads": "threads=1",
    "width": 'size={"width": 512, "height": 512}',
    "height": 'size={"width": 512, "height": 512}',
    "revision": 'models={"stable_diffusion": {"path": ..., "revision": ...}}',
    "variant": 'models={"stable_diffusion": {"path": ..., "variant": ...}}',
    "safety_checker": 'models={"safety_checker": True}',
    "model": 'the first argument: from_pretrained("owner/name", depth=...)',
    "model_id": 'the first argument: from_pretrained("owner/name", depth=...)',
    "pretrained_model_name_or_path": 'the first argument: from_pretrained("owner/name", depth=...)',
    "depth_model": "depth=...",
    "depth_estimator": "depth=...",
    "progress_bar": "progress=False",
    "scale": "scale_percent=8",
}
"""What to write in `from_pretrained` instead of an argument that it does not take."""
_IN_CALLS = {
    "scale": "scale_percent=8",
    "generator": "seed=0",
    "photo": "image=...",
    "depth_map": "depth=...",
    "mask_image": "mask=...",
    "text": "prompt=...",
}
"""What to write in a call that makes a pair."""
_NOT_HERE = {
    "strength": "there is none: a photo becomes the left view as it is, and diffusion fills holes of the right one",
    "variants": "call the pipeline once for each seed or scale instead",
    "num_images_per_prompt": "call the pipeline once for each seed instead",
    "batch_size": "pairs are made one at a time here; a job has runtime.batch_size",
    "format": "belongs to a job; here a pair is saved by its method save",
}
_LOADING = "from_pretrained"


def explained(error: type[StereoJobsError]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that an argument that it does not take raises `error`, with the right name in it."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        taken = [name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds][1:]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name not in taken:
                    raise error(f"{name}: {_answer(function.__name__, name, taken)}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _answer(function: str, name: str, taken: Collection[str]) -> str:
    """What to write instead of an unknown argument of a function."""
    if name in _NOT_HERE:
        return _NOT_HERE[name]
    if function == _LOADING:
        if name in ("seed", "generator"):
            return "belongs to each call: pipeline(prompt, seed=1)"
        known = _AT_LOADING
    elif name in _IN_CALLS:
        known = _IN_CALLS
    elif name in _AT_LOADING or name in ("method", "dtype", "device", "size", "quality", "models", "mode", "threads"):
        return f"is fixed when the pipeline is made: from_pretrained({_AT_LOADING.get(name, f'{name}=...')})"
    else:
        known = _IN_CALLS
    if name in known:
        return f"no such argument; write {known[name]}"
    close = difflib.get_close_matches(name, [*taken, *known], n=1)
    if close:
        return f"no such argument; did you mean {known.get(close[0], close[0])}?"
    return f"no such argument; there are: {', '.join(taken)}"
