"""Names of all objects below an output. Nothing else builds such a name."""

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

MOST_SHARDS = 10**9
"""Shards that one generation may have; numbers beyond are no names."""

ShardKey = tuple[int, int]
"""Generation and shard number, both from 0."""

# Numbers are padded to four and seven digits and may be longer; of other spellings of a number only one is a name.
_GENERATION, _NUMBER = r"([0-9]{4}|[1-9][0-9]{4,5})", r"([0-9]{7}|[1-9][0-9]{7,8})"
_SHARD = re.compile(rf"(?:data/train-|_job/commits/|_job/errors/){_GENERATION}-{_NUMBER}\.(?:parquet|json)")
_PLAN = re.compile(rf"{PLANS_PREFIX}{_GENERATION}\.json")


def plan(generation: int) -> str:
    """Name of the plan of one generation."""
    return f"{PLANS_PREFIX}{generation:04d}.json"


def plan_generation(name: str) -> int | None:
    """Return the generation that a plan of this name has; None for any other name."""
    match = _PLAN.fullmatch(name)
    return int(match[1]) if match else None


def ids(generation: int) -> str:
    """Name of the file with the sorted hashes of the ids of one generation."""
    return f"_job/ids-{generation:04d}.parquet"


def shard_name(key: ShardKey) -> str:
    """Return the part that names a shard in its object names and in logs, for example `0000-0000012`."""
    return f"{key[0]:04d}-{key[1]:07d}"


def data(key: ShardKey) -> str:
    """Name of a shard object. Its existence is the commit of the shard."""
    return f"{DATA_PREFIX}train-{shard_name(key)}.parquet"


def record(key: ShardKey) -> str:
    """Name of a committed shard's record: a copy of the record in its footer."""
    return f"{before_record(key)}.json"


def before_record(key: ShardKey) -> str:
    """Name that sorts before the record of a shard, and after that of the shard before it."""
    return RECORDS_PREFIX + shard_name(key)


def errors(key: ShardKey) -> str:
    """Name of the file of a shard's failed rows: a copy of those in its footer."""
    return f"{ERRORS_PREFIX}{shard_name(key)}.parquet"


def success(generation: int) -> str:
    """Name of the object that marks a generation as finished."""
    return f"_job/SUCCESS-{generation:04d}"


def shard_key(name: str) -> ShardKey | None:
    """Return the shard that a data object, record or errors file belongs to; None for any other name."""
    match = _SHARD.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None
