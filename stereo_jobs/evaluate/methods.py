"""The catalogue of compared methods: Tables 1 and 2 of the paper and single switches, by their names in tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from stereo_jobs import plain_data
from stereo_jobs.errors import SpecError
from stereo_jobs.stereo.config import MethodConfig


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: unique name.
        switches: fields of MethodConfig, except its geometry.
        disparity: whether it is given the true disparity or estimates its own.
        slow: whether a pair takes hundreds of U-Net evaluations or more; slow methods run on fewer scenes.
        folder: folder of another program's right views; None for our own methods.
        prompts: in the table of costs, whether photos come with their captions; else with empty prompts.
    """

    name: str
    switches: Mapping[str, Any] = field(default_factory=dict)
    disparity: Literal["true", "estimated"] = "true"
    slow: bool = False
    folder: str | None = None
    prompts: bool = True

    def variant(self, name: str, **switches: Any) -> "Method":
        """This method with other switches, named `<this name>, <name>`."""
        slow = self.slow and switches.get("inversion", "null_text") == "null_text"
        return Method(f"{self.name}, {name}", {**self.switches, **switches}, self.disparity, slow)

    def estimated(self) -> "Method":
        """This method on estimated disparity ("pseudo" in the paper)."""
        return Method(f"{self.name}, estimated disparity", self.switches, "estimated", self.slow)


_WHOLE_PIXELS = {"refine_edges": False, "warp": "integer"}
_BASELINES = {
    name: Method(name, {**_WHOLE_PIXELS, "right_view": name})
    for name in ("identity", "leave_blank", "stretch", "layered")
}
_DDIM = {"scheduler": "ddim", "steps": 50}
REPAINT = Method("repaint", {**_WHOLE_PIXELS, **_DDIM, "right_view": "repaint", "composite": False}, slow=True)
PAPER = Method("stereodiffusion", {"preset": "official"}, slow=True)
PAPER_EMPTY = Method("stereodiffusion, empty prompt", {"preset": "official"}, slow=True, prompts=False)
BEST = Method("best")

METHODS = (*_BASELINES.values(), REPAINT, PAPER, PAPER.estimated(), BEST, BEST.estimated())
"""Table 1, and besides it `identity` for reference and our preset `best`."""

_PLAIN = PAPER.variant("no technique", attention="off", recopy_interval=0)
TECHNIQUES: dict[str, tuple[Method, tuple[bool, bool, bool]]] = {
    method.name: (method, techniques)
    for method, techniques in (
        (_PLAIN.estimated(), (False, False, False)),
        (PAPER.variant("SPSMD", attention="off").estimated(), (False, True, False)),
        (PAPER.variant("attention", recopy_interval=0).estimated(), (True, False, False)),
        (PAPER, (True, True, False)),
        (PAPER.variant("deblur", fill="noise"), (True, True, True)),
        (PAPER.variant("deblur", fill="noise").estimated(), (True, True, True)),
        (PAPER.estimated(), (True, True, False)),
    )
}
"""Table 2, in its order: each method, and whether it uses modified attention, SPSMD and deblur."""

_OFFICIAL = Method("official", {"preset": "official", "inversion": "direct"})
SWITCHES = (
    *_BASELINES.values(),
    *(method.variant("sub-pixel", warp="subpixel") for method in _BASELINES.values() if method.name != "identity"),
    # The published arithmetic, then each of our choices alone on top of it. All but the first use our inversion.
    PAPER,
    _OFFICIAL,
    _OFFICIAL.variant("ddim inversion", inversion="ddim"),
    _OFFICIAL.variant("guidance 1", photo_guidance_scale=1.0),
    _OFFICIAL.variant("attention off", attention="off"),
    _OFFICIAL.variant("attention bi", attention="bi"),
    _OFFICIAL.variant("no re-copy", recopy_interval=0),
    _OFFICIAL.variant("deblur", fill="noise"),
    _OFFICIAL.variant("sub-pixel", warp="subpixel"),
    _OFFICIAL.variant("pixel", warp="pixel"),
    _OFFICIAL.variant("background", fill="background"),
    _OFFICIAL.variant("composite", composite=True),
    _OFFICIAL.variant("dpm++ 20", scheduler="dpm++_karras", steps=20),
    # Our preset, then each of its choices alone undone.
    BEST,
    BEST.estimated(),
    BEST.variant("attention off", attention="off"),
    BEST.variant("attention bi", attention="bi"),
    BEST.variant("no re-copy", recopy_interval=0),
    BEST.variant("sub-pixel", warp="subpixel"),
    BEST.variant("integer", warp="integer"),
    BEST.variant("background", fill="background"),
    BEST.variant("noise", fill="noise"),
    BEST.variant("no composite", composite=False),
    BEST.variant("shift at 0.2", shift_step=0.2),
    BEST.variant("shift at 0.6", shift_step=0.6),
    BEST.variant("shift at 0.8", shift_step=0.8),
    BEST.variant("strength 0", shift_step=0.9),  # a single denoising step: shows what the start contributes
    BEST.estimated().variant("edges as estimated", refine_edges=False),
    BEST.variant("ddim 50", **_DDIM),
    BEST.variant("renoise", inversion="renoise"),
    BEST.variant("both views", keep_left=False),
)
"""Ablations: our switches, one at a time."""

