"""The names that Prometheus sees: those of the code, the page, the dashboard and the alerts are the same."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from recsys.process.disk_budget import Level, Space
from runtime.supervision.part_metrics import FACTS, PART_METRICS, STATES, UNLISTED, families, text_of
from runtime.supervision.part_table import NAMES
from runtime.supervision.system_status import PartStatus, Status, Version, with_workers
from serving.http.serving_metrics import STAGES, STATUSES, ServingMetrics
from tests.support.paths import ROOT
from tests.support.serving.service_harness import World

ROWS = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", re.MULTILINE)
NAME = re.compile(r"\b(?:recsys_\w+|up\b)")
# What Prometheus itself knows of each place that it asks.
OF_PROMETHEUS = {"up": {"job", "instance"}}
Row = tuple[str, tuple[str, ...], str]  # kind, labels, meaning


def of_parts() -> dict[str, Row]:
    said = {one.name: (one.kind, (one.label,) if one.label else (), one.about) for one in PART_METRICS}
    return FACTS | said


@pytest.fixture(scope="module")
def of_replica(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    service = World(tmp_path_factory.mktemp("world"), items=1).service
    found = dict[str, Row]()
    for its in ServingMetrics(service).registry._collector_to_names:
        end = "_total" if its._type == "counter" else ""  # type: ignore[attr-defined]
        found[its._name + end] = its._type, tuple(its._labelnames), its._documentation  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def series(of_replica: dict[str, Row]) -> dict[str, set[str]]:
    """Every name that may stand in a query, with its labels."""
    found = {name: set(labels) for name, labels in OF_PROMETHEUS.items()}
    for name, (kind, labels, _) in (of_replica | of_parts()).items():
        if kind == "histogram":
            found |= {f"{name}_{end}": set(labels) for end in ("sum", "count")}
            found[f"{name}_bucket"] = {*labels, "le"}
        else:
            found[name] = set(labels)
    return found


def test_the_page_says_what_the_code_says(of_replica: dict[str, Row]) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    told = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), about)
        for name, kind, labels, about in ROWS.findall(page)
    }
    expected = of_replica | of_parts()
    assert told == expected, "\n".join(
        f"| `{name}` | {kind} | {', '.join(f'`{one}`' for one in labels)} | {about} |"
        for name, (kind, labels, about) in expected.items()
        if told.get(name) != (kind, labels, about)
    )


def test_names_are_said_once_and_by_one_scheme(of_replica: dict[str, Row]) -> None:
    names = [one.name for one in PART_METRICS]
    assert len(set(names)) == len(names) and not set(names) & (set(FACTS) | set(of_replica))
    assert {one.part for one in PART_METRICS} <= set(NAMES)
    for name, (kind, _, about) in (of_parts() | of_replica).items():
        assert re.fullmatch(r"recsys_[a-z0-9_]+", name) and about
        assert name.endswith("_total") == (kind == "counter")


def test_every_name_that_a_part_puts_into_its_heartbeat_is_listed() -> None:
    """By the literals in the code; names that are made (of shards, counts, losses) are tested below."""
    found = set[tuple[str, str]]()
    for package in ("recsys", "serving", "training"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                    first, on = node.args[0], ast.unparse(node.func.value)
                    beats = on == "beat" or on.endswith("heartbeat")
                    if beats and node.func.attr in ("add", "gauge") and isinstance(first, ast.Constant):
                        found.add((node.func.attr, first.value))
    listed = {("add" if one.kind == "counter" else "gauge", one.key) for one in PART_METRICS}
    assert len(found) > 30 and found - listed == set()


def part(name: str, **changes: Any) -> PartStatus:
    return PartStatus(name=name, **({"state": "ready"} | changes))


def status(*parts: PartStatus) -> Status:
    return Status(
        state="s", running=True, ready=False, cut=Version("main", 1, 9), served=Version("main", 1, 7),
        dead_letters=3, exposed=["serve:0.0.0.0:8000"], parts=list(parts),
    )  # fmt: skip


def told(its: Status) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = text_of(its).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_the_shards_the_joiner_and_the_trainer_say_is_listed() -> None:
    from recsys.config.system_config import JoinConfig
    from recsys.process.part_process import Heartbeat
    from runtime.parts.shards import report as tell
    from training.joining.joiner import Joiner

    beat = Heartbeat("shards")
    sums = ("bytes", "wal_bytes", "expired", "evicted", "refused_rows", "refused_dense",
            "connections", "refused_connections", "wal_cut_bytes")  # fmt: skip
    texts = {"snapshots_damaged": {"000000-000000000005": "why"}, "wal_damaged": ""}
    tables = {"rows": {"items": 2, "users": 1}, "waiting": {"items": 5, "users": 0},
              "table_bytes": {"items": 70, "users": 30}}  # fmt: skip
    shard = {"part": 0, "step": 4} | texts | tables | dict.fromkeys(sums, 1)
    tell(beat, [shard, shard | {"part": 1, "step": 3}])
    joiner = dict.fromkeys([*Joiner(0, ["like"], JoinConfig()).counts, "unreadable", "skipped"], 2.0)
    found = told(
        status(
            part("shards", gauges=beat.now().gauges),
            part("joiner", counters=joiner),
            part("trainer", gauges={"loss.like": 0.5, "step": 7.0}),
        )
    )
    for name in ("shards", "joiner", "trainer"):
        assert found[UNLISTED, (("part", name),)] == 0.0
    assert found["recsys_shards_table_rows", (("table", "items"),)] == 4.0
    assert found["recsys_shards_rows", ()] == 6.0
    assert found["recsys_shards_shard_step", (("shard", "1"),)] == 3.0
    assert found["recsys_shards_table_waiting", (("table", "items"),)] == 10.0
    assert found["recsys_joiner_unattributed_total", ()] == 2.0
    assert found["recsys_trainer_loss", (("label", "like"),)] == 0.5


def test_values_of_workers_are_those_of_their_part() -> None:
    def worker(number: int, events: float, p95: float) -> PartStatus:
        return part(
            f"session-fold.{number}",
            counters={"events": events},
            rates={"events": events / 10},
            gauges={"view_to_session_p95_ms": p95, "sets": 1.0, "repeats": 2.0},
        )

    workers = [worker(0, 50.0, 40.0), worker(1, 70.0, 30.0)]
    found = told(status(*workers))
    assert found["recsys_session_fold_events_total", ()] == 120.0
    assert found["recsys_session_fold_view_to_session_p95_ms", ()] == 40.0
    assert found["recsys_session_fold_sets", ()] == 1.0
    assert found["recsys_session_fold_repeats", ()] == 4.0
    for number in (0, 1):
        assert found["recsys_part_ready", (("part", f"session-fold.{number}"),)] == 1.0
    assert with_workers(workers)[0].rates == {"events": 12.0}
    archives = [part(f"archive.{n}", gauges={"paused": 1.0, "behind": 3.0 - n, "cpu_s": 2.0}) for n in (0, 1)]
    assert with_workers(archives)[0].gauges == {"paused": 1.0, "behind": 3.0, "cpu_s": 4.0}


def test_facts_of_the_system_and_what_isnt_listed() -> None:
    broken = part("joiner", state="backoff", restarts=4, lag={"events": 12},
                  counters={"events": 5.0, "new": 1.0},
                  gauges={"pending.x": 1.0, "examples": 2.0})  # fmt: skip
    found = told(status(part("log", state="done"), broken))
    assert found["recsys_system_running", ()] == 1.0 and found["recsys_system_ready", ()] == 0.0
    assert found["recsys_part_ready", (("part", "log"),)] == 1.0
    assert found["recsys_part_ready", (("part", "joiner"),)] == 0.0
    assert found["recsys_part_restarts_total", (("part", "joiner"),)] == 4.0
    assert found["recsys_part_lag", (("part", "joiner"), ("topic", "events"))] == 12.0
    assert found["recsys_cut_step", (("epoch", "1"), ("line", "main"))] == 9.0
    assert found["recsys_served_step", (("epoch", "1"), ("line", "main"))] == 7.0
    assert found["recsys_dead_letters", ()] == 3.0 and found["recsys_exposed_ports", ()] == 1.0
    assert found[UNLISTED, (("part", "joiner"),)] == 3.0, "a name, a family and a kind that aren't known"
    states = {s: found["recsys_part_state", (("part", "joiner"), ("state", s))] for s in STATES}
    assert [s for s, value in states.items() if value] == ["backoff"]


def test_each_state_of_a_part_that_the_manual_names_has_its_series() -> None:
    text = (ROOT / "docs/how-to/operations.md").read_text()
    table = text.partition("Part states:\n")[2].strip().partition("\n\n")[0]
    named = [s for row in table.splitlines() for s in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert {"gone", "unchecked"} < set(named) == set(STATES)
    for state in named:
        found = told(status(part("joiner", state=state)))
        of_states = {
            dict(labels)["state"]: value
            for (name, labels), value in found.items()
            if name == "recsys_part_state"
        }
        assert [s for s, value in of_states.items() if value] == [state]


def test_disk_space_is_told_by_kind_if_it_is_known() -> None:
    space = Space(level=Level.LOWER, used=5, budget=9, free=7, kinds={"log/events": 3, "archive": 2})
    found = told(msgspec.structs.replace(status(), space=space))
    assert found["recsys_disk_bytes", (("kind", "log/events"),)] == 3.0
    assert found["recsys_disk_bytes", (("kind", "archive"),)] == 2.0
    names = ("budget_bytes", "free_bytes", "level")
    assert [found[f"recsys_disk_{name}", ()] for name in names] == [9.0, 7.0, 2.0]
    assert ("recsys_disk_level", ()) not in told(status())


def test_what_has_not_happened_is_told_as_0_once_the_part_speaks() -> None:
    """Else the first time isn't seen: ``increase`` wants two samples of a series."""
    found = told(status(part("joiner", counters={"events": 5.0}), part("sequencer")))
    assert found["recsys_joiner_events_total", ()] == 5.0
    counters = {one.name for one in PART_METRICS if one.part == "joiner" and one.kind == "counter"}
    assert counters == {
        name for name, _ in found if name.startswith("recsys_joiner_") and name.endswith("_total")
    }
    assert not any(name.startswith("recsys_sequencer_") for name, _ in found), "it said nothing yet"


