"""A swipe's trace through the parts of a real run in one process: one tree, each span after its cause."""

import asyncio
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.harness.local_system import LocalSystem, small_config
from recsys.config.part_configs import TracingConfig
from recsys.observability.spans import request_span
from tests.support.observability.traced_swipe import swipe_and_learn

STAGES = ["session", "wait", "filter", "retrieve", "rank", "select", "answer"]


def spans_in(file: Path) -> list[dict[str, Any]]:
    """All spans of a file, with the name of the service that told them."""
    found = []
    for line in file.read_bytes().splitlines():
        for resource in msgspec.json.decode(line)["resourceSpans"]:
            [scope] = resource["scopeSpans"]
            found += scope["spans"]
    return found


def start(span: dict[str, Any]) -> int:
    return int(span["startTimeUnixNano"])


def end(span: dict[str, Any]) -> int:
    return int(span["endTimeUnixNano"])


def said(span: dict[str, Any]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("traced")
    tracing = TracingConfig(share=0.5, file=str(folder / "spans.jsonl"))
    system = LocalSystem(replace(small_config(folder), tracing=tracing))
    asked = asyncio.run(swipe_and_learn(system, 20))
    assert system.tracer is not None and not system.tracer.dropped
    return [r for r in asked if system.tracer.is_sampled(r)], spans_in(folder / "spans.jsonl")


def test_only_what_is_chosen_is_traced(ran: tuple[list[str], list[dict[str, Any]]]) -> None:
    chosen, spans = ran
    assert 3 <= len(chosen) <= 17
    asked = {request_span(request_id, "feed").trace_id for request_id in chosen}
    assert {span["traceId"] for span in spans if span["name"] == "feed"} == asked
    others = {s["traceId"] for s in spans if s["name"] not in ("step", "publish", "apply")}
    assert others == asked
    told = Counter((span["traceId"], span["spanId"]) for span in spans)
    assert set(told.values()) == {1}, "a span's id stands once"


def test_a_swipe_is_one_connected_trace_with_all_stages_in_order(
    ran: tuple[list[str], list[dict[str, Any]]],
) -> None:
    chosen, spans = ran
    by_place = {(span["traceId"], span["spanId"]): span for span in spans}
    trace_id = request_span(chosen[0], "feed").trace_id
    own = [span for span in spans if span["traceId"] == trace_id]
    [feed] = [span for span in own if "parentSpanId" not in span]
    assert feed["name"] == "feed" and said(feed)["request_id"] == chosen[0]
    assert all((trace_id, s["parentSpanId"]) in by_place for s in own if s is not feed)
    stages = [span for span in own if span["name"] in STAGES]
    assert [span["name"] for span in stages] == STAGES
    assert start(stages[0]) == start(feed) and end(stages[-1]) == end(feed)
    assert all(end(a) == start(b) for a, b in itertools.pairwise(stages))
    served = [span for span in own if span["name"] == "served"]
    assert served, "what it taught was served"
    for last in served:
        check_way(by_place, feed, last)


def check_way(
    by_place: dict[tuple[str, str], dict[str, Any]], feed: dict[str, Any], last: dict[str, Any]
) -> None:
    """From the feed over the example to what was first served with it, and through the step by the links."""
    trace_id = feed["traceId"]
    sequence = by_place[trace_id, last["parentSpanId"]]
    join = by_place[trace_id, sequence["parentSpanId"]]
    assert (sequence["name"], join["name"]) == ("sequence", "join")
    assert join["parentSpanId"] == feed["spanId"]
    [to_step], [to_apply] = sequence["links"], last["links"]
    step = by_place[to_step["traceId"], to_step["spanId"]]
    apply = by_place[to_apply["traceId"], to_apply["spanId"]]
    assert step["traceId"] == apply["traceId"] and apply["parentSpanId"] == step["spanId"]
    published = [s for s in by_place.values() if s["name"] == "publish"]
    published = [s for s in published if s["traceId"] == step["traceId"]]
    assert len(published) == 2, "two shards"
    item = said(join)["item_id"]
    seen = [s for s in by_place.values() if s["traceId"] == trace_id and s["name"] == "engagement"]
    views = [s for s in seen if said(s)["item_id"] == item and said(s)["kind"] == "view"]
    folds = [s for s in by_place.values() if s.get("parentSpanId") == views[0]["spanId"]]
    assert [s["name"] for s in folds] == ["fold"]
    ends = [feed, views[0], folds[0], join, sequence, *published[:1], apply]
    assert [end(s) for s in ends] == sorted(end(s) for s in ends)
    assert end(sequence) <= end(step) and start(apply) >= max(end(s) for s in published)


def test_no_span_says_who_the_viewer_is(ran: tuple[list[str], list[dict[str, Any]]]) -> None:
    text = msgspec.json.encode(ran[1]).decode()
    assert '"u1"' not in text and "user" not in text


def test_nothing_is_told_where_tracing_is_off(tmp_path: Path) -> None:
    system = LocalSystem(small_config(tmp_path))
    assert system.tracer is None and system.service.traces is None
    system.close()
