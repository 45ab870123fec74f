"""Metrics of a job without Ray. For those with Ray see test_private_ray.py."""

from stereo_jobs.records import ShardRecord
from stereo_jobs.workers.prometheus import JobMetrics


def test_without_ray_metrics_cost_nothing_and_the_log_has_them(caplog):
    metrics = JobMetrics("out", on_ray=False)
    record = ShardRecord(
        generation=1, shard=2, fingerprint="f", planned=3, succeeded=2, failed=1, failures={"Boom": 1}, seconds=0.5
    )
    with caplog.at_level("INFO", logger="stereo_jobs"):
        metrics.shard(record)
        metrics.stage("read", 1.0)
        metrics.run(3, 0, 0, 0, 1)
    assert "_instruments" not in vars(metrics)
    [line] = caplog.records
    assert (line.shard, line.pairs, line.failed) == ("0001-0000002", 2, 1)