def test_stages_and_statuses_that_are_known_are_told_as_0(tmp_path: Path) -> None:
    text = ServingMetrics(World(tmp_path, items=1).service).text().decode()
    page = (ROOT / "docs" / "how-to" / "operations.md").read_text().split("| stage | left out, and why |")[1]
    stages = re.findall(r"`([a-z_:]+)`", "".join(re.findall(r"^\|([^|]+)\|", page.split("\n\n")[0], re.M)))
    assert set(stages) == set(STAGES), "docs/how-to/operations.md says what each stage means"
    for stage in STAGES:
        assert f'recsys_degraded_total{{stage="{stage}"}} 0.0' in text
    assert all(f'recsys_events_total{{status="{status}"}} 0.0' in text for status in STATUSES)
    assert {"accepted", "duplicate", "rejected", "retry", "lost"} == set(STATUSES)


def test_nothing_was_started_is_no_error() -> None:
    found = told(Status(state="s", running=False, ready=False))
    assert found["recsys_system_running", ()] == 0.0
    assert all(one.samples for one in families(status(part("log"))))


def queries_of_dashboard() -> list[str]:
    board = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def rules() -> list[dict[str, Any]]:
    its = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    return [rule for group in its["groups"] for rule in group["rules"]]


def faults_of(query: str, series: dict[str, set[str]]) -> list[str]:
    """Names and labels of a query that don't exist, and brackets that don't close."""
    bare = re.sub(r'"[^"]*"', '""', query)
    faults = [name for name in NAME.findall(bare) if name not in series]
    labels = set().union(*(series.get(name, set()) for name in NAME.findall(bare)))
    used = re.findall(r"[{,]\s*(\w+)\s*[=!]~?", bare)
    for group in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", bare):
        used += [label.strip() for label in group.split(",") if label.strip()]
    faults += [label for label in used if label not in labels]
    faults += [f"{a}{b}" for a, b in ("()", "[]", "{}") if bare.count(a) != bare.count(b)]
    return faults if NAME.search(bare) else [*faults, "no metric"]


