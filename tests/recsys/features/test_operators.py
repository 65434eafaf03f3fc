"""Operators over entities agree with a recount of the whole past by brute force."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pytest

from examples.short_video.feature_replay import FeatureReplay
from recsys.events.event_types import (
    Engagement,
    Event,
    Impression,
    Item,
    Rejected,
    RequestInputs,
    User,
    Verdict,
    Withdrawal,
    encode,
    parse,
)
from recsys.events.hashing import digest_of
from recsys.features.columns import entity_of
from recsys.features.families.declared import Declared
from recsys.features.families.derived import Derivation, Derived
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet, Floats
from recsys.features.feature_set_file import FEED_SCHEMA, encode_feature_set
from recsys.features.item_counters import ItemCounters
from recsys.features.operator_state import OperatorState
from recsys.features.request_features import read_block
from recsys.features.session import Session
from tests.support.operator_app import APP, FEATURES, START_MS, events

NO_ITEMS = np.zeros((0, 1), np.int64)

HOUR_MS = 3_600_000
HALF_LIVES = {"1h": HOUR_MS, "24h": 24 * HOUR_MS}
NAMES = list(FEATURES.dense_names)


@dataclass
class Past:
    """Everything that happened before a request, as a list."""

    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    done: list[tuple[int, dict[str, Any], str, float | None]] = field(default_factory=list)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        if isinstance(event, Item):
            self.items[str(event.item_id)] = event.fields
        elif isinstance(event, User):
            self.users[str(event.user_id)] = event.fields
        elif isinstance(event, Impression):
            about = self.about(event)
            self.requests[event.request_id] = about
            for served in event.items:
                self.shown.append((event.time_ms, self.with_item(about, str(served.item_id))))
        elif isinstance(event, Engagement):
            value = event.value if isinstance(event.value, float | int) else None
            what = self.with_item(self.requests[event.request_id], str(event.item_id))
            self.done.append((event.time_ms, what, event.kind, value))

    def about(self, event: Impression) -> dict[str, Any]:
        """The values of a request by part of an entity's name."""
        profile = self.users.get(str(event.user_id), {})
        context = event.context
        return {"user": [event.user_id], "context": [context["page"]]} | {
            name: [fields[name]] if name in fields else []
            for name, fields in (("device", context), ("region", profile))
        }

    def with_item(self, about: dict[str, Any], item_id: str) -> dict[str, Any]:
        fields = self.items[item_id]
        values = {name: fields.get(name, []) for name in ("brand", "colours", "material")}
        lists = {name: v if isinstance(v, list) else [v] for name, v in values.items()}
        return about | {"item": [item_id]} | lists


def keys(entity: str, what: dict[str, Any]) -> list[tuple[str, ...]]:
    """The keys that an event or a candidate has in an entity."""
    parts = [] if entity == "all" else entity.split("×")
    out: list[tuple[str, ...]] = [()]
    for part in parts:
        out = [(*key, value) for key in out for value in dict.fromkeys(what[part])]
    return out


def faded(now_ms: int, time_ms: int, speed: str) -> float:
    return float(0.5 ** ((now_ms - time_ms) / HALF_LIVES[speed]))


def signed_log(value: float) -> float:
    return math.copysign(math.log1p(abs(value)), value)


