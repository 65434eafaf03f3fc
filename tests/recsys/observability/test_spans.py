"""Ids that every part derives alike, sampling by them, and OTLP's JSON."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.observability.spans import (
    Span,
    is_trace_sampled,
    otlp,
    request_span,
    sampling_bound,
    step_span,
    trace_number,
)

requests = st.text(min_size=1, max_size=40)


def test_ids_never_change() -> None:
    """Parts of two versions run beside each other during a restart."""
    feed = request_span("r1", "feed")
    assert feed.trace_id == "e98db51a307c9ce74e6c8572282b8fed" and feed.span_id == "8f9f2d5dab357933"
    assert step_span("main", 0, 3).trace_id == "99ea71ca06484b9f81386956871a887b"


@given(requests, requests)
def test_ids_are_valid_and_apart(one: str, other: str) -> None:
    place = request_span(one, "feed")
    assert len(place.trace_id) == 32 and len(place.span_id) == 16
    assert int(place.trace_id, 16) and int(place.span_id, 16)
    assert (request_span(other, "feed") == place) == (one == other)
    assert request_span(one, "rank").span_id != place.span_id
    assert request_span(one, "rank", 1, 23) != request_span(one, "rank", 12, 3)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_a_share_of_the_requests_is_chosen(share: float) -> None:
    bound = sampling_bound(share)
    chosen = sum(is_trace_sampled(trace_number(f"request-{n}"), bound) for n in range(20_000))
    assert chosen == pytest.approx(20_000 * share, abs=4 * (20_000 * share * (1 - share)) ** 0.5)


def test_a_larger_share_chooses_the_same_and_more() -> None:
    numbers = [trace_number(f"r{n}") for n in range(1_000)]
    few, many = sampling_bound(0.1), sampling_bound(0.5)
    assert all(is_trace_sampled(number, many) for number in numbers if is_trace_sampled(number, few))


def test_the_rule_is_opentelemetry_s() -> None:
    sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
    theirs = sampling.TraceIdRatioBased(0.25)
    for n in range(500):
        number = trace_number(f"r{n}")
        decided = theirs.should_sample(None, number, "feed").decision
        assert decided.is_sampled() == is_trace_sampled(number, sampling_bound(0.25))


def test_otlp_s_json() -> None:
    feed, step = request_span("r1", "feed"), step_span("main", 0, 3)
    values = {"n": 1 << 40, "ok": True, "share": 0.5, "kind": "view"}
    told = otlp(
        [Span(feed, "feed", 5, 9), Span(request_span("r1", "x"), "x", 6, 7, feed, (step,), values)],
        {"service.name": "recsys-serve"},
    )
    [resource] = told["resourceSpans"]
    assert resource["resource"]["attributes"] == [
        {"key": "service.name", "value": {"stringValue": "recsys-serve"}}
    ]
    [scope] = resource["scopeSpans"]
    root, child = scope["spans"]
    assert root["startTimeUnixNano"] == "5" and root["kind"] == 2 and "parentSpanId" not in root
    assert child["parentSpanId"] == feed.span_id and child["kind"] == 1
    assert child["links"] == [{"traceId": step.trace_id, "spanId": step.span_id}]
    assert [next(iter(one["value"].items())) for one in child["attributes"]] == [
        ("intValue", str(1 << 40)), ("boolValue", True), ("doubleValue", 0.5), ("stringValue", "view"),
    ]  # fmt: skip
