"""Sets of shards as bitmaps: a million shards take 125 kB in memory."""

import base64
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from stereo_jobs.output.layout import MOST_SHARDS, ShardKey

_MOST_BYTES = MOST_SHARDS // 8


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

    def count(self, generation: int) -> int:
        """Return how many shards of one generation are in the set."""
        return int.from_bytes(self._bitmaps.get(generation, b""), "little").bit_count()

    def __iter__(self) -> Iterator[ShardKey]:
        for generation in sorted(self._bitmaps):
            for byte, bits in enumerate(self._bitmaps[generation]):
                for bit in range(8):
                    if bits >> bit & 1:
                        yield generation, 8 * byte + bit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardSet) and self._stripped() == other._stripped()

    __hash__ = None  # type: ignore[assignment]

    def gaps(self, generation: int, shards: int) -> Iterator[range]:
        """Iterate over the runs of consecutive shards of a generation that are not in the set.

        Args:
            generation: the generation.
            shards: how many shards it has; those beyond are none of its gaps.
        """
        bitmap = np.frombuffer(bytes(self._bitmaps.get(generation, b"")) or b"\0", np.uint8)  # padded if it is short
        bits = np.unpackbits(bitmap, count=shards, bitorder="little")
        starts, stops = (np.flatnonzero(np.diff(bits, prepend=1, append=1).astype(np.int8) == step) for step in (-1, 1))
        return (range(start, stop) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True))

    def without(self, other: "ShardSet") -> Iterator[ShardKey]:
        """Iterate over the keys that are not in the other set, in ascending order."""
        return (key for key in self if key not in other)

    def _stripped(self) -> dict[int, bytes]:
        """Return the bitmaps without the room to grow that they have, and without those that are empty."""
        stripped = {generation: bytes(bitmap).rstrip(b"\0") for generation, bitmap in self._bitmaps.items()}
        return {generation: bitmap for generation, bitmap in stripped.items() if bitmap}

    def pack(self) -> dict[str, str]:
        """Compress to JSON values, one per generation; a few kilobytes for a million consecutive shards."""
        return {
            str(generation): base64.b64encode(zlib.compress(bitmap)).decode()
            for generation, bitmap in self._stripped().items()
        }

    @classmethod
    def unpack(cls, packed: dict[str, str], shards: Sequence[int] | None = None) -> "ShardSet":
        """Restore a set from the result of `pack`.

        Args:
            packed: what `pack` has returned.
            shards: shards that each generation can have; None: any number.

        Raises:
            ValueError: it is damaged, or has shards beyond `shards`.
        """
        result = cls()
        for generation, text in packed.items():
            number = int(generation)
            limit = _MOST_BYTES if shards is None else -(-(shards[number] if number < len(shards) else 0) // 8)
            try:
                bitmap = _inflate(base64.b64decode(text), limit)
            except zlib.error as error:
                raise ValueError(f"shards of generation {generation}: {error}") from None
            if shards is not None and bitmap and (len(bitmap) - 1) * 8 + bitmap[-1].bit_length() > shards[number]:
                raise ValueError(f"shards of generation {generation}: more than are planned")
            result._bitmaps[number] = bitmap
            result._count += sum(byte.bit_count() for byte in bitmap)
        return result


def _inflate(data: bytes, limit: int) -> bytearray:
    """Decompress at most `limit` bytes; a few damaged bytes may claim to be gigabytes. Raises ValueError."""
    inflater = zlib.decompressobj()
    bitmap = bytearray(inflater.decompress(data, limit + 1))
    if len(bitmap) > limit or not inflater.eof:
        raise ValueError(f"cut off, or more than {limit} bytes")
    return bitmap
