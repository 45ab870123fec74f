"""What the pool knows of one actor: its state, its place and the tasks in flight on it.

An actor is WAITING until Ray gives it a process, then LOADING its models, then READY. It is DRAINING once nothing more
is to be dispatched to it, which may happen at any moment after it has a place.
"""

import logging
import time
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from stereo_jobs.workers.task import IN_FLIGHT, InFlight

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where an actor runs.

    Attributes:
        node: Ray's id of the node.
        gpus: the GPUs that the actor sees, to tell the actors of one node apart; empty without any.
    """

    node: str
    gpus: str

    @property
    def label(self) -> str:
        """Node and GPU, to compare places and to name them in logs."""
        return f"{self.node[:12]}/{self.gpus or 'cpu'}"


class ActorState(IntEnum):
    """The life of an actor, in this order. Actors that are lost have no state: the pool discards them."""

    WAITING = 0
    """Ray has no room for it yet."""
    LOADING = 1
    """It has a process and loads its models."""
    READY = 2
    """It takes tasks."""
    DRAINING = 3
    """It finishes its tasks and gets no more. Its process stays, so that no other actor is put onto its GPU."""


@dataclass(eq=False)
class Actor:
    """An actor as the pool sees it. Its state changes only in the methods of this class.

    Attributes:
        number: counts the actors of a run.
        handle: Ray's handle of the actor.
        placing: Ray's reference to the actor's place; None once it is known.
        loading: Ray's reference to the end of loading; None once the models are loaded.
        load_attempts: attempts to load the models, those of the actors that it replaces included.
        state: see `ActorState`.
        place: None while it is WAITING.
        placed_at: when it got its place, in monotonic seconds.
        in_flight: Ray's references to its tasks.
    """

    number: int
    handle: Any
    placing: Any | None
    loading: Any | None
    load_attempts: int = 1
    state: ActorState = ActorState.WAITING
    place: Place | None = None
    placed_at: float = 0.0
    in_flight: InFlight = field(default_factory=InFlight)

    @property
    def label(self) -> str:
        """Its place, or its number while it has none."""
        return self.place.label if self.place else f"number {self.number}"

    @property
    def room(self) -> int:
        """How many more tasks it may be given."""
        return IN_FLIGHT - len(self.in_flight.tasks)

    def placed(self, place: Place) -> None:
        """WAITING -> LOADING: Ray has given it a process."""
        self.placing, self.place, self.placed_at = None, place, time.monotonic()
        self.state = ActorState.LOADING

    def loaded(self) -> None:
        """LOADING -> READY: its models are loaded. An actor that is DRAINING stays so."""
        self.loading = None
        if self.state is ActorState.LOADING:
            self.state = ActorState.READY
            log.info("actor %s is ready", self.label)

    def drain(self, reason: str) -> None:
        """Any state with a place -> DRAINING.

        Args:
            reason: why, for the log.
        """
        if self.state in (ActorState.LOADING, ActorState.READY):
            self.state = ActorState.DRAINING
            log.warning("actor %s: %s; nothing more is dispatched to it", self.label, reason)

    def loads_for_longer_than(self, seconds: float) -> bool:
        """Whether it has a place and has not loaded its models within so many seconds."""
        return self.place is not None and self.loading is not None and time.monotonic() > self.placed_at + seconds
