"""The whole loop in one process: it learns, it reacts, and it does so the same way every time."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.harness.answering_player import AnsweringPlayer
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Impression, Item, ServedItem, User
from recsys.events.hashing import key_of
from recsys.events.records import Example
from replay.direct_loop import DirectLoop
from replay.offline_examples import JoinLoop
from replay.player import Player, ScoredImpression
from serving.request import Request
from tests.support.training.small_crowd import (
    FEATURES,
    START_MS,
    TOPICS,
    Crowd,
    crowd_config,
    items,
    share,
    topic_of,
)
from training.offline.cache import CacheWriter

pytestmark = pytest.mark.slow

MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    its = Crowd()
    its.run(320)
    return its


def test_the_loop_learns_what_people_like(crowd: Crowd) -> None:
    """At random an eighth of a list is liked with 0.9, the rest with 0.1: 0.2 in the mean."""
    first, last = np.mean(crowd.likings[:40]), np.mean(crowd.likings[-80:])
    assert first < 0.4 and last > 0.5
    assert crowd.player.replica.step > 40


def test_a_session_answers_ten_likes_before_anything_is_learned(crowd: Crowd) -> None:
    before, after = [], []
    for topic in (1, 4, 6):
        user, now_ms, player = f"new{topic}", crowd.now_ms, crowd.player
        learned = crowd.loop.digest()
        crowd.loop.sequencer.cut = lambda now_ms: None  # type: ignore[method-assign]
        try:
            before.append(share(player.recommend(Request(user, n=20), now_ms), topic))
            about = [f"v{n}" for n in range(crowd.num_items) if topic_of(f"v{n}") == topic]
            for item_id in about[:100:10]:
                now_ms += 10_000
                like(player, user, item_id, now_ms)
            after.append(share(player.recommend(Request(user, n=20), now_ms), topic))
        finally:
            del crowd.loop.sequencer.cut
        assert crowd.loop.digest() == learned
    assert np.mean(after) >= 3 * max(np.mean(before), 1 / TOPICS)
    assert min(after) > 0.4


def like(player: AnsweringPlayer, user: str, item_id: str, now_ms: int) -> None:
    answer = player.recommend(Request(user, n=1, candidate_ids=(item_id,)), now_ms)
    for kind, watch_ms in (("long_view", 8_000), ("like", None), ("view", 8_000)):
        player.play(
            Engagement(
                time_ms=now_ms + 8_000, request_id=answer.request_id, user_id=user,
                item_id=item_id, kind=kind, watch_ms=watch_ms,
            )
        )  # fmt: skip


def short(config: Config) -> Crowd:
    its = Crowd(config, people=12, num_items=160)
    its.run(45)
    return its


def test_the_same_crowd_gives_the_same_model_twice_and_on_any_number_of_shards() -> None:
    one, again, two = (short(crowd_config(shards=shards)) for shards in (1, 1, 2))
    assert one.loop.digest() == again.loop.digest() == two.loop.digest()
    assert one.likings == again.likings == two.likings
    dense = [its.player.replica.model.read_dense().tobytes() for its in (one, two)]
    assert dense[0] == dense[1]
    assert one.player.replica.step > 5


# --- a log of the past -------------------------------------------------------------------------


def shown(request: str, user: str, *item_ids: str, at_ms: int) -> Impression:
    served = [ServedItem(item_id=i) for i in item_ids]
    return Impression(time_ms=at_ms, request_id=request, user_id=user, items=served, shown=True)


ALL_SHOWN = replace(FEATURES, schema=replace(FEATURES.schema, shown_by="impression"))


def clicked(request: str, user: str, item_id: str, at_ms: int) -> Engagement:
    return Engagement(time_ms=at_ms, request_id=request, user_id=user, item_id=item_id, kind="long_view")


class Past:
    """A player over a log, with what it scored."""

    def __init__(self, sync_every_ms: int = 0, frozen_after_ms: int | None = None) -> None:
        config = crowd_config()
        self.loop = DirectLoop(ALL_SHOWN, config, frozen_after_ms)
        self.scored: list[ScoredImpression] = []
        self.player = Player(
            ALL_SHOWN, config, self.loop, sync_every_ms=sync_every_ms, on_scored=self.scored.append
        )
        for item in items(16):
            self.player.play(item)

    def run(self, requests: int) -> "Past":
        for n in range(requests):
            at_ms = START_MS + n * MINUTE_MS
            user = f"u{n % 3}"
            self.player.play(shown(f"r{n}", user, f"v{n % 16}", f"v{(n + 5) % 16}", at_ms=at_ms))
            if n % 2:
                self.player.play(clicked(f"r{n}", user, f"v{n % 16}", at_ms + 30_000))
        self.player.flush()
        return self

    def steps(self) -> list[int]:
        return [s.step for s in self.scored]


def test_every_impression_is_scored_once_in_order_with_the_version_of_its_time() -> None:
    past = Past().run(40)
    assert [s.impression.request_id for s in past.scored] == [f"r{n}" for n in range(40)]
    assert all(s.probabilities_NL.shape == (2, 3) for s in past.scored)
    steps = past.steps()
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] > 5
    assert past.loop.joiners[0].counts["examples"] > 0
    assert len(past.loop.log.read("examples", 0, past.loop.log.begin("examples", 0))) < 20  # trimmed


def test_a_score_does_not_hang_on_the_impressions_scored_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    together = Past().run(40)
    monkeypatch.setattr("replay.player._FLUSH", 1)
    alone = Past().run(40)
    for a, b in zip(together.scored, alone.scored, strict=True):
        assert a.probabilities_NL.tobytes() == b.probabilities_NL.tobytes() and a.step == b.step


def test_updates_held_back_come_at_multiples_of_the_interval() -> None:
    every_ms = 15 * MINUTE_MS
    live, held = Past().run(60), Past(sync_every_ms=every_ms).run(60)
    assert held.loop.digest() == live.loop.digest()  # what is learned is the same
    assert len(set(held.steps())) <= 60 * MINUTE_MS // every_ms + 1 < len(set(live.steps()))
    for before, after in zip(held.scored, held.scored[1:], strict=False):
        if before.step != after.step:
            times = before.impression.time_ms, after.impression.time_ms
            assert times[0] // every_ms < times[1] // every_ms
    assert all(h <= s for h, s in zip(held.steps(), live.steps(), strict=True))


def test_frozen_parameters_stay_while_sessions_go_on() -> None:
    at_ms = START_MS + 20 * MINUTE_MS
    live, frozen = Past().run(60), Past(frozen_after_ms=at_ms).run(60)
    after = [s for s in frozen.scored if s.impression.time_ms > at_ms + 2 * MINUTE_MS]
    assert len({s.step for s in after}) == 1 and 0 < after[-1].step < live.steps()[-1]
    assert frozen.scored[10].probabilities_NL.tobytes() == live.scored[10].probabilities_NL.tobytes()
    again = Past(frozen_after_ms=at_ms).run(22)
    assert again.loop.digest() == frozen.loop.digest()
    ages = {s.probabilities_NL.tobytes() for s in after}
    assert len(ages) == len(after)  # the features move
    assert frozen.player.session("u1").events == live.player.session("u1").events > 5


def test_nothing_of_later_events_reaches_an_earlier_score() -> None:
    whole, part = Past().run(40), Past().run(25)
    for a, b in zip(whole.scored, part.scored, strict=False):
        assert a.probabilities_NL.tobytes() == b.probabilities_NL.tobytes()
        assert a.impression.features == b.impression.features


def test_a_warm_up_is_folded_and_not_learned() -> None:
    past = Past()
    for n in range(30):
        at_ms = START_MS + n * MINUTE_MS
        past.player.fold(shown(f"r{n}", "u1", f"v{n % 16}", at_ms=at_ms))
        past.player.fold(clicked(f"r{n}", "u1", f"v{n % 16}", at_ms + 10))
    past.player.advance(START_MS + 100 * MINUTE_MS)
    assert past.player.replica.step == 0 and not past.scored
    assert past.player.session("u1").events == 30
    assert len(past.player.item_counters.counters) > 16


def test_a_warm_up_counts_for_items_what_viewers_did_who_need_no_session() -> None:
    all_of, some = Past(), Past()
    for past, viewers in ((all_of, None), (some, {"u2"})):
        for user in ("u1", "u2"):
            past.player.fold(shown(f"r{user}", user, "v1", at_ms=START_MS), viewers)
            past.player.fold(clicked(f"r{user}", user, "v1", START_MS + 10), viewers)
    assert all_of.player.sessions.keys() == {"u1", "u2"} and some.player.sessions.keys() == {"u2"}
    assert all_of.player.session("u2").pack() == some.player.session("u2").pack()
    tables = [past.player.item_counters.counters.export() for past in (all_of, some)]
    assert all(np.array_equal(*pair) for pair in zip(*tables, strict=True))


def test_an_item_that_was_never_published_is_scored_and_may_come_later() -> None:
    past = Past()
    past.player.play(shown("r1", "u1", "strange", "v1", at_ms=START_MS))
    past.player.play(clicked("r1", "u1", "other", START_MS + 5))
    past.player.flush()
    assert past.scored[0].probabilities_NL.shape == (2, 3)
    past.player.play(Item(time_ms=START_MS + 9, item_id="strange", fields={"author": "a1.0"}))
    index = past.player.replica.catalogue.index_of("strange")
    assert index is not None and past.player.replica.catalogue.fields[index]["author"] == "a1.0"


def test_a_user_who_wants_to_be_forgotten_is_a_stranger_again() -> None:
    past = Past().run(6)
    past.player.play(User(time_ms=START_MS + 9 * MINUTE_MS, user_id="u1", fields={"country": "de"}))
    assert past.player.session("u1").events and past.player.session("u1").profile
    past.player.play(User(time_ms=START_MS + 9 * MINUTE_MS, user_id="u1", removed=True))
    session = past.player.session("u1")
    assert (session.events, session.profile, len(session.history)) == (0, [], 0)
    assert past.player.session("u2").history


def test_users_of_a_log_close_windows_and_what_was_learned_of_the_gone_is_forgotten() -> None:
    past, end_ms, row = Past().run(6), START_MS + 60 * MINUTE_MS, key_of("user", "u1")
    examples = sum(joiner.counts["examples"] for joiner in past.loop.joiners)
    for user in ("u0", "u1", "u2"):
        past.player.play(User(time_ms=end_ms, user_id=user, fields={"country": "de"}))
    assert sum(joiner.counts["examples"] for joiner in past.loop.joiners) == 12 > examples
    past.player.advance(end_ms + MINUTE_MS)
    (shard,) = past.loop.client.shards
    assert row in shard.export()[0]["table/users/keys"]
    past.player.play(User(time_ms=end_ms + MINUTE_MS, user_id="u1", removed=True))
    past.player.advance(end_ms + 2 * MINUTE_MS)
    assert row not in shard.export()[0]["table/users/keys"]


class Cached:
    """A cache of examples, in memory."""

    def __init__(self) -> None:
        self.examples: list[Example] = []

    def add(self, examples: list[Example], times_ms: list[int]) -> None:
        self.examples += examples


@pytest.mark.parametrize("ends", [{"fields": {"country": "de"}}, {"removed": True}])
def test_a_user_who_goes_takes_open_lists_from_an_offline_job(ends: dict[str, Any]) -> None:
    cached, config = Cached(), crowd_config()
    loop = JoinLoop(config, ALL_SHOWN.schema, cast(CacheWriter, cached))
    player = Player(ALL_SHOWN, config, loop)
    for n in range(3):
        player.play(shown(f"r{n}", "u1", "v1", "v2", at_ms=START_MS + n * 40_000))
    player.play(User(time_ms=START_MS + 81_000, user_id="u1", **ends))
    player.play(shown("r3", "u1", "v1", at_ms=START_MS + 10 * MINUTE_MS))
    loop.flush()
    offsets = sorted({example.offset for example in cached.examples})
    assert offsets == ([0] if "removed" in ends else [0, 1, 2])


def test_an_empty_list_is_an_impression_of_nothing() -> None:
    past = Past()
    past.player.play(shown("r1", "u1", at_ms=START_MS))
    past.player.play(shown("r2", "u1", "v1", at_ms=START_MS + 1))
    past.player.flush()
    assert [len(s.probabilities_NL) for s in past.scored] == [0, 1]
