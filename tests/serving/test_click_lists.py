"""Clicks that a running system takes without a list: each is learned as the choice from one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.harness.archived_log import archive_log
from benchmarks.harness.local_system import START_MS, LocalSystem, small_config
from experiments.promotion.kinds.line_state import ServedLines
from plugins.answer_explanation.answer_check import AnswerChecker
from plugins.feature_audit.archive_audit import audit_features
from plugins.off_policy.logged_lists import chosen
from plugins.off_policy.target_policy import TargetPolicy
from recsys.app.app_file import app_of
from recsys.app.definition import App
from recsys.config.promotion_config import PromotionConfig
from recsys.events.event_types import Engagement, Event, Impression, Item, User, decode
from recsys.events.hashing import Id, uniform
from recsys.events.records import CLICK_LIST, EVENTS, EXAMPLES, Example, unpack
from recsys.features.feature_set_file import write_feature_set
from recsys.features.session import PLAIN_LIST, Session
from replay.direct_loop import DirectLoop
from replay.player import Player
from runtime.supervision import launch_plan
from runtime.supervision.launch_plan import Plan, RayPorts
from serving import live_clicks
from serving.access.caller import ANONYMOUS, SERVER, Caller
from serving.click_lists import AWAY, BUSY, FAILED, OLD, PLAIN, UNKNOWN, ClickLists
from serving.pipeline import Pipeline
from serving.request import Candidates, Request
from serving.retrieval.source_shares import recall_by_source
from serving.sessions.session_timeout import TimedSessionReader
from tests.support.serving.replica_harness import made
from tests.support.serving.service_harness import Broken
from training.candidates.rollback_impact import find_impact
from training.candidates.served_impressions import ServedImpressions

SHOP = """
events: {click: positive, purchase: {label: positive, weight: 5}, look: none}
fields: {item: {category: category}}
shown: clicks
repeats: true
window: 5s
features: {rates: [all, user, item, category, user×category], near: true, age: true, list: [item]}
"""
ITEMS = 60


class Shop(LocalSystem):
    """A system of a shop without lists; its visitors like one of six categories each."""

    def __init__(self, state: Path, app: App) -> None:
        config = app.config(small_config(state))
        write_feature_set(config, app.feature_set())
        super().__init__(replace(config, serve=replace(config.serve, candidates=20)))
        self.publish([item(n) for n in range(ITEMS)])

    async def send(self, *events: dict[str, Any], caller: Caller = SERVER, foreign: bool = False) -> Any:
        batch = await self.service.write_api.append_events(events, caller, foreign)
        assert batch.count("accepted") == len(events), batch.results
        return batch

    def logged(self) -> list[Event]:
        partitions = range(self.log.partitions(EVENTS))
        records = (self.log.read(EVENTS, p, 0, 100_000) for p in partitions)
        return [decode(record.value) for part in records for record in part]

    def examples(self) -> list[Example]:
        parts = (self.log.read(EXAMPLES, p, 0, 100_000) for p in range(self.log.partitions(EXAMPLES)))
        return [unpack(record.value, Example) for part in parts for record in part]

    def lists(self) -> list[Impression]:
        lists = [event for event in self.logged() if isinstance(event, Impression)]
        return sorted(lists, key=lambda shown: shown.time_ms)

    async def visit(self, clicks: int) -> None:
        for n in range(clicks):
            self.now_ms += 700
            user = f"u{n % 12}"
            liked = 6 * int(ITEMS // 6 * uniform(3, n)) + n % 6
            await self.send(click(self.now_ms, f"v{liked}", user))
            if n % 3 == 0:
                self.turn()


def item(n: int) -> Item:
    return Item(time_ms=START_MS, item_id=f"v{n}", fields={"category": f"c{n % 6}"})


def click(time_ms: int, item_id: str, user_id: str = "u1", kind: str = "click", **more: Any) -> Any:
    about = {"type": "engagement", "time_ms": time_ms, "user_id": user_id, "item_id": item_id}
    return about | {"kind": kind} | more


@asynccontextmanager
async def open_shop(folder: Path, text: str = SHOP) -> AsyncIterator[Shop]:
    shop = Shop(folder, app_of(text))
    await shop.start()
    yield shop
    await shop.stop()


def place_of_click(shown: Impression) -> float:
    """Share of the others that the model preferred to the clicked item."""
    predicted = np.frombuffer(shown.predicted, np.float32).reshape(len(shown.items), -1)[:, 0]
    return float((predicted[1:] >= predicted[0]).mean())


def run(folder: Path, scenario: Callable[[Shop], Awaitable[None]], text: str = SHOP) -> None:
    async def whole() -> None:
        async with open_shop(folder, text) as shop:
            await scenario(shop)

    asyncio.run(whole())


@pytest.mark.slow
def test_a_click_comes_after_the_list_that_replay_makes_of_it(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        await shop.visit(30)
        session = await shop.service.sessions.of("u1")
        shop.now_ms += 700
        sent = click(shop.now_ms, "v7")
        fresh = ClickLists(shop.service.live.pipeline)
        again = fresh.list_of(Engagement(request_id="", **{k: sent[k] for k in sent if k != "type"}), session)
        replica, builder = shop.service.replica, shop.service.live.pipeline.builder
        indices = np.array([replica.catalogue.index_of(i.item_id) for i in again.items])
        served = builder.build(
            session, "feed", {}, indices, replica.catalogue, replica.counters, shop.now_ms,
            is_list=True, covisits=replica.covisits,
        )  # fmt: skip
        await shop.send(sent)
        listed, clicked = [e for e in shop.logged() if getattr(e, "time_ms", 0) == shop.now_ms]
        assert isinstance(listed, Impression) and isinstance(clicked, Engagement)
        assert clicked.request_id == listed.request_id and clicked.item_id == "v7"
        assert [i.item_id for i in listed.items] == [i.item_id for i in again.items]
        assert listed.items[0].item_id == "v7" and 5 < len(listed.items) <= 7
        assert listed.features == builder.as_shown(served).block()
        assert listed.choice == again.choice is not msgspec.UNSET
        standing_N = np.frombuffer(listed.choice.standing, np.float32)
        candidates = shop.config.serve.candidates
        assert standing_N[0] in (0, 1) and set(standing_N[6:]) <= {0}
        assert standing_N[:6].sum() == pytest.approx(candidates - 1 + standing_N[0], abs=1)
        assert "u1" not in listed.request_id and listed.predicted
        assert not any(shown.sources for shown in listed.items)
        shop.turn()
        assert not recall_by_source(replica, shop.now_ms)  # nor do shares of sources follow clicks

    run(tmp_path, scenario)


@pytest.mark.slow
def test_what_is_clicked_is_learned(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        await shop.visit(300)
        first = [e for e in shop.examples() if not e.correction]
        by_list = {e.request_id: [x for x in first if x.request_id == e.request_id] for e in first}
        whole = [some for some in by_list.values() if len(some) >= 6]
        assert len(whole) > 200
        assert all(sum(e.labels[0] for e in some) == 1 for some in whole)
        assert shop.service.replica.step > 20
        assert np.mean(list(map(place_of_click, shop.lists()[-60:]))) < 0.25  # by chance 0.5

    run(tmp_path, scenario)


@pytest.mark.slow
def test_all_numbers_of_the_lists_can_be_computed_again(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        await shop.visit(60)
        archive_log(shop.log, tmp_path / "archive")
        launch_plan.write(shop.config, Plan(ray=RayPorts(*range(len(RayPorts.__struct_fields__)))))

    run(tmp_path, scenario)
    report = audit_features(tmp_path, 1.0, 1_000)
    assert (report.sampled, report.equal) == (60, 60), report
    assert not report.without_counters


@pytest.mark.slow
def test_a_replay_takes_the_lists_as_they_are(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        await shop.visit(40)
        loop = DirectLoop(shop.features, shop.config)
        player = Player(shop.features, shop.config, loop)
        for number in range(ITEMS):
            player.play(item(number))
        for event in sorted(shop.logged(), key=lambda event: event.time_ms):
            for played in player.as_lists(event):
                player.play(played)
        joined = sum(joiner.counts["examples"] for joiner in loop.joiners)
        assert joined == len([e for e in shop.examples() if not e.correction]) > 100

    run(tmp_path, scenario)


def test_a_purchase_belongs_to_the_list_of_its_click(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        now_ms = shop.now_ms
        await shop.send(click(now_ms, "v1"), click(now_ms + 1, "v1", kind="purchase"))
        shop.turn()
        await shop.restart_replica()  # only the session has the list now
        await shop.send(click(now_ms + 900, "v1", kind="purchase"), click(now_ms, "v2", kind="purchase"))
        lists = shop.lists()
        assert [shown.items[0].item_id for shown in lists] == ["v1", "v2"]
        clicked = (e for e in shop.logged() if isinstance(e, Engagement))
        bought = [e.request_id for e in clicked if e.kind == "purchase"]
        assert bought == [lists[0].request_id, lists[0].request_id, lists[1].request_id]

    run(tmp_path, scenario)


def test_the_same_click_again_has_the_same_list(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        bought = click(shop.now_ms, "v1", kind="purchase")
        await shop.send(bought)
        shop.service.write_api._validator = shop._service().write_api._validator
        await shop.send(bought)  # as by a replica that doesn't know of the first
        assert len({shown.request_id for shown in shop.lists()}) == 1 == len(shop.lists()) - 1
        shop.now_ms += 10_000
        await shop.send(click(shop.now_ms, "v2"))
        shop.turn()
        assert sum(e.labels[1] for e in shop.examples()) == 1

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "look"},
        {"time_ms": START_MS - 2 * 3_600_000, "why": OLD},
        {"item_id": "v999", "why": UNKNOWN},
        {"user_id": "plain", "why": PLAIN},
    ],
    ids=lambda event: str(event.get("why", next(iter(event)))),
)
def test_other_events_have_no_list(event: dict[str, Any], tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        shop.profile(User(time_ms=START_MS, user_id="plain", fields={"profiling": False}))
        shop.turn()
        why = event.pop("why", "")
        await shop.send(click(START_MS, "v1") | event)
        assert not shop.lists()
        if why == PLAIN:  # its id keeps it out of histories and co-visits, once the viewer has them again
            assert [e.request_id for e in shop.logged() if isinstance(e, Engagement)] == [PLAIN_LIST]
        assert +shop.service.clicks.lists.left_out == ({why: 1} if why else {})

    run(tmp_path, scenario)


def test_a_caller_whose_events_do_not_count_makes_no_list(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        user = Caller(user_id="u1")
        for caller in (ANONYMOUS, user):
            batch = await shop.send(click(START_MS, "v1"), caller=caller)
            assert batch.unproven.total() == 1
        assert not shop.lists()

    run(tmp_path, scenario)


def test_a_click_counts_without_the_session_store(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        shop.service.sessions.store = TimedSessionReader(Broken())
        await shop.send(click(START_MS, "v1"))
        assert not shop.lists() and shop.service.clicks.lists.left_out[AWAY] == 1
        assert [e.item_id for e in shop.logged() if isinstance(e, Engagement)] == ["v1"]

    run(tmp_path, scenario)


@pytest.mark.parametrize("why", [BUSY, FAILED])
def test_a_click_counts_where_a_list_takes_too_long_or_fails(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == BUSY:
        monkeypatch.setattr(live_clicks, "_CLICKS_S", 0.0)
    else:
        monkeypatch.setattr(Pipeline, "impression_of", None)

    async def scenario(shop: Shop) -> None:
        if why == BUSY:
            shop.service.sessions.store = TimedSessionReader(Broken())  # is not asked any more
        await shop.send(click(START_MS, "v1"))
        assert shop.service.sessions.misses == 0
        assert +shop.service.clicks.lists.left_out == {why: 1}
        assert [type(event) for event in shop.logged()] == [Engagement]

    run(tmp_path, scenario)


def test_a_click_in_a_served_list_is_learned_with_it_and_with_candidates(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        answer = await shop.ask(Request("u1", n=4))
        shop.turn()
        ids = [str(item.item_id) for item in answer.items]
        named = {"request_id": answer.request_id, "choice": "a client's"}
        await shop.send(click(shop.now_ms, ids[2], **named))
        served, candidates = shop.lists()
        (event,) = (e for e in shop.logged() if isinstance(e, Engagement))
        assert (event.request_id, event.choice) == (served.request_id, candidates.request_id)
        await shop.send(click(shop.now_ms + 1, ids[2], kind="purchase", **named))
        assert len(shop.lists()) == 2  # what follows in the list needs no candidates
        shop.now_ms += 6_000
        await shop.send(click(shop.now_ms, "v1", kind="look"))
        shop.turn()
        labelled = {
            name: [(str(e.item_id), *e.labels) for e in shop.examples() if e.request_id == name]
            for name in (served.request_id, candidates.request_id)
        }
        own, others = (
            [(i, *((1.0, 1.0) if i == ids[2] else (0.0, 0.0))) for i in some]
            for some in (ids, [str(shown.item_id) for shown in candidates.items])
        )
        assert labelled == {served.request_id: own, candidates.request_id: others}
        assert {e.request_id for e in shop.examples() if e.measured} == {served.request_id}
        assert candidates.items[0].item_id == ids[2] and len(others) >= 5

    run(tmp_path, scenario)


@pytest.mark.parametrize("text", [SHOP, SHOP.replace("shown: clicks", "shown: list")])
def test_lists_that_nobody_engages_with_change_nothing(text: str, tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        for n in range(40):
            await shop.ask(Request(f"u{n % 7}", n=5))
            shop.now_ms += 700
        shop.now_ms += 6_000
        other = await shop.ask(Request("other", n=5))
        proven = {
            "request_id": other.request_id,
            "token": shop.service.tokens.of(other, Request("other", n=5)),
        }
        await shop.send(click(shop.now_ms, str(other.items[0].item_id), "other", "look") | proven)
        shop.turn()
        examples = [e for e in shop.examples() if e.user_id != "other"]
        assert not examples and len(shop.lists()) == 41
        shown = shop.service.replica.popularity.shown
        assert shown.sum() == (5.0 if "shown: list" in text else 0.0)  # of the one that was confirmed
        session = await shop.service.sessions.of("u1")
        assert not session.seen and not session.history

    run(tmp_path, scenario, text)


def test_a_client_that_can_not_name_lists_may_mean_one_that_the_viewer_got(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        await shop.send(click(START_MS, "v1", "u2", request_id=""), foreign=True)
        assert len(shop.lists()) == 1
        answer = await shop.ask(Request("u1", n=3))
        shop.turn()
        shown = str(answer.items[0].item_id)
        await shop.send(click(shop.now_ms, shown, request_id=""), foreign=True)
        newest = [e for e in shop.logged() if isinstance(e, Engagement)][-1]
        assert newest.request_id == "" and newest.choice == shop.lists()[-1].request_id
        shop.now_ms += 6_000
        await shop.send(click(shop.now_ms, "v1", kind="look"))  # its window is over
        shop.turn()
        served = [e for e in shop.examples() if e.request_id == answer.request_id]
        assert [e.labels[0] for e in served] == [1.0, 0.0, 0.0]
        await shop.send(click(shop.now_ms + 1, shown))  # one that can says that it is of none
        assert len(shop.lists()) == 4

    run(tmp_path, scenario)


@pytest.mark.slow
def test_no_one_takes_such_a_list_for_an_answer(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        await shop.visit(30)
        request_id = shop.lists()[-1].request_id
        assert request_id.startswith(CLICK_LIST)
        check = AnswerChecker(shop.log, shop.config, shop.features).explain(request_id)
        assert "made of a click" in check.why
        assert not find_impact(shop.log, "main/0", START_MS, []).requests
        config = replace(shop.config, promotion=PromotionConfig(settle_s=60))
        lines, labels = ServedLines("main/0", "other/0", START_MS, 0.05), shop.features.schema.labels
        served = ServedImpressions(shop.log, lines, labels, config)
        served.read()
        assert not served._waiting and shop.examples()
        target = TargetPolicy("t", shop.config.policy, {"click": 1.0})
        assert not chosen(shop.log, 5_000, target, 1_000, Counter())

    run(tmp_path, scenario)


def test_no_removed_item_comes_from_the_whole_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "candidates", lambda *_: Candidates(None))  # type: ignore[arg-type]
    replica = made(items=40)
    builder, session = ClickLists(Pipeline(replica)), Session("u1", replica.features)

    def drawn(n: int) -> list[Id]:
        at_ms = START_MS + n
        of = Engagement(time_ms=at_ms, request_id="", user_id="u1", item_id="v3", kind="long_view")
        first, *others = builder.list_of(of, session).items
        assert first.item_id == "v3" and len(others) <= 1
        return [shown.item_id for shown in others]

    before = [*map(drawn, range(60))]
    gone = [Item(time_ms=1, item_id=f"v{n}", removed=True) for n in range(4, 40)]
    replica.apply_items(gone[16:], 60)
    after = [*map(drawn, range(60))]
    removed = [f"v{n}" for n in range(20, 40)]
    assert len({*map(tuple, before)}) > 20 and len({*map(tuple, after)}) > 10
    for old, new in zip(before, after, strict=True):
        assert old == new or old[0] in removed
        assert not new or new[0] not in removed
    replica.apply_items([*gone, *(msgspec.structs.replace(gone[0], item_id=f"v{n}") for n in range(4))], 100)
    assert [*map(drawn, range(60))] == [[]] * 60


def test_an_app_with_lists_wants_the_name_of_one(tmp_path: Path) -> None:
    async def scenario(shop: Shop) -> None:
        batch = await shop.service.write_api.append_events([click(START_MS, "v1")], SERVER)
        assert batch.results[0].error is not None and batch.results[0].error.field == "request_id"

    run(tmp_path, scenario, SHOP.replace("shown: clicks", "shown: list"))