class Oracle:
    """Columns of operators for one candidate, from the list of everything before."""

    def __init__(self, past: Past, now_ms: int, what: dict[str, Any]) -> None:
        self.past, self.now_ms, self.what = past, now_ms, what

    def total(self, entity: str, speed: str, kind: str, of: Callable[[float | None], float]) -> float:
        """A faded sum over the events of a kind of the candidate's keys."""
        mine = keys(entity, self.what)
        rows = (
            ((t, w, None) for t, w in self.past.shown)
            if kind == "shown"
            else ((t, w, v) for t, w, k, v in self.past.done if k == kind)
        )
        return sum(
            of(value) * faded(self.now_ms, time_ms, speed) * (key in mine)
            for time_ms, what, value in rows
            for key in keys(entity, what)
        )

    def count(self, entity: str, speed: str, kind: str) -> float:
        return self.total(entity, speed, kind, lambda value: 1.0)

    def prior(self, label: str, speed: str) -> float:
        shown, done = self.count("all", speed, "shown"), self.count("all", speed, label)
        return min(max((done + 0.5) / (shown + 1), 1e-4), 1 - 1e-4)

    def rate(self, entity: str, label: str, speed: str, usual: float) -> float:
        shown, done = self.count(entity, speed, "shown"), self.count(entity, speed, label)
        return min(max((done + 4 * usual) / (shown + 4), 1e-4), 1 - 1e-4)

    def against(self, entity: str, base: str, label: str, speed: str) -> float:
        usual = self.rate(base, label, speed, self.prior(label, speed))
        rate = self.rate(entity, label, speed, usual)
        return math.log(rate / (1 - rate)) - math.log(usual / (1 - usual))

    def value(self, entity: str, what: str, speed: str) -> float:
        total, number = (
            self.total(entity, speed, "buy", of)
            for of in (lambda v: v or 0.0, lambda v: float(v is not None))
        )
        if what == "sum":
            return signed_log(total) / 3
        all_number = self.total("all", speed, "buy", lambda v: float(v is not None))
        usual = self.total("all", speed, "buy", lambda v: v or 0.0) / max(all_number, 1e-3)
        return signed_log((total + 4 * usual) / (number + 4)) - signed_log(usual)

    def newest(self, entity: str, kind: str) -> tuple[int, float] | None:
        mine = keys(entity, self.what)
        events = [
            (t, v or 0.0)
            for t, what, k, v in self.past.done
            if k == kind and set(keys(entity, what)) & set(mine)
        ]
        return max(events) if events else None

    def since(self, entity: str, kind: str) -> float:
        newest = self.newest(entity, kind)
        return 2.0 if newest is None else math.log1p((self.now_ms - newest[0]) / 1000) / 10

    def last(self, entity: str) -> float:
        newest = self.newest(entity, "buy")
        return 0.0 if newest is None else signed_log(newest[1])

    def distinct(self, entity: str, kind: str, member: str, speed: str) -> float:
        """Each member of each of the candidate's keys counts by its newest event."""
        newest: dict[tuple[Any, ...], int] = {}
        for time_ms, what, k, _ in self.past.done:
            for key in keys(entity, what) if k == kind else []:
                if key in keys(entity, self.what):
                    newest |= {(key, value): time_ms for value in what[member]}
        return math.log1p(sum(faded(self.now_ms, t, speed) for t in newest.values())) / 3


def columns(oracle: Oracle) -> Iterator[tuple[str, float]]:
    """All columns of operators over entities."""
    for entity, bases in {"item": ("brand", "material"), "user×material": ("material",),
                          "brand": ("user",)}.items():  # fmt: skip
        for base in bases:
            for label in ("click", "buy"):
                for speed in HALF_LIVES:
                    name = f"{entity}:{base}/{label}.{speed}"
                    yield name, oracle.against(entity, base, label, speed)
    for entity in APP.features.entities:
        for what in ("sum", "mean"):
            for speed in HALF_LIVES:
                yield f"{entity}/buy.amount.{what}.{speed}", oracle.value(entity, what, speed)
    for entity in ("item", "user", "user×item", "device×brand"):
        yield f"{entity}/since(buy)", oracle.since(entity, "buy")
        yield f"{entity}/last(buy.amount)", oracle.last(entity)
    for entity in ("region×colours", "user×material", "region×device", "all"):
        yield f"{entity}/since(look)", oracle.since(entity, "look")
    for kind, entity, member in APP.features.distinct:
        for speed in HALF_LIVES:
            count = oracle.distinct(entity, kind, member, speed)
            yield f"{entity}/distinct({kind}.{member}).{speed}", count
    for entity in APP.features.entities:
        for speed in HALF_LIVES:
            shown = oracle.count(entity, speed, "shown")
            yield f"{entity}/shown.{speed}", math.log1p(shown) / 3
            looks = oracle.count(entity, speed, "look")
            yield f"{entity}/count(look).{speed}", math.log1p(looks) / 3


def lists() -> Iterator[tuple[Past, Impression, Floats]]:
    """Each list with the past before it and its features."""
    past, server = Past(), FeatureReplay(FEATURES)
    for event in events(50):
        for written in server.play(event):
            if isinstance(written, Impression):
                assert written.features is not None
                yield past, written, read_block(written.features, FEATURES).dense_NF
        past.take(event)