_TWO_PASS = BEST.variant("two pass", two_pass=True)
DEPTH = (
    BEST,
    BEST.variant("one condition", warp_condition=False),
    _TWO_PASS,
    _TWO_PASS.variant("one condition", warp_condition=False),
    BEST.variant("attention off", attention="off"),
    BEST.variant("guided pair", pair_guidance_scale=None),
    BEST.variant("ddim 50", **_DDIM),
    _OFFICIAL,
    _OFFICIAL.variant("warped condition", warp_condition=True),
    _OFFICIAL.variant("two pass", two_pass=True),
)
"""Switches that only depth mode has (the paper's Fig. 7), and attention."""

COST = (_BASELINES["leave_blank"], _BASELINES["stretch"], _BASELINES["layered"], REPAINT, PAPER, PAPER_EMPTY, BEST)
"""Table 3."""

INPAINT = (BEST, _OFFICIAL)
"""Inpainting over masked shares (the paper's Fig. 8)."""

TABLES: dict[str, tuple[Method, ...]] = {
    "methods": METHODS,
    "techniques": tuple(method for method, _ in TECHNIQUES.values()),
    "switches": SWITCHES,
    "depth": DEPTH,
    "inpaint": INPAINT,
    "cost": COST,
}


def folders(texts: Sequence[str]) -> list[Method]:
    """Methods whose right views another program made, from `NAME=DIR`; files are named by row id. Raises SpecError."""
    found = []
    for text in texts:
        name, separator, folder = text.partition("=")
        if not separator or not name.strip() or not folder:
            raise SpecError(f"--folder {text!r}: write it as NAME=DIR")
        found.append(Method(name.strip(), {**_WHOLE_PIXELS, "right_view": "given"}, folder=folder))
    return found


def sweep(text: str, base: Method) -> list[Method]:
    """Variants of a method, one for each value of a switch, from `FIELD=VALUE,VALUE,...` (Fig. 3). Raises SpecError."""
    name, separator, values = text.partition("=")
    name = name.strip()
    if not separator or name not in MethodConfig.model_fields or name in ("preset", "geometry"):
        raise SpecError(f"--sweep {text!r}: write it as FIELD=VALUE,VALUE with a field of recipe.method (docs/spec.md)")
    methods = []
    for value in values.split(","):
        try:
            switches = {**base.switches, name: plain_data.parse(value)}
            MethodConfig(**switches)
        except SpecError as error:
            raise SpecError(f"--sweep {name}: a value is {error}") from None
        except ValidationError as error:
            raise SpecError(f"--sweep {name}={value}: {error.errors()[0]['msg']}") from None
        methods.append(Method(f"{base.name}, {name} {value.strip()}", switches, base.disparity, base.slow))
    return methods


def chosen(table: str, names: Sequence[str]) -> list[Method]:
    """The methods of a table; with `names`, only those."""
    return [method for method in TABLES[table] if not names or method.name in names]


def by_name(name: str) -> Method:
    """The method of this name in any table. Raises SpecError."""
    known = {method.name: method for methods in TABLES.values() for method in methods}
    if name not in known:
        raise SpecError(f"method {name!r}: not known; there are: {'; '.join(known)}")
    return known[name]
