"""Protocols: how a scene is framed, and how its disparity is chosen, so that figures compare with published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from stereo_jobs.errors import SpecError
from stereo_jobs.evaluate.datasets import Dataset, Frame
from stereo_jobs.evaluate.methods import Method
from stereo_jobs.toyscapes.scenes import LEVELS, Level

Choice = TypeVar("Choice", bound=str)
ProtocolName = Literal["paper", "metric", "squash", "end_to_end", "cycle"]

SCALES = tuple(float(percent) for percent in range(2, 17, 2))
"""Scales in percent of the width from which `end_to_end` chooses, scene by scene."""
CYCLE_SCALE = 8.0
"""Shift of the nearest point in percent of the width by which `cycle` moves a photo to the left view and back."""


@dataclass(frozen=True)
class Protocol:
    """What an evaluation does with a scene before a method sees it.

    Attributes:
        name: its name in tables and folders.
        frame: which part of a scene is used, at which shape.
        geometry: what the recipe makes of disparity: min-max normalised, times the scale, or pixels as they are.
        given: whether methods are given the scene's disparity. Otherwise all of them estimate their own.
        scales: scales in percent of which the best one counts; empty for the scale of the recipe.
    """

    name: ProtocolName
    frame: Frame
    geometry: Literal["relative", "metric"]
    given: bool = True
    scales: tuple[float, ...] = ()

    def measurable(self, methods: Sequence[Method]) -> list[Method]:
        """Methods that it can measure. Only `paper` tells given disparity from estimated disparity.

        An estimator's disparity is not in true pixels, which `metric` geometry needs; under `end_to_end` every method
        estimates its own.
        """
        return [method for method in methods if self.name == "paper" or method.disparity == "true"]

    def gives_disparity(self, method: Method) -> bool:
        """Whether a method is given the scene's disparity."""
        return self.given and method.disparity == "true"

    def applies_to(self, dataset: Dataset) -> bool:
        """Whether a data set has what it needs: only `cycle` does without true right views."""
        return dataset.has_truth or self.frame == "cycle"


PROTOCOLS: dict[ProtocolName, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("paper", "crop", "relative"),
        Protocol("metric", "crop", "metric"),
        Protocol("squash", "squash", "metric"),
        Protocol("end_to_end", "crop", "relative", given=False, scales=SCALES),
        Protocol("cycle", "cycle", "metric"),
    )
}


def protocol_by_name(name: str) -> ProtocolName:
    """The name of a protocol, checked. Raises SpecError."""
    return _one_of("protocol", get_args(ProtocolName), name)


def level_by_name(name: str) -> Level:
    """The name of a level of ToyScapes, checked. Raises SpecError."""
    return _one_of("level", LEVELS, name)


def _one_of(kind: str, choices: tuple[Choice, ...], name: str) -> Choice:
    for choice in choices:
        if choice == name:
            return choice
    raise SpecError(f"{kind} {name!r}: not known; there are: {', '.join(choices)}")
