"""Places where shard after shard fails while other places succeed, as on a faulty GPU. They are excluded."""

import logging
from collections.abc import Iterable

from stereo_jobs.output.layout import ShardKey

log = logging.getLogger(__name__)

EXCLUDED_AFTER = 3
"""Different shards that fail at a place, with none that succeeds between them, before the place is excluded."""


class Blocklist:
    """Counts, for each place (node and GPU), the shards that failed there since the last one that succeeded."""

    def __init__(self) -> None:
        self._failed: dict[str, set[ShardKey]] = {}
        self._excluded: set[str] = set()

    def __contains__(self, place: str) -> bool:
        return place in self._excluded

    def succeeded(self, place: str) -> None:
        """Record that a shard was made at a place."""
        self._failed.pop(place, None)

    def failed(self, place: str, key: ShardKey, serving: Iterable[str]) -> None:
        """Record that a shard failed at a place, and exclude the place after `EXCLUDED_AFTER` of them.

        Nothing is excluded while shards fail at every place: then the places are not the cause.

        Args:
            place: where the shard failed.
            key: the shard.
            serving: the places of all actors that take shards.
        """
        self._failed.setdefault(place, set()).add(key)
        others_succeed = any(other not in self._failed for other in serving)
        count = len(self._failed[place])
        if count >= EXCLUDED_AFTER and others_succeed and place not in self._excluded:
            log.error("%s: %d shards in a row failed there; going on without it", place, count)
            self._excluded.add(place)
