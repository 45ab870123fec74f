"""Names of all objects below an output, and nothing else."""

import re

CARD = "README.md"
LEASE = "_job/lease.json"
PROBE = "_job/probe"
PROGRESS = "_job/progress.json"
REPORT = "_job/report/index.html"
REPORT_DATA = "_job/report/report.json"

DATA_PREFIX = "data/"
RECORDS_PREFIX = "_job/commits/"
ERRORS_PREFIX = "_job/errors/"
PLANS_PREFIX = "_job/plan-"

ShardKey = tuple[int, int]
"""Generation and shard number."""

_SHARD = re.compile(r"(?:data/train-|_job/commits/|_job/errors/)(\d{4})-(\d{7})\.(?:parquet|json)")


def plan(generation: int) -> str:
    """The plan of one generation."""
    return f"{PLANS_PREFIX}{generation:04d}.json"


def ids(generation: int) -> str:
    """Sorted hashes of the ids of one generation."""
    return f"_job/ids-{generation:04d}.parquet"


def shard_name(key: ShardKey) -> str:
    """What a shard is called in the names of its objects, and in logs."""
    return f"{key[0]:04d}-{key[1]:07d}"


def data(key: ShardKey) -> str:
    """A shard: the object whose existence is the commit."""
    return f"{DATA_PREFIX}train-{shard_name(key)}.parquet"


def record(key: ShardKey) -> str:
    """What is known of a committed shard; a cache of its footer."""
    return f"{RECORDS_PREFIX}{shard_name(key)}.json"


def errors(key: ShardKey) -> str:
    """The failed rows of a shard; a cache of its footer."""
    return f"{ERRORS_PREFIX}{shard_name(key)}.parquet"


def success(generation: int) -> str:
    """Marks a finished generation."""
    return f"_job/SUCCESS-{generation:04d}"


def shard_key(name: str) -> ShardKey | None:
    """The shard that a data object, record or errors file belongs to, or None for a stranger."""
    match = _SHARD.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None
