"""docs/grafana.json asks for every metric that a server exports, and for nothing else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from nemo_trt.serve import ServeOptions, create_app
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.model

FILE = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
PROMETHEUS_OWN = {"job", "instance"}  # labels that scraping adds


@pytest.fixture(scope="module")
def families(tekken_bundle: Path, served: Any) -> Iterator[list[Metric]]:
    """What a server exports after an answer and an error."""
    options = ServeOptions(allow_unvalidated=True)
    app = create_app(tekken_bundle, options=options, max_batch=1, max_seq_len=64)
    with served(app) as url, httpx.Client(base_url=url, timeout=LIMIT_S) as client:
        app.state.service.wait()
        good = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
        assert good.status_code == 200
        assert client.post("/v1/completions", json={"prompt": 3.5}).status_code == 400
        text = client.get("/metrics").text
    found = list(text_string_to_metric_families(text))
    yield [family for family in found if not family.name.endswith("_created")]


def names(family: Metric) -> set[str]:
    """Names that queries may use of a family."""
    match family.type:
        case "counter":
            return {f"{family.name}_total"}
        case "histogram":
            return {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        case _:
            return {family.name}


def asked() -> set[str]:
    return {name for query in QUERIES for name in re.findall(r"nemo_trt_\w+", query)}


def test_every_metric_that_is_asked_for_is_exported(families: list[Metric]) -> None:
    exported = set().union(*(names(family) for family in families))
    assert asked() - exported == set()


def test_every_metric_that_is_exported_is_on_the_dashboard(families: list[Metric]) -> None:
    missing = [family.name for family in families if not names(family) & asked()]
    assert len(families) > 10 and missing == []


def test_labels_are_those_that_the_metrics_have(families: list[Metric]) -> None:
    labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    for query in QUERIES:
        for by, metric in re.findall(r"by \((\w+)\) \(rate\((\w+)", query):
            assert by in labels[metric], query
        for selector in re.findall(r"\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=", selector)) == PROMETHEUS_OWN, query


def test_counters_are_asked_for_as_rates_and_gauges_as_they_are(families: list[Metric]) -> None:
    for family in families:
        for name in names(family) & asked():
            for query in QUERIES:
                for before in re.findall(rf"(\w*\(?){name}\b", query):
                    assert (before == "rate(") == (family.type != "gauge"), query


def test_percentiles_are_taken_of_each_histogram(families: list[Metric]) -> None:
    histograms = [family.name for family in families if family.type == "histogram"]
    assert len(histograms) == 4
    for name in histograms:
        for share in ("0.5", "0.95", "0.99"):
            wanted = f"histogram_quantile({share}, sum by (le) (rate({name}_bucket"
            assert any(query.startswith(wanted) for query in QUERIES)


def test_it_is_a_dashboard_that_grafana_takes() -> None:
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["uid"] and DASHBOARD["title"]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used <= set(variables) | {"__rate_interval", "__all"}
    for panel in PANELS:
        assert panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_lie_side_by_side_within_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