def test_operators_agree_with_a_recount_by_brute_force() -> None:
    compared = set[str]()
    for past, impression, dense_NF in lists():
        if int(impression.request_id[1:]) % 7:
            continue
        for served, row in zip(impression.items, dense_NF, strict=True):
            what = past.with_item(past.about(impression), str(served.item_id))
            for name, expected in columns(Oracle(past, impression.time_ms, what)):
                message = f"{name} of {impression.request_id}"
                assert row[NAMES.index(name)] == pytest.approx(expected, abs=2e-4), message
                compared.add(name)
    assert {column.name for column in FEATURES.dense[FEATURES.span("operators")]} <= compared
    first, stop = NAMES.index("user.age") + 2, NAMES.index("gap")
    assert {*NAMES[first:stop]} <= compared


def test_derived_columns_follow_from_those_before_them() -> None:
    for _, _, dense_NF in lists():
        column = dict(zip(NAMES, dense_NF.T, strict=True))
        gap = column["item/click.1h"] - column["brand/click.1h"]
        assert column["gap"] == pytest.approx(gap)
        assert column["log_gap"] == pytest.approx(np.copysign(np.log1p(abs(gap)), gap), abs=1e-6)
        age = column["user.age"]
        ratio = np.where(age > 0, column["item.price"] / np.maximum(age, 1e-6), 0.0)
        assert column["dear"] == pytest.approx(ratio, rel=1e-5)
        edges = np.array([0.1, 0.3, 0.5], np.float32)
        band = (column["item/shown.24h"][:, None] >= edges).mean(1)
        assert column["band"] == pytest.approx(band, abs=1e-6)
        match = abs(column["item.price"] - age) + np.tanh(gap)
        assert column["match"] == pytest.approx(match, rel=1e-5)


def test_numbers_of_users_and_contexts_are_on_the_scale_of_items() -> None:
    ages = set[float]()
    for past, impression, dense_NF in lists():
        age = past.users.get(str(impression.user_id), {}).get("age", 0.0)
        ages.add(age)
        assert dense_NF[:, NAMES.index("user.age")] == pytest.approx(math.log1p(age))
        battery = math.log1p(impression.context["battery"])
        assert dense_NF[:, NAMES.index("context.battery")] == pytest.approx(battery)
    assert len(ages) > 3 and 0.0 in ages


def derivation(*derived: Derived, names: tuple[str, ...] = ("a", "b")) -> tuple[Derivation, int]:
    every = (*names, *(one.name for one in derived))
    return Derivation(derived, every), len(every)


def test_an_expression_is_bounded_and_never_infinite() -> None:
    write, width = derivation(Derived("r", "ratio", ("a", "b")), Derived("d", "difference", ("a", "b")))
    dense = np.zeros((4, width), np.float32)
    dense[:, :2] = [(1, 0), (1, 1e-5), (-1e30, 1e30), (6, 3)]
    write.write(dense, dense)
    assert dense[:, 2].tolist() == [0, 100, -1, 2]
    assert dense[:, 3] == pytest.approx([1, 1, -100, 3], abs=1e-4)


def test_a_failing_function_gives_0_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    function = Derived("f", "function", ("a", "b"), (), "tests.support.operator_app:match@2")
    for result, expected in (
        (lambda a, b: a / b.sum(), 0.25), (lambda a, b: a[:2], 0.0), (lambda a: a, 0.0),
        (lambda a, b: a * np.nan, 0.0), (lambda a, b: "much", 0.0), (lambda a, b: 7e9, 100.0),
    ):  # fmt: skip
        monkeypatch.setattr("tests.support.operator_app.match", result)
        write, width = derivation(function)
        dense = np.full((4, width), 1.0, np.float32)
        write.write(dense, dense)
        assert dense[:, 2].tolist() == [expected] * 4
        assert write.errors["f"] == int(not expected)
        assert (dense[:, :2] == 1).all()


