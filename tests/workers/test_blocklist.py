"""When a place is excluded, and when not."""

from stereo_jobs.workers.ray.blocklist import EXCLUDED_AFTER, Blocklist

KEYS = [(0, shard) for shard in range(EXCLUDED_AFTER)]


def test_a_place_is_excluded_after_several_shards():
    blocklist = Blocklist()
    for key in KEYS:
        assert "bad" not in blocklist
        blocklist.failed("bad", key, ["bad", "good"])
    assert "bad" in blocklist
    assert "good" not in blocklist


def test_a_success_between_them_begins_anew():
    blocklist = Blocklist()
    for key in KEYS:
        blocklist.failed("place", key, ["place", "good"])
        blocklist.succeeded("place")
    assert "place" not in blocklist


def test_one_shard_that_fails_again_and_again_excludes_no_place():
    blocklist = Blocklist()
    for _ in range(2 * EXCLUDED_AFTER):
        blocklist.failed("place", KEYS[0], ["place", "good"])
    assert "place" not in blocklist


def test_no_place_is_excluded_while_all_fail():
    blocklist = Blocklist()
    for key in KEYS:
        for place in ("one", "other"):
            blocklist.failed(place, key, ["one", "other"])
    assert "one" not in blocklist
    assert "other" not in blocklist


def test_the_only_place_is_never_excluded():
    blocklist = Blocklist()
    for key in KEYS:
        blocklist.failed("only", key, ["only"])
    assert "only" not in blocklist