def test_every_query_names_what_there_is(series: dict[str, set[str]]) -> None:
    queries = queries_of_dashboard() + [rule["expr"] for rule in rules()]
    assert len(queries) > 60
    assert {query: faults for query in queries if (faults := faults_of(query, series))} == {}


def test_a_wrong_query_is_found(series: dict[str, set[str]]) -> None:
    assert faults_of("rate(recsys_nothing[5m])", series) == ["recsys_nothing"]
    assert faults_of('recsys_requests_total{colour="x"}', series) == ["colour"]
    assert faults_of("sum by (stage) (recsys_requests_total)", series) == ["stage"]
    assert faults_of("sum(recsys_step", series) == ["()"] and faults_of("1", series) == ["no metric"]


def test_the_dashboard_is_one_that_loads() -> None:
    board = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= board.keys()
    assert board["id"] is None, "an id belongs to one Grafana"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    [source] = board["templating"]["list"]
    taken = set[tuple[int, int]]()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
        refs = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(refs)) == len(refs) and (refs or panel["type"] == "row")
        for its in [panel, *panel.get("targets", [])]:
            if panel["type"] != "row":
                assert its["datasource"]["uid"] == f"${{{source['name']}}}"


def test_the_alerts_are_rules_that_load() -> None:
    its = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    assert set(its) == {"groups"} and len({group["name"] for group in its["groups"]}) == len(its["groups"])
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert (
            {"alert", "expr", "labels", "annotations"}
            <= rule.keys()
            <= {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
        )
        for name in ("for", "keep_firing_for"):
            assert re.fullmatch(r"\d+[smhd]", rule.get(name, "1m"))
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    assert scrape["rule_files"] == ["alerts.yaml"]


def matches(selector: str, labels: dict[str, str]) -> bool:
    """Whether a series of these labels is selected, as Prometheus does it."""
    said = re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selector)
    its = [
        (bool(re.fullmatch(value if op == "=~" else re.escape(value), labels[name])), op)
        for name, op, value in said
    ]
    return bool(said) and all(found != (op == "!=") for found, op in its)