def test_a_function_has_its_declared_version() -> None:
    module = "tests.support.operator_app"
    for call, reason in (
        (f"{module}:match@3", "its version is '2': declare tests.support.operator_app:match@2"),
        (f"{module}:absent@1", "can't be imported .*AttributeError.*pip install"),
        ("match@1", "no plug-in 'match' of the group 'recsys.operators'; installed are"),
    ):
        with pytest.raises(ValueError, match=reason):
            derivation(Derived("f", "function", ("item.price",), (), call))
    digests = set[str]()
    for call in ("m:f@1", "m:f@2", "m:g@1"):
        declared = Declared(derived=(Derived("f", "function", ("item.price",), (), call),))
        digests.add(FeatureSet(FEATURES.schema, declared=declared).digest)
    assert len(digests) == 3


def test_a_field_of_several_owners_is_named_with_its_owner() -> None:
    item, user = (*FEATURES.schema.item, ("kind", "categorical")), (("kind", "categorical"),)
    schema = replace(FEATURES.schema, item=item, user=user)
    assert entity_of("item.kind", schema).right == "item.kind"
    assert entity_of("user.kind×brand", schema).left == "user.kind"
    with pytest.raises(ValueError, match=r"'kind' names several fields: write one of item\.kind, "):
        entity_of("kind", schema)


def test_viewers_without_a_profile_have_neither_fields_nor_numbers() -> None:
    builder = FeatureBuilder(FEATURES)
    server = FeatureReplay(FEATURES)
    for event in events(20):
        server.play(event)
    session = next(s for s in server._sessions.values() if s.numbers and s.numbers[0])
    catalogue, counters = server._catalogue, server._counters.counters
    dense = [
        builder.build(
            one, "feed", {"page": "home"}, np.arange(3), catalogue, counters, START_MS + 20 * HOUR_MS
        ).dense_NF
        for one in (session, session.without_profile())
    ]
    for name in ("user.age", "region×colours/shown.24h"):
        assert dense[0][:, NAMES.index(name)].any() and not dense[1][:, NAMES.index(name)].any()


def test_contacts_are_bounded_and_a_forgotten_viewer_leaves_none() -> None:
    state = OperatorState(FEATURES, contacts=4)
    counters = FEATURES.counter_table()
    for n in range(9):
        about: dict[str, Any] = {"request_id": "r", "user_id": f"u{n % 5}", "item_id": f"v{n}"}
        event = Engagement(time_ms=START_MS + n, kind="click", **about)
        keys_I = FEATURES.item_keys(f"v{n}", {})
        state.engagement(event, keys_I, {"": 1}, counters)
        assert len(state) <= 8
    assert len(state) == 4 and state.evicted["contacts"] == 5
    state.user(User(time_ms=1, user_id="u3", fields={"region": "n1"}))
    again = OperatorState(FEATURES)
    again.restore(state.pack())
    assert again.pack() == state.pack()
    for one in (state, again):
        before = len(one)
        one.forget("u3")
        assert len(one) == before - 1 and not one._viewers
    assert state.evicted["contacts"] == again.evicted["contacts"] == 5


def test_a_newest_event_of_a_quarantined_viewer_is_none_until_the_next() -> None:
    state, counters = OperatorState(FEATURES), FEATURES.counter_table()
    (kind, _), _ = next(one for one in FEATURES.operators.tracked.items() if not one[0][1])
    keys_I, halves = FEATURES.item_keys("v", {"brand": "b"}), {"": 1, "user.region": 5}

    def event(after_ms: int, value: float) -> Engagement:
        about: dict[str, Any] = {"request_id": "r", "user_id": "u", "item_id": "v", "kind": kind}
        return Engagement(time_ms=START_MS + after_ms, value=value, **about)

    def newest() -> set[tuple[int, float]]:
        _, values, times = counters.export(rows)
        return {(time - START_MS, v) for time, v in zip(times.tolist(), values[:, 0], strict=True)}

    state.engagement(event(0, 1.0), keys_I, halves, counters)
    state.engagement(event(10, 2.0), keys_I, halves, counters)
    rows = [k for one in FEATURES.operators.tracked[kind, False] for k in one.of(keys_I, halves).tolist()]
    assert state.withdraw(event(9, 2.0), keys_I, halves, counters) == []
    assert newest() == {(10, 2.0)}
    assert sorted(state.withdraw(event(10, 2.0), keys_I, halves, counters)) == sorted(rows)
    assert newest() == {(-1 - START_MS, 0.0)}
    state.engagement(event(5, 3.0), keys_I, halves, counters)
    assert newest() == {(5, 3.0)}

    fold, verdict = ItemCounters(FEATURES), Verdict(time_ms=1, user_id="u", quarantined=True)
    fold.engagement(event(0, 1.0), keys_I)
    fold.verdict(verdict, [event(0, 1.0)], lambda _: keys_I)
    assert (fold.counters.export(fold.take_changed())[2] == -1).sum() > 0


