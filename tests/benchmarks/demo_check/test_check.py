"""The check of the demo: figures from measurements, a viewer against a feed made up here, books of a log."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.demo_check import check as demo_check
from benchmarks.demo_check import check_figures as figures
from benchmarks.demo_check.accounting import LogAccounting
from benchmarks.demo_check.check import Clock, Counts, FreshnessSample, VersionProbe, Viewer
from examples.short_video import demo_data, demo_start
from plugins.kuairand import download
from recsys.client import ApiError, Outcome, Receipt, Recommendations, Recommended
from recsys.events.event_types import Engagement, Impression, ServedItem, Stamp, encode
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, STEPS, Delta, Example, Range, Step, pack, topics
from recsys.log.protocol import Append, MemoryLog
from runtime.supervision.system_status import PartStatus, Status, Version

# --- figures ---


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = figures.percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_what_was_not_measured_keeps_no_bar() -> None:
    assert figures.percentile([], 0.95) is None
    assert not figures.at_most(None, 1.0).ok and not figures.at_least(None, 1.0).ok
    assert figures.at_most(1.0, 1.0).ok and not figures.at_most(1.001, 1.0).ok
    assert figures.at_least(1.0, 1.0).ok and not figures.at_least(0.999, 1.0).ok


def test_a_topic_that_was_not_there_counts_as_one_item() -> None:
    assert figures.ratio(0.0, 0.15, 20) == pytest.approx(3.0)
    assert figures.ratio(0.1, 0.3, 20) == pytest.approx(3.0)


def test_usual_topics_are_common_and_do_not_dominate() -> None:
    lists = [["big", "a"]] * 3 + [["big", "b"]] * 2 + [["big"]] * 94 + [["c"]]
    assert figures.common_topics(lists, 2) == ["a", "b"]
    assert figures.common_topics(lists, 9) == ["a", "b", "c"]


def _step(number: int, *ranges: Range) -> Step:
    return Step(
        line="main", epoch=0, step=number, ranges=list(ranges), examples=1, lanes=4, time_ms=0, config=""
    )


def test_a_view_is_served_from_the_first_answer_of_a_version_that_learned_it() -> None:
    steps = [_step(1, Range(0, 0, 5)), _step(2, Range(0, 5, 7), Range(1, 0, 1)), _step(3, Range(0, 7, 8))]
    places = {("r", "a"): (0, 4), ("r", "b"): (0, 5), ("r", "c"): (1, 0), ("r", "d"): (0, 9)}
    learned = figures.learned_at(places, steps)
    assert learned == {("r", "a"): 1, ("r", "b"): 2, ("r", "c"): 2}
    acknowledged = {key: 10.0 for key in places}
    answers = [(9.0, 3), (10.5, 0), (11.0, 1), (12.0, 3)]  # the first is from before the view
    delays = figures.served_delays(acknowledged, learned, answers)
    assert delays == [1_000.0, 2_000.0, 2_000.0, math.inf]


def test_the_loss_is_put_beside_that_of_the_mean_rate() -> None:
    steps = [{"loss.click": 3.0, "happened.click": 1.0, "examples": 4.0}, {"examples": 4.0}]
    loss, rate_alone = figures.prequential(steps, "click") or (0, 0)
    assert loss == pytest.approx(3 / 8)
    assert rate_alone == pytest.approx(-(1 / 8) * math.log(1 / 8) - (7 / 8) * math.log(7 / 8))
    assert figures.prequential([], "click") is None


# --- the viewer ---


class Feed:
    """Serves items of ten topics in turn; after ``slow`` asks for it, a session knows what was viewed.

    ``learns``: how much of a list is of the topic that the user liked last, at most; ``varied``: less of it
    after few likes, and spread."""

    def __init__(self, learns: float = 0.8, slow: int = 2, lag: int = 0, varied: bool = True) -> None:
        self.learns, self.slow, self.lag, self.varied = learns, slow, lag, varied
        self.tags: dict[str, str] = {}
        self.now_s = 0.0
        self.served = self.step = 0
        self.liked: dict[str, list[str]] = {}
        self.viewed: dict[str, list[str]] = {}
        self.asked = 0
        self.events: list[Engagement] = []
        self.fails = 0

    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, lambda: int(self.now_s * 1000), self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def recommend(self, user_id: Any, n: int) -> Recommendations:
        self.now_s += 0.01
        self.served += 1
        liked = self.liked.get(str(user_id), [])
        items = []
        for rank in range(n):
            share = min(self.learns, len(liked) / (len(liked) + 2)) if self.varied else self.learns
            spread = int((rank + 1) * share + 1e-9) > int(rank * share + 1e-9)
            own = liked and (spread if self.varied else rank < share * n)
            tag = liked[-1] if own else f"t{(self.served + rank) % 10}"
            if self.varied and liked and not own and tag == liked[-1]:
                tag = f"t{(self.served + rank + 1) % 10}"
            fields = {"tags": [tag], "duration_ms": 5_000}
            self.tags[f"i{self.served}.{rank}"] = tag
            items.append(Recommended(item_id=f"i{self.served}.{rank}", rank=rank, fields=fields))
        return Recommendations(
            request_id=f"r{self.served}", items=items, stamp=Stamp(step=max(0, self.step - self.lag))
        )

    def send_events(self, events: Sequence[Engagement]) -> Receipt:
        self.now_s += 0.01
        self.events += events
        self.step += 1
        for event in events:
            user = str(event.user_id)
            if event.kind == "like":
                self.liked.setdefault(user, []).append(self.tags[str(event.item_id)])
            if event.kind == "view":
                self.viewed.setdefault(user, []).insert(0, str(event.item_id))
                self.asked = 0
        return Receipt(len(events), [Outcome("accepted")] * len(events))

    def session(self, user_id: Any) -> dict[str, Any]:
        self.now_s += 0.002
        self.asked += 1
        if self.fails:
            self.fails -= 1
            raise ApiError("GET", "/v1/sessions", 503, "late")
        known = self.viewed.get(str(user_id), [])[0 if self.asked > self.slow else 1 :]
        return {"recent": [{"item_id": item} for item in known]}


def _viewer(feed: Feed) -> Viewer:
    return Viewer(feed, feed.clock(), Counts())


def test_a_feed_that_learns_within_the_session_keeps_the_bar() -> None:
    viewer = _viewer(Feed(learns=0.8))
    tried = [demo_check.try_topic(viewer, tag) for tag in demo_check.choose_topics(viewer)]
    found = demo_check.topic_figures(tried)
    assert len(tried) == 5
    assert found["topic_ratio"].ok and found["topic_ratio"].value == pytest.approx(8.0, abs=1.0)
    assert found["topic_share_of_others"].value == pytest.approx(0.1)
    assert all(figure.ok for figure in found.values())
    assert found["topic_share_after_1"].value == pytest.approx(0.3, abs=0.04)
    assert found["topic_share_after_10"].value == pytest.approx(0.8, abs=0.05)


def test_lists_full_of_what_was_liked_once_fail_the_bars_of_variety() -> None:
    viewer = _viewer(Feed(learns=0.8, varied=False))
    found = demo_check.topic_figures([demo_check.try_topic(viewer, "t3")])
    assert not found["topic_share_after_1"].ok and not found["topic_longest_run"].ok
    assert figures.longest_run("a", [["a"], ["b"], ["a", "b"], ["a"], []]) == 2


def test_a_feed_that_does_not_learn_fails_the_bar() -> None:
    viewer = _viewer(Feed(learns=0.0))
    tried = [demo_check.try_topic(viewer, tag) for tag in demo_check.choose_topics(viewer)]
    assert not demo_check.topic_figures(tried)["topic_ratio"].ok
    assert not demo_check.topic_figures(tried[:2])["topics"].ok


def test_ten_of_the_topic_are_liked_and_all_others_skipped_quickly() -> None:
    feed = Feed()
    tried = demo_check.try_topic(_viewer(feed), "t3")
    kinds = [event.kind for event in feed.events]
    assert kinds.count("like") == 10
    assert kinds.count("view") == tried.swipes
    assert kinds.count("skip") == tried.swipes - 10
    assert len({event.event_id for event in feed.events}) == len(feed.events)


def test_a_delay_runs_from_the_acknowledgement_to_the_session_that_knows() -> None:
    feed, sampled = Feed(slow=3), FreshnessSample()
    demo_check.sample(_viewer(feed), sampled, 25)
    assert len(sampled.acknowledged) == 25
    # Four asks of 2 ms, three waits of 5 ms between them.
    assert sampled.to_session_ms == pytest.approx([23.0] * 25)


def test_a_session_that_never_knows_is_late_and_one_that_is_refused_is_asked_again() -> None:
    feed, sampled = Feed(slow=10**9), FreshnessSample()
    demo_check.sample(_viewer(feed), sampled, 1)
    assert sampled.to_session_ms[0] > 5_000
    feed = Feed(slow=0)
    feed.fails, sampled = 3, FreshnessSample()
    demo_check.sample(_viewer(feed), sampled, 1)
    assert sampled.to_session_ms == pytest.approx([23.0])


def test_freshness_figures_need_samples_load_and_versions() -> None:
    sampled = FreshnessSample({("r", str(n)): 0.0 for n in range(100)}, [20.0] * 100, [(1.0, 7)])
    steps = {("r", str(n)): 7 for n in range(100)}
    good = demo_check.delay_figures(sampled, steps, 190.0, 200.0)
    assert all(figure.ok for figure in good.values())
    assert good["click_to_served_p95_ms"].value == 1_000.0
    unlearned = demo_check.delay_figures(sampled, {}, 190.0, 200.0)
    assert not unlearned["click_to_served_p95_ms"].ok
    assert not demo_check.delay_figures(sampled, steps, 100.0, 200.0)["background_events_per_s"].ok
    assert not demo_check.delay_figures(FreshnessSample(), {}, 190.0, 200.0)["samples"].ok


def test_the_watcher_notes_versions_and_survives_refusals() -> None:
    import time

    class Refusing(Feed):
        def recommend(self, user_id: Any, n: int) -> Recommendations:
            self.step += 1
            if self.step == 1:
                raise ApiError("POST", "/v1/recommend", 503, "full")
            return super().recommend(user_id, n)

    feed, sampled = Refusing(), FreshnessSample()
    viewer = _viewer(feed)
    with VersionProbe(viewer, sampled):
        deadline = time.monotonic() + 30
        while len(sampled.answers) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [step for _, step in sampled.answers][:2] == [2, 3]
    assert viewer.counts.refused == 1


# --- the books ---


def _event(n: int, event_id: str) -> Append:
    event = Engagement(time_ms=n, request_id="r", user_id=n, item_id=n, kind="view", event_id=event_id)
    return Append(n % 2, b"", encode(event))


def test_books_count_what_clients_sent_once_and_only_since_the_mark(tmp_path: Path) -> None:
    from training.archive.writer import Archive

    log = MemoryLog()
    for topic in topics(2):
        log.create(topic)
    log.append(EVENTS, [_event(0, "before"), _event(1, "before, too")])
    log.append(EXAMPLES, [Append(0, b"", b"?")])
    books = LogAccounting(log)
    assert books.examples_before() == 1
    served = Impression(
        time_ms=5, request_id="r", user_id=1, items=[ServedItem(item_id=1)], degraded=["model"]
    )
    log.append(EVENTS, [_event(2, "a"), _event(4, "a"), _event(3, "b"), _event(3, "b:long_view"),
                        Append(0, b"", encode(served))])  # fmt: skip
    entries = books.events()
    assert (entries.engagements, entries.impressions, entries.degraded) == (2, 1, 1)
    archive = Archive(log, tmp_path, lambda: 0)
    assert books.archived(tmp_path, entries) == 0
    archive.turn()
    archive.flush()
    assert books.archived(tmp_path, entries) == 2


def test_books_know_where_examples_stand_and_what_steps_published() -> None:
    log = MemoryLog()
    for topic in topics(2):
        log.create(topic)
    books = LogAccounting(log)
    for index, correction in ((0, False), (0, True), (1, False)):
        example = Example(partition=1, offset=9, index=index, sequence=1, request_id="r", user_id=1,
                          item_id=index, surface="feed", shown_ms=0, closed_ms=0, labels=[1.0],
                          correction=correction)  # fmt: skip
        log.append(EXAMPLES, [Append(1, b"", pack(example))])
    assert books.examples() == {("r", "0"): (1, 0), ("r", "1"): (1, 2)}
    log.append(STEPS, [Append(0, b"", pack(_step(1, Range(1, 0, 3))))])
    assert figures.learned_at(books.examples(), books.steps()) == {("r", "0"): 1, ("r", "1"): 1}
    for part in (0, 1, 0):  # a line that goes back publishes a step again
        delta = Delta(line="main", epoch=0, step=1, base_step=0, part=part, parts=2,
                      metrics={"examples": 2.0} if part == 0 else {})  # fmt: skip
        log.append(DELTAS, [Append(0, b"", pack(delta))])
    assert books.metrics() == [{"examples": 2.0}]
    assert books.dead_letters() == 0


# --- the demo around it ---


def test_behind_counts_what_has_to_flow_yet() -> None:
    parts = [
        PartStatus(name="joiner", state="ready", lag={"events": 30}),
        PartStatus(name="counters", state="ready", lag={"events": 40}),
        PartStatus(name="sequencer", state="ready", lag={"examples": 5}, gauges={"waiting": 7.0}),
    ]

    def status(**more: Any) -> Status:
        return Status(state="", running=True, ready=True, parts=parts, **more)

    cut, served = Version("main", 0, 9), Version("main", 0, 4)
    assert demo_start.behind(status(cut=cut, served=served)) == {"events": 40, "examples": 12, "steps": 5}
    assert demo_start.behind(status())["steps"] == 1  # nothing cut and nothing served: not there yet


def test_the_data_is_what_was_named_else_what_is_there_else_the_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = demo_data.warmup_from_world(10**12, requests=5, items=20)
    monkeypatch.setattr(demo_data, "warmup_from_world", lambda now_ms: small)
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    (tiny / "dataset.yaml").write_text("name: tiny\nlabels: [click]\nwindow_s: 60\nall_shown: true\n")
    (tiny / "events.jsonl").write_text(
        '{"type":"impression","time_ms":5,"request_id":"r","user_id":1,"items":[{"item_id":1}]}\n'
    )

    def no_network(source: Any, folder: Path) -> None:
        raise download.NotFetched("no network")

    monkeypatch.setattr(demo_data, "_BESIDE", tmp_path / "beside")
    monkeypatch.setattr(download, "fetch_with_bar", no_network)

    def choose(named: str) -> tuple[str, str]:
        monkeypatch.setenv("RECSYS_DATA", named)
        past, why = demo_data.choose(10**12)
        return past.name, why

    assert choose(named=str(tiny)) == ("tiny", f"{tiny}, as RECSYS_DATA says")
    assert choose(named="")[0] == "world" and "no network" in choose(named="")[1]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "plugins.kuairand.reader", None)  # as without polars
        assert choose(named="")[0] == "world" and "pip install" in choose(named="")[1]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kuairand").symlink_to(tiny)
    assert choose(named="")[0] == "tiny"
    assert choose(named="world")[0] == "world"
