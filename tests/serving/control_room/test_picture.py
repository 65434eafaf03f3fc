"""A picture says what was sampled, and nothing else: samples, rates of counters, curves, replicas."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.control_room.curves import POINTS, Curves
from serving.control_room.exposition import Samples, key, label_of, parse, samples_of
from serving.control_room.picture import PictureBuilder, Rates


class Given:
    """What a look sees is said by the test."""

    def __init__(self) -> None:
        self.now: Samples = {}

    def samples(self) -> Samples:
        return dict(self.now)

    def panels(self) -> Mapping[str, Any]:
        return {"parts": []}


@given(st.dictionaries(st.sampled_from(["a", "part", "topic"]), st.text(max_size=8), max_size=3))
def test_a_series_has_one_name_whoever_tells_it(labels: dict[str, str]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("recsys_x", "about", list(labels), registry=registry)
    (gauge.labels(**labels) if labels else gauge).set(2.5)
    told = generate_latest(registry).decode()
    if all(
        sign not in value for value in labels.values() for sign in "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    ):
        assert parse(told) == samples_of(registry.collect()) == {key("recsys_x", labels): 2.5}  # type: ignore[arg-type]


def test_what_a_replica_says_is_read_without_buckets() -> None:
    registry = CollectorRegistry()
    Counter("recsys_requests", "a", ["route", "status"], registry=registry).labels("/v1/events", "202").inc(3)
    Histogram("recsys_request_seconds", "b", ["route"], registry=registry).labels("/v1/events").observe(0.5)
    Gauge("recsys_late", "c", registry=registry).set(float("nan"))
    found = parse(generate_latest(registry).decode())
    assert found['recsys_requests_total{route="/v1/events",status="202"}'] == 3
    assert found['recsys_request_seconds_count{route="/v1/events"}'] == 1
    assert math.isnan(found["recsys_late"]) and not [
        name for name in found if "bucket" in name or "created" in name
    ]
    assert label_of('x{part="a",topic="b"}', "topic") == "b" and label_of("x", "topic") == ""


def test_rates_are_of_ten_seconds_and_begin_anew_after_a_gap_or_a_restart() -> None:
    rates = Rates()
    for second in range(30):
        found = rates.observe({"a_total": 5.0 * second, "gauge": 9.0 * second}, 1000 * second)
    assert found == {"a_total": 5.0}
    assert rates.observe({"a_total": 2.0}, 30_000)["a_total"] == 0.0  # its part began again
    assert rates.observe({"a_total": 1e6}, 90_000) == {"a_total": 0.0}  # nobody looked meanwhile
    assert rates.observe({"a_total": 1e6 + 7}, 91_000) == {"a_total": 7.0}
    assert rates.observe({"a_total": 1e6 + 7}, 31_000) == {"a_total": 0.0}  # the clock was set back
    assert rates.observe({"a_total": 1e6 + 10}, 32_000) == {"a_total": 3.0}


def test_a_picture_holds_the_samples_it_was_made_of() -> None:
    look = Given()
    builder = PictureBuilder(look, Curves())
    look.now = {"recsys_a_total": 3.0, "recsys_b": float("nan"), 'recsys_trainer_auc{label="like"}': 0.7}
    first = builder.build(1_000)
    look.now |= {"recsys_a_total": 8.0}
    second = builder.build(2_000)
    assert (first.number, second.number) == (1, 2)
    assert second.samples == {
        "recsys_a_total": 8.0,
        "recsys_b": None,
        'recsys_trainer_auc{label="like"}': 0.7,
    }
    assert second.rates == {"recsys_a_total": 5.0}
    assert first.points == {'recsys_trainer_auc{label="like"}': 0.7} and second.points == {}
    assert b"NaN" not in msgspec.json.encode(second)


def test_replicas_that_a_scrape_met_stay_for_a_minute_each_with_its_own_numbers() -> None:
    look = Given()
    builder = PictureBuilder(look, Curves())
    for second, name in enumerate(["r1", "r2", "r1"]):
        look.now = {f'recsys_step{{replica="{name}"}}': 10.0 + second, "recsys_system_ready": 1.0}
        picture = builder.build(1000 * second)
    assert picture.asked == "r1" and picture.replicas == {"r1": 2_000, "r2": 1_000}
    assert (
        picture.samples['recsys_step{replica="r1"}'] == 12
        and picture.samples['recsys_step{replica="r2"}'] == 11
    )
    look.now = {"recsys_system_ready": 1.0}
    assert builder.build(61_500).replicas == {"r1": 2_000}
    assert builder.build(70_000).replicas == {}


def test_curves_keep_a_bounded_past_a_point_each_five_seconds() -> None:
    curves, auc = Curves(), 'recsys_trainer_auc{label="like"}'
    for second in range(5 * (POINTS + 50)):
        curves.observe(
            {auc: second / 1e4, "recsys_other": 1.0, 'recsys_trainer_auc{label="x"}': float("nan")},
            1000 * second,
        )
    kept = curves.all()
    assert list(kept) == [auc] and len(kept[auc]) == POINTS
    assert {b[0] - a[0] for a, b in zip(kept[auc], kept[auc][1:], strict=False)} == {5_000}
    for label in range(100):
        curves.observe({f'recsys_trainer_auc{{label="{label}"}}': 0.5}, 10**9 + 5_000 * label)
    assert len(curves.all()) <= 80


def test_curves_of_those_that_ended_make_room_for_those_that_began() -> None:
    curves = Curves()
    old, new, other = (f'recsys_source_recall{{source="{n}"}}' for n in ("old", "new", "other"))
    labels = {f'recsys_trainer_auc{{label="{n}"}}': 0.5 for n in range(78)}
    curves.observe(labels | {old: 1.0}, 0)
    curves.observe(labels | {other: 1.0}, 5_000)
    assert curves.observe(labels | {new: 1.0, other: 2.0}, 10_000)[new] == 1.0
    assert old not in curves.all() and other in curves.all()
    an_hour_ms = 5_000 * POINTS
    assert curves.observe({new: 2.0}, an_hour_ms + 9_000) == {new: 2.0}
    assert set(curves.all()) == set(labels) | {new, other}
    curves.observe({new: 2.0}, an_hour_ms + 20_000)
    assert set(curves.all()) == {new}


def test_a_counter_is_a_curve_of_its_rate_over_all_replicas() -> None:
    curves, events = Curves(), 'recsys_events_total{status="accepted"}'
    of = {n: f'recsys_events_total{{replica="{n}",status="accepted"}}' for n in ("r1", "r2")}
    slowest = "recsys_answer_p99_ms"
    turns = [
        curves.observe(
            {of["r1"]: a, of["r2"]: b, 'recsys_answer_p99_ms{replica="r1"}': a,
             'recsys_answer_p99_ms{replica="r2"}': b, 'recsys_events_total{status="rejected"}': b},
            time_ms,
        )
        for time_ms, a, b in [(0, 10.0, 100.0), (5_000, 20.0, 140.0), (20_000, 50.0, 140.0),
                              (25_000, 0.0, 150.0)]
    ]  # fmt: skip
    # Before the last a replica began anew.
    assert [events in points for points in turns] == [False, True, True, False]
    assert [turns[1][events], turns[2][events]] == [10.0, 2.0]
    assert [points[slowest] for points in turns] == [100.0, 140.0, 140.0, 150.0]
    assert set(curves.all()) == {events, slowest}


def test_rates_of_what_is_told_no_more_are_dropped() -> None:
    rates = Rates()
    for n in range(50):
        rates.observe({f'recsys_lists_total{{replica="{n}"}}': 1.0}, 1_000 * n)
    assert len(rates._rates) == 1


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_states_that_a_part_is_not_in_take_no_room(value: float) -> None:
    look = Given()
    look.now = {'recsys_part_state{part="a",state="ready"}': value}
    assert bool(PictureBuilder(look, Curves()).build(0).samples) is bool(value)