def test_a_withdrawal_leaves_the_contacts_of_what_stays() -> None:
    def click(item: str, request_id: str, hours: int) -> Engagement:
        about: dict[str, Any] = {"user_id": "u", "item_id": item, "kind": "click"}
        return Engagement(time_ms=START_MS + hours * HOUR_MS, request_id=request_id, **about)

    def keys_of(item_id: object) -> Any:
        return FEATURES.item_keys(str(item_id), {"brand": "b"})

    past = [click("v", "r1", 1), click("v", "r2", 2), click("w", "r2", 3)]
    fold, expected = ItemCounters(FEATURES), ItemCounters(FEATURES)
    for number, event in enumerate(past):
        fold.engagement(event, keys_of(event.item_id))
        if number == 0:
            expected.engagement(event, keys_of(event.item_id))
    named = Withdrawal(time_ms=START_MS, user_id="u", from_ms=START_MS, requests={"r2": []})
    fold.withdraw(named, past, keys_of)
    keys, column = fold.counters.export()[0], FEATURES.kinds.index("distinct(click.user)")
    left, right = (
        one.counters.read(keys, START_MS + 4 * HOUR_MS).reshape(len(keys), 2, -1)[..., column]
        for one in (fold, expected)
    )
    np.testing.assert_allclose(left, right, atol=1e-6)
    assert right.max() > 0.8 and len(fold.operators) == len(expected.operators) > 0


def test_newest_events_and_different_members_do_not_depend_on_the_order_of_viewers() -> None:
    def table(order: list[int]) -> list[Any]:
        counters, times = FEATURES.counter_table(), [10, 30, 30, 20]
        for n in order:
            counters.touch(np.array([7]), times[n] * 1_000, [1.0, 2.0, 3.0, 4.0][n])
            counters.add_distinct(np.array([8]), 5, np.array([-1]), times[n] * HOUR_MS)
        _index, values, last_ms = counters.arrays
        return [values[:1, :1], last_ms[:1], counters.read(np.array([8]), 40 * HOUR_MS)]

    first, *others = (table(order) for order in ([0, 1, 2, 3], [2, 1, 3, 0], [3, 2, 0, 1]))
    assert first[0] == 3.0 and first[1] == 30_000
    expected = sum(0.5 ** ((40 - hour) / 24) for hour in (10, 30, 30, 20))
    slow = len(FEATURES.kinds) + 5
    assert first[2][0, slow] == pytest.approx(expected, rel=1e-5)
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert two == pytest.approx(one, rel=1e-5)


def test_a_value_that_an_item_has_twice_counts_once() -> None:
    state, counters = OperatorState(FEATURES), FEATURES.counter_table()
    keys_I = FEATURES.item_keys("v", {"colours": ["red", "red"]})
    event = Engagement(time_ms=START_MS, request_id="r", user_id="u", item_id="v", kind="click", value=1e300)
    halves = {"": 1, "user.region": 5}
    keys = np.array(state.engagement(event, keys_I, halves, counters), np.int64)
    column = FEATURES.kinds.index("distinct(click.user)")
    assert len(keys) == 2 and len(state) == 2  # the item, and the region with one colour
    assert counters.read(keys, START_MS)[:, column].tolist() == [1, 1]
    assert FEATURES.amounts(replace_kind(event, "buy")).max() == np.float32(1e9)


def replace_kind(event: Engagement, kind: str) -> Engagement:
    return msgspec.structs.replace(event, kind=kind)


