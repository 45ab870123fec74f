"""Sets of shards as bitmaps: a million shards take 125 kB, whatever is in them."""

import base64
import zlib
from collections.abc import Iterable, Iterator

from stereo_jobs.output.layout import ShardKey


class ShardSet:
    """A set of shard keys (generation, shard), iterated in order."""

    def __init__(self, keys: Iterable[ShardKey] = ()) -> None:
        self._bitmaps: dict[int, bytearray] = {}
        self._count = 0
        for key in keys:
            self.add(key)

    def add(self, key: ShardKey) -> None:
        """Add one; a second time changes nothing."""
        generation, shard = key
        bitmap = self._bitmaps.setdefault(generation, bytearray())
        byte, bit = shard >> 3, 1 << (shard & 7)
        if byte >= len(bitmap):
            bitmap.extend(bytes(max(byte + 1 - len(bitmap), len(bitmap))))  # doubled, so that growing is cheap
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
        """Those that are not in the other set, in order."""
        return (key for key in self if key not in other)

    def pack(self) -> dict[str, str]:
        """As JSON values, by generation: compressed, a few kilobytes for a million shards."""
        return {
            str(generation): base64.b64encode(zlib.compress(bytes(bitmap).rstrip(b"\0"))).decode()
            for generation, bitmap in self._bitmaps.items()
        }

    @classmethod
    def unpack(cls, packed: dict[str, str]) -> "ShardSet":
        """From what `pack` made. Raises ValueError where it is broken."""
        result = cls()
        for generation, text in packed.items():
            try:
                bitmap = bytearray(zlib.decompress(base64.b64decode(text)))
            except zlib.error as error:
                raise ValueError(f"shards of generation {generation}: {error}") from None
            result._bitmaps[int(generation)] = bitmap
            result._count += sum(byte.bit_count() for byte in bitmap)
        return result