def test_somebody_is_called_when_all_is_down() -> None:
    """Nothing is measured then, and a query of nothing raises no alert."""
    pages = [rule["expr"] for rule in rules() if rule["labels"]["severity"] == "page"]
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    jobs = {its["job_name"] for its in scrape["scrape_configs"]}
    [selector] = [its[1] for expr in pages if (its := re.fullmatch(r"up\{(.*)\} == 0", expr))]
    assert len(jobs) == 2 and all(matches(selector, {"job": job}) for job in jobs)
    assert not matches(selector, {"job": "node"})
    assert "recsys_system_running == 0" in pages


def test_what_has_no_counterpart_calls_nobody() -> None:
    [expr] = [rule["expr"] for rule in rules() if rule["alert"] == "RecsysRequestsFail"]
    failed = re.findall(r"recsys_requests_total\{([^}]*)\}", expr)[0]
    called = {s for s in ("200", "404", "500", "501", "503") if matches(failed, {"status": s})}
    assert called == {"500", "503"}


def test_labels_of_an_annotation_are_those_of_its_rule(series: dict[str, set[str]]) -> None:
    for rule in rules():
        said = " ".join(rule["annotations"].values())
        labels = set().union(*(series.get(name, set()) for name in NAME.findall(rule["expr"])))
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= labels