def test_entities_of_the_same_field_have_the_same_counts() -> None:
    """The first field of users and of contexts has two names."""
    names = ("profile×item", "context", "context×brand"), ("region×item", "page", "page×brand")
    dense = []
    for entities in (*names, (*names[0], *names[1])):
        features = replace(FEATURES, declared=Declared(entities=entities))
        server, width = FeatureReplay(features), 3 * features.span("rates").stop // len(entities)
        for event in events(40):
            for written in server.play(event):
                if isinstance(written, Impression) and written.features is not None:
                    newest = read_block(written.features, features).dense_NF
        dense += [newest[:, at : at + width] for at in range(0, len(entities) * width // 3, width)]
    assert len(dense) == 4 and dense[0].any(0).sum() > 10
    for other in dense[1:]:
        assert (other == dense[0]).all()


@pytest.mark.parametrize("way", ["plain", "profiling", "profile"])
def test_who_must_not_be_profiled_counts_for_no_field_of_users(way: str) -> None:
    state = OperatorState(FEATURES)
    fields = {"region": "north"} | ({"profiling": False} if way == "profiling" else {})
    state.user(User(time_ms=1, user_id="u", fields=fields))
    asked = RequestInputs(plain=way == "plain")
    context = {"page": "home", "device": "phone"}
    state.impression(
        Impression(time_ms=2, request_id="r", user_id="u", items=[], context=context, inputs=asked)
    )
    named = {"context.device", *(FEATURES.lefts if way == "profile" else ())}
    assert set(state.lefts("r")) == named


def test_fields_of_viewers_are_bounded_and_what_goes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIEWERS", "REQUESTS"):
        monkeypatch.setattr(f"recsys.features.operator_state.{name}", 3)
    state = OperatorState(FEATURES)
    for n in range(5):
        about: dict[str, Any] = {"request_id": f"r{n}", "user_id": f"u{n}", "items": []}
        state.impression(Impression(time_ms=n, context={"device": "phone"}, **about))
        state.user(User(time_ms=n, user_id=f"u{n}", fields={"region": "north"}))
    assert not state.lefts("r1") and state.lefts("r2") and state.evicted["requests"] == 2
    assert len(state._viewers) == 3 and state.evicted["viewers"] == 2


def test_rows_of_a_viewer_are_bounded_and_what_goes_is_counted() -> None:
    session = Session("u", FEATURES)
    most = 400 * FEATURES.operators.own_rows
    # Own: three newest events and three different values.
    assert FEATURES.operators.own_rows == 7
    for n in range(2 * most):
        about = {"request_id": f"r{n}", "user_id": "u", "item_id": f"v{n}"}
        event = Engagement(time_ms=START_MS + n, kind="click", **about)  # type: ignore[arg-type]
        session.fold_engagement(event, FEATURES.item_keys(f"v{n}", {"brand": f"b{n}"}))
        assert len(session.counters) <= 2 * most + 4
    assert session.evicted >= most


def test_an_event_with_a_value_of_another_type_is_refused_alone() -> None:
    about = {"type": "engagement", "time_ms": 1, "request_id": "r", "user_id": "u", "item_id": "v"}
    for value in ("much", None, float("nan"), [1]):
        with pytest.raises(Rejected, match=r"value is .* expected a"):
            parse(about | {"kind": "click", "value": value})
    event = parse(about | {"kind": "click", "value": 3})
    assert isinstance(event, Engagement) and event.value == 3.0
    assert b"value" not in encode(parse(about | {"kind": "click"}))  # as older versions wrote it


def test_a_session_without_operators_is_packed_as_by_older_versions() -> None:
    features = FeatureSet(FEED_SCHEMA)
    session = Session("u", features)
    session.fold_user(User(time_ms=1, user_id="u", fields={"country": "no", "age": 3}))
    shown: dict[str, Any] = {"request_id": "r", "user_id": "u"}
    surface = {"surface": "feed"}
    session.fold_impression(Impression(time_ms=2, items=[], context=surface, **shown), NO_ITEMS)
    event = Engagement(time_ms=3, item_id="v", kind="view", watch_ms=9, **shown)
    session.fold_engagement(event, features.item_keys("v", {"author": "a"}))
    assert digest_of(session.pack()) == "cf77ce6548372f4ff051a446cfe4ad08"


def test_a_feature_set_with_operators_is_read_as_it_was_written() -> None:
    again = msgspec.json.decode(encode_feature_set(FEATURES), type=FeatureSet)
    assert again == FEATURES and again.digest == FEATURES.digest
    assert again.dense_names == FEATURES.dense_names
