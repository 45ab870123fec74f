"""Places where shard after shard fails while others do well: a GPU that has gone bad is left alone."""

import logging
from collections.abc import Iterable

from stereo_jobs.output.layout import ShardKey

log = logging.getLogger(__name__)

EXCLUDED_AFTER = 3
"""Shards in a row that fail at one place, while others do well, before nothing is dealt to it any more."""


class Blocklist:
    """Remembers by place (node and GPU) which shards failed there since the last that did not."""

    def __init__(self) -> None:
        self._failed: dict[str, set[ShardKey]] = {}
        self._excluded: set[str] = set()

    def __contains__(self, place: str) -> bool:
        return place in self._excluded

    def succeeded(self, place: str) -> None:
        """A shard was made there."""
        self._failed.pop(place, None)

    def failed(self, place: str, key: ShardKey, serving: Iterable[str]) -> None:
        """A shard failed there; `serving` are the places that have work now."""
        self._failed.setdefault(place, set()).add(key)
        others = any(other not in self._failed for other in serving)
        if len(self._failed[place]) >= EXCLUDED_AFTER and others and place not in self._excluded:
            log.error("%s: %d shards in a row failed there; going on without it", place, len(self._failed[place]))
            self._excluded.add(place)
