"""128-bit hashes of ids. Planning and verification compare these: 16 bytes an id, however long it is."""

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def hash_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """Hash each id with BLAKE2b to 128 bits: N,2 uint64, in the order of `ids`."""
    blake2b = hashlib.blake2b
    joined = b"".join(blake2b(value.encode(), digest_size=16).digest() for value in ids.to_pylist())
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def find_duplicate(hashes: NDArray[np.uint64]) -> tuple[int, int] | None:
    """Find two equal hashes among N,2 uint64; returns their positions, the earlier first, or None.

    If there are several such pairs, it is the one whose second position is lowest.
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal hashes stay in position order
    high = hashes[order, 0]
    equal = np.flatnonzero(high[1:] == high[:-1])  # usually none: the lower halves are compared only for these
    equal = equal[hashes[order[equal], 1] == hashes[order[equal + 1], 1]]
    if not len(equal):
        return None
    best = equal[np.argmin(order[equal + 1])]
    return int(order[best]), int(order[best + 1])
