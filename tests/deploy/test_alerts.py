"""Each alert fires when it must and is silent when it mustn't: by Prometheus's own tool where it is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.http.serving_metrics import ServingMetrics
from tests.support.observability.prometheus_checks import (
    DEPLOY,
    complaints,
    prometheus_is_there,
    promtool,
    queries,
)
from tests.support.serving.service_harness import World

with_promtool = pytest.mark.skipif(
    not prometheus_is_there(), reason="prometheus and promtool aren't installed"
)
NAME = re.compile(r"\b(?:recsys_\w+|up\b)")


def rules() -> list[dict[str, Any]]:
    its = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())
    return [rule for group in its["groups"] for rule in group["rules"]]


def scenarios() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "alerts_test.yaml").read_text())["tests"]
    return found


def fired(scenario: dict[str, Any]) -> list[list[str]]:
    """The alerts that a scenario expects at each time that it asks for."""
    asked = scenario["promql_expr_test"]
    assert {one["expr"] for one in asked} == {'ALERTS{alertstate="firing"}'}, "all that fire are asked for"
    return [re.findall(r'alertname="(\w+)"', str(one["exp_samples"])) for one in asked]


def test_every_alert_has_a_scenario_where_it_fires_and_was_silent_before() -> None:
    told = [fired(scenario) for scenario in scenarios()]
    assert all(one[0] == [] for one in told), "each begins in peace"
    assert {name for one in told for at in one for name in at} == {rule["alert"] for rule in rules()}


def test_the_system_that_is_well_has_what_every_alert_asks_for() -> None:
    """Else they would be silent there for want of series."""
    well, *_ = scenarios()
    assert fired(well) == [[]] * len(fired(well)) and len(fired(well)) > 3
    given = {NAME.findall(one["series"])[0] for one in well["input_series"]}
    asked = {name for rule in rules() for name in NAME.findall(re.sub(r'"[^"]*"', "", rule["expr"]))}
    assert asked - given == set()


@with_promtool
def test_promtool_takes_the_files_and_each_scenario_goes_as_it_says() -> None:
    for words in (
        ("check", "config", DEPLOY / "prometheus.yaml"),
        ("check", "rules", "--lint=all", "--lint-fatal", DEPLOY / "alerts.yaml"),
        ("test", "rules", DEPLOY / "alerts_test.yaml"),
    ):
        status, said = promtool(*words)
        assert status == 0, said


@pytest.mark.slow
@with_promtool
def test_a_threshold_that_moves_is_found(tmp_path: Path) -> None:
    (tmp_path / "alerts_test.yaml").write_text((DEPLOY / "alerts_test.yaml").read_text())
    text = (DEPLOY / "alerts.yaml").read_text()
    (tmp_path / "alerts.yaml").write_text(text.replace("> 0.01 *", "> 0.05 *"))
    status, said = promtool("test", "rules", tmp_path / "alerts_test.yaml")
    assert status != 0 and "RecsysRequestsFail" in said


@with_promtool
def test_promtool_has_nothing_against_what_a_replica_tells(tmp_path: Path) -> None:
    assert complaints(ServingMetrics(World(tmp_path, items=1).service).text()) == []
    bad = b"# HELP recsys_lists Lists\n# TYPE recsys_lists counter\nrecsys_lists 1\n"
    assert len(complaints(bad)) == 1, "a counter that doesn't end in _total"


@with_promtool
def test_every_query_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    records = [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(queries())]
    groups = [{"name": "panels", "rules": records}]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": groups}))
    status, said = promtool("check", "rules", tmp_path / "panels.yaml")
    assert status == 0 and f"{len(records)} rules found" in said, said
