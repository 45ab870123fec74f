"""The Grafana dashboard asks only for what a run exports, and for all of it."""

import json
import re
from itertools import combinations

import pytest

from stereo_jobs.workers.prometheus import METRICS, exported
from tests.launch.examples import CLUSTER

BY_RAY = {"NodeAddress", "WorkerId"}
"""Labels that Ray adds; test_private_ray.py sees them at the endpoint."""
DASHBOARD = json.loads((CLUSTER / "grafana/dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPORTED = {exported(name): metric for name, metric in METRICS.items()}


def test_it_asks_for_all_metrics_and_for_no_others():
    asked = {name for query in QUERIES for name in re.findall(r"\bray_\w+", query)}
    assert asked == EXPORTED.keys()


@pytest.mark.parametrize("query", QUERIES)
def test_labels_are_those_of_the_metric(query):
    known = set()
    for name, selector in re.findall(r"(ray_\w+)\{([^}]*)\}", query):
        labels = {"output", *EXPORTED[name].labels, *BY_RAY}
        assert set(re.findall(r"(\w+)=", selector)) <= labels
        known |= labels
    assert {label for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(", ")} <= known


@pytest.mark.parametrize("query", QUERIES)
def test_every_selector_is_of_the_chosen_outputs(query):
    selectors = re.findall(r"ray_\w+(\{[^}]*\})?", query)
    assert selectors
    assert all('output=~"$output"' in selector for selector in selectors)


def test_panels_can_be_told_apart_and_do_not_overlap():
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        assert any(
            first[axis] + first[size] <= second[axis]
            for first, second in ((one, other), (other, one))
            for axis, size in (("x", "w"), ("y", "h"))
        ), (one, other)


def test_the_data_source_is_chosen_on_import():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for part in [*PANELS, variables["output"]]:
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert "id" not in DASHBOARD  # Grafana gives its own
    used = {name for query in QUERIES for name in re.findall(r"\$(\w+)", query)}
    assert used - {"__range"} <= variables.keys()
    assert re.search(r"ray_\w+", variables["output"]["query"]["query"]).group() in EXPORTED
