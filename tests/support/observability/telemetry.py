"""What a live system tells of itself, looked at from outside: a collector, its log files, Ray's dashboard."""

import json
from pathlib import Path
from typing import Any

import httpx

from recsys.observability.spans import request_span
from runtime.supervision import launch_plan as plans
from tests.support.observability.otlp_receiver import Receiver
from tests.support.systems.live_system import LiveSystem

STAGES = ["session", "wait", "filter", "retrieve", "rank", "select", "answer"]
REST = {"impression", "engagement", "fold", "join", "sequence", "served"}


def whole(receiver: Receiver, asked: list[tuple[str, str]]) -> str:
    """The newest request whose trace has all its spans, and those of its steps; empty: none."""
    spans = [span for _, span in receiver.spans()]
    names: dict[str, set[str]] = {}
    for span in spans:
        names.setdefault(span.trace_id.hex(), set()).add(span.name)
    of_id = {(span.trace_id.hex(), span.span_id.hex()): span for span in spans}
    for request_id, _ in reversed(asked):
        trace_id = request_span(request_id, "feed").trace_id
        if not {*STAGES, *REST, "feed"} <= names.get(trace_id, set()):
            continue
        own = [s for (trace, _), s in of_id.items() if trace == trace_id]
        steps = {s.links[0].trace_id.hex() for s in own if s.name in ("sequence", "served")}
        told = [(trace, span.name) for (trace, _), span in of_id.items()]
        if all(
            {"step", "apply"} <= names.get(step, set()) and told.count((step, "publish")) == 2
            for step in steps
        ):  # both shards' too: each process sends in its own time
            return request_id
    return ""


def check_trace(receiver: Receiver, request_id: str) -> None:
    """One tree of the request's spans, each after its cause, with the spans of its steps behind the links."""
    told = {(s.trace_id.hex(), s.span_id.hex()): (part, s) for part, s in receiver.spans()}
    trace_id = request_span(request_id, "feed").trace_id
    own = {span: its for (trace, span), its in told.items() if trace == trace_id}
    [feed] = [s for _, s in own.values() if not s.parent_span_id]
    assert feed.name == "feed" and all(
        s.parent_span_id.hex() in own for _, s in own.values() if s is not feed
    )
    stages = [s for _, s in own.values() if s.name in STAGES]
    stages.sort(key=lambda s: (s.start_time_unix_nano, s.end_time_unix_nano))
    assert [s.name for s in stages] == STAGES
    parts = {s.name: part for part, s in own.values()}
    assert parts["feed"] == parts["engagement"] == parts["served"] == "recsys-serve"
    assert parts["fold"] == "recsys-session-fold" and parts["join"] == "recsys-joiner"
    assert parts["sequence"] == "recsys-sequencer"
    for _, served in list(own.values()):
        if served.name == "served":
            _check_way(told, own, feed, served)


def _check_way(told: Any, own: Any, feed: Any, served: Any) -> None:
    sequence = own[served.parent_span_id.hex()][1]
    join = own[sequence.parent_span_id.hex()][1]
    [link], [applied] = sequence.links, served.links
    part, step = told[link.trace_id.hex(), link.span_id.hex()]
    _, apply = told[applied.trace_id.hex(), applied.span_id.hex()]
    assert (part, step.name, apply.name) == ("recsys-trainer", "step", "apply")
    published = [s for (t, _), (_, s) in told.items() if t == link.trace_id.hex() and s.name == "publish"]
    assert len(published) == 2, "two shards"
    # A part may read the clock late, when what it caused has ended already.
    ways = zip((feed, join, sequence), (join, sequence, step), strict=True)
    assert all(c.start_time_unix_nano < e.end_time_unix_nano for c, e in ways), "each after its cause"
    # A replica may have applied a delta before the shard that published it reads the clock.
    began, ended = (max(times) for times in zip(*map(_times, published), strict=True))
    assert sequence.start_time_unix_nano <= ended and began <= apply.end_time_unix_nano


def _times(span: Any) -> tuple[int, int]:
    return span.start_time_unix_nano, span.end_time_unix_nano


def check_logs(state: Path) -> None:
    """JSON lines of everything that runs, and no secret in any of them."""
    run = state / "run"
    secrets = [(run / name).read_text().strip() for name in ("admin.key", "ray.token")]
    config, _ = plans.read(state)
    secrets.append(config.sessions.url.partition("@")[0].rpartition(":")[2])
    names = {file.name.partition("-")[0] for file in run.glob("*-*.log")}
    assert {"replica", "shard", "worker"} <= names, names
    for file in [*run.glob("*.log"), *run.glob("*.out")]:
        text = file.read_text()
        assert not [secret for secret in secrets if secret in text], file
        if file.suffix == ".log" and not file.name.startswith(("valkey", "audit")):
            for line in text.splitlines():
                assert {"time_ms", "level", "part", "message"} <= json.loads(line).keys()
    [worker] = run.glob("worker-0.log")
    lines = [json.loads(line) for line in worker.read_text().splitlines()]
    began = next(line for line in lines if line["message"] == "learning")
    assert began["worker"] == 0 and began["line"] == "main" and began["epoch"] == 0
    learned = [json.loads(line) for line in (run / "trainer.log").read_text().splitlines()]
    assert any(line["message"] == "learned" and line["step"] > 0 for line in learned)


def check_dashboard(system: LiveSystem) -> None:
    """Its REST API: Serve, jobs, actors and Train."""
    config, _ = plans.read(system.state)
    token = (system.state / "run" / "ray.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    base = f"http://127.0.0.1:{config.serve.dashboard_port}"
    with httpx.Client(base_url=base, headers=headers, timeout=60.0) as client:
        app = client.get("/api/serve/applications/").json()["applications"]["recsys"]
        feed = app["deployments"]["Feed"]
        assert app["docs_path"] == "/docs" and feed["status"] == "HEALTHY"
        assert feed["deployment_config"]["user_config"]["candidates"] == config.serve.candidates
        jobs = {job["metadata"].get("part") for job in client.get("/api/jobs/").json()}
        assert {"serve", "shards", "trainer"} <= jobs
        found = client.get("/api/v0/actors", params={"detail": True}).json()
        actors = found["data"]["result"]["result"]
        assert "Shard(main/0, 1 of 2)" in {actor["repr_name"] for actor in actors}
        runs = client.get("/api/train/v2/runs/v1").json()["train_runs"]
        assert secret_of(config) not in json.dumps(runs)
        [name] = [run["name"] for run in runs if run["status"] == "RUNNING"]
        assert name.startswith("main-epoch-0-")


def secret_of(config: Any) -> str:
    return str(config.sessions.url.partition("@")[0].rpartition(":")[2])
