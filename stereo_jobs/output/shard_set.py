"""Sets of shards as bitmaps: a million shards take 125 kB in memory."""

import base64
import zlib
from collections.abc import Iterable, Iterator

from stereo_jobs.output.layout import ShardKey


class ShardSet:
    """A set of shard keys (generation, shard), iterated in ascending order."""

    def __init__(self, keys: Iterable[ShardKey] = ()) -> None:
        self._bitmaps: dict[int, bytearray] = {}
        self._count = 0
        for key in keys:
            self.add(key)

    def add(self, key: ShardKey) -> None:
        """Add a key; adding it twice changes nothing."""
        generation, shard = key
        bitmap = self._bitmaps.setdefault(generation, bytearray())
        byte, bit = shard >> 3, 1 << (shard & 7)
        if byte >= len(bitmap):
            bitmap.extend(bytes(max(byte + 1 - len(bitmap), len(bitmap))))  # at least doubled, to keep growing cheap
        if not bitmap[byte] & bit:
            bitmap[byte] |= bit
            self._count += 1

    def __contains__(self, key: ShardKey) -> bool:
        generation, shard = key
        bitmap = self._bitmaps.get(generation, b"")
        return shard >> 3 < len(bitmap) and bool(bitmap[shard >> 3] & 1 << (shard & 7))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ShardKey]:
        for generation in sorted(self._bitmaps):
            for byte, bits in enumerate(self._bitmaps[generation]):
                for bit in range(8):
                    if bits >> bit & 1:
                        yield generation, 8 * byte + bit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardSet) and len(self) == len(other) and all(key in other for key in self)

    __hash__ = None  # type: ignore[assignment]

    def without(self, other: "ShardSet") -> Iterator[ShardKey]:
        """Iterate over the keys that are not in the other set, in ascending order."""
        return (key for key in self if key not in other)

    def pack(self) -> dict[str, str]:
        """Compress to JSON values, one per generation; a few kilobytes for a million consecutive shards."""
        return {
            str(generation): base64.b64encode(zlib.compress(bytes(bitmap).rstrip(b"\0"))).decode()
            for generation, bitmap in self._bitmaps.items()
        }

    @classmethod
    def unpack(cls, packed: dict[str, str]) -> "ShardSet":
        """Restore a set from the result of `pack`. Raises ValueError if that is damaged."""
        result = cls()
        for generation, text in packed.items():
            try:
                bitmap = bytearray(zlib.decompress(base64.b64decode(text)))
            except zlib.error as error:
                raise ValueError(f"shards of generation {generation}: {error}") from None
            result._bitmaps[int(generation)] = bitmap
            result._count += sum(byte.bit_count() for byte in bitmap)
        return result
