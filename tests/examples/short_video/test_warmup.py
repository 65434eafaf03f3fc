"""Warm-up: a past on a real log, as the server would have written it, each event once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from examples.short_video import demo_data, warmup
from examples.short_video.dataset_warmup import warmup_from_dataset
from examples.short_video.feature_replay import FeatureReplay
from examples.short_video.warmup import WarmupData, warm_up
from recsys.config.system_config import Config
from recsys.events.event_types import (
    Engagement,
    Event,
    Impression,
    Item,
    ServedItem,
    User,
    decode,
    event_id_of,
)
from recsys.events.field_schema import Schema
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS, ITEMS, topics
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append, LogUnavailable, MemoryLog
from training.joining.joiner import Joiner

NOW_MS = 1_790_000_000_000
PAST = demo_data.warmup_from_world(1_700_000_000_000, requests=60, items=300)
FEATURES = FeatureSet(PAST.schema)


class Toy:
    """A data set of a few impressions whose clicks are known and whose views aren't."""

    name, labels, window_s = "toy", ["click"], 60.0
    vectors: dict[str, int] = {}
    utc_offset_h, repeats = 0.0, 0
    dead_letters: Counter[str] = Counter()
    schema = Schema(
        item=(("tags", "categorical"),), context=(("tab", "categorical"),), labels=("click",),
        groups=("tags",), shown_by="impression",
    )  # fmt: skip

    def events(self, from_ms: int | None = None, until_ms: int | None = None) -> Iterator[Event]:
        yield Item(time_ms=0, item_id=1, fields={"tags": ["a"]})
        yield User(time_ms=0, user_id=7, fields={"age": "old"})
        yield User(time_ms=0, user_id=8, fields={"age": "new"})
        for n, tab in enumerate("1121"):
            at_ms = 1_000_000 + n * 10_000
            served, request_id = [ServedItem(item_id=1), ServedItem(item_id=2)], f"r{n}"
            shown = Impression(
                time_ms=at_ms, request_id=request_id, user_id=7, items=served, context={"tab": tab}
            )
            click = Engagement(
                time_ms=at_ms + 5_000, request_id=request_id, user_id=7, item_id=1, kind="click"
            )
            for event in (shown, click):
                if from_ms is None or event.time_ms >= from_ms:
                    yield event

    def warmup(self) -> Iterator[Event]:
        return iter(())


def _log() -> MemoryLog:
    log = MemoryLog()
    for topic in topics(4):
        log.create(topic)
    return log


def _written(log: MemoryLog) -> list[list[bytes]]:
    return [
        [record.value for record in log.read(topic, partition, 0, 10**6)]
        for topic in (ITEMS, EVENTS)
        for partition in range(log.partitions(topic))
    ]


def _warm(state: Path, log: MemoryLog, past: WarmupData = PAST) -> warmup.Progress:
    config = Config(state=str(state))
    return warm_up(log, FeatureSet(past.schema), config, past)


def _events(past: WarmupData = PAST, now_ms: int = NOW_MS) -> list[Event]:
    served = FeatureReplay(FeatureSet(past.schema), shift_ms=now_ms - past.last_ms)
    return [event for before in past.events() for event in served.play(before)]


def test_everything_stands_on_the_log_in_order_and_in_its_partition(tmp_path: Path) -> None:
    log = _log()
    warmup.begin(tmp_path, PAST, NOW_MS)
    assert warmup.pending(tmp_path)
    progress = _warm(tmp_path, log)
    assert not warmup.pending(tmp_path)
    assert (progress.impressions, progress.expected) == (60, 60)
    assert progress.items == log.end(ITEMS, 0) >= 300
    newest = 0
    for partition in range(4):
        events = [decode(record.value) for record in log.read(EVENTS, partition, 0, 10**6)]
        times = [event.time_ms for event in events]
        assert times == sorted(times)
        assert all(partition_of(e.user_id, 4) == partition for e in events)  # type: ignore[union-attr]
        newest = max(newest, *times)
    assert newest == NOW_MS


class _Failing(MemoryLog):
    """Fails at one append, before or after it is committed."""

    def __init__(self, at: int, after: bool) -> None:
        super().__init__()
        self.appends, self.at, self.after = 0, at, after

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        self.appends += 1
        if self.appends == self.at and not self.after:
            raise LogUnavailable("away")
        offsets = super().append(topic, records)
        if self.appends == self.at:
            raise LogUnavailable("away")
        return offsets


@pytest.mark.parametrize("at", [1, 3, 4, 5])
@pytest.mark.parametrize("after", [False, True])
def test_a_warm_up_that_was_killed_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, after: bool
) -> None:
    monkeypatch.setattr(warmup, "BATCH", 200)
    whole = _log()
    warmup.begin(tmp_path / "whole", PAST, NOW_MS)
    _warm(tmp_path / "whole", whole)
    broken = _Failing(at, after)
    for topic in topics(4):
        broken.create(topic)
    warmup.begin(tmp_path / "broken", PAST, NOW_MS)
    with pytest.raises(LogUnavailable):
        _warm(tmp_path / "broken", broken)
    assert warmup.pending(tmp_path / "broken")
    _warm(tmp_path / "broken", broken)
    for ours, theirs in zip(_written(broken), _written(whole), strict=True):
        assert list(dict.fromkeys(ours)) == theirs  # the repeats are the same bytes: they count once
        assert len(ours) - len(theirs) <= 200 * after


@pytest.mark.slow
def test_it_is_done_once_and_with_one_past(tmp_path: Path) -> None:
    log = _log()
    warmup.begin(tmp_path, PAST, NOW_MS)
    _warm(tmp_path, log)
    before = _written(log)
    _warm(tmp_path, log)
    assert _written(log) == before
    with pytest.raises(ValueError, match="'world', expected 'toy'"):
        _warm(tmp_path, log, warmup_from_dataset(Toy()))


def test_features_are_those_that_the_server_in_replay_writes() -> None:
    from replay.direct_loop import DirectLoop
    from replay.player import Player

    class Kept(DirectLoop):
        def append(self, event: Event) -> None:
            kept.append(event)

    kept: list[Event] = []
    player = Player(FEATURES, Config(), Kept(FEATURES, Config()))
    for event in PAST.events():
        player.play(event)
    theirs = {e.request_id: e.features for e in kept if isinstance(e, Impression)}
    ours = {e.request_id: e.features for e in _events(now_ms=PAST.last_ms) if isinstance(e, Impression)}
    assert len(ours) == 60
    assert ours == theirs


def test_every_item_that_was_shown_becomes_one_example() -> None:
    events = _events()
    views = sum(isinstance(e, Engagement) and e.kind == "view" for e in events)
    joiner = Joiner(0, PAST.schema.labels, Config().join)
    examples = []
    for offset, event in enumerate(events):
        examples += joiner.feed(offset, event)
    assert sum(not example.correction for example in examples) == views > 100
    assert joiner.counts["late"] == joiner.counts["repeats"] == 0


def test_ids_hang_on_the_event_alone() -> None:
    ids = [event_id_of(event) for event in _events()]
    assert len(set(ids)) == len(ids)
    assert ids == [event_id_of(event) for event in _events(now_ms=NOW_MS + 12_345)]


def test_a_user_is_told_when_they_come_and_only_then() -> None:
    users = [event for event in _events(warmup_from_dataset(Toy())) if isinstance(event, User)]
    assert [user.user_id for user in users] == [7]
    assert users[0].time_ms > NOW_MS - 1_000_000


def test_the_end_of_a_data_set_is_taken_with_what_belongs_to_it() -> None:
    past = warmup_from_dataset(Toy(), limit=2)
    assert past.impressions == 2
    found = _events(past)
    assert [e.request_id for e in found if isinstance(e, Impression)] == ["r2", "r3"]
    assert {e.request_id for e in found if isinstance(e, Engagement)} == {"r2", "r3"}
    assert max(event.time_ms for event in found) == NOW_MS


def test_the_common_context_is_the_feed_and_the_others_are_surfaces() -> None:
    shown = [e for e in warmup_from_dataset(Toy()).events() if isinstance(e, Impression)]
    assert [event.surface for event in shown] == ["feed", "feed", "tab-2", "feed"]
    assert all(event.context == {} for event in shown)


def test_a_log_without_views_gets_one_for_each_shown_item_when_its_window_ends() -> None:
    past = warmup_from_dataset(Toy())
    events = list(past.events())
    views = [e for e in events if isinstance(e, Engagement) and e.kind == "view"]
    assert [e.time_ms - 60_000 for e in views] == [1_000_000 + n // 2 * 10_000 for n in range(8)]
    assert [e.time_ms for e in events] == sorted(e.time_ms for e in events)
    joiner = Joiner(0, ["click"], Config().join)
    examples = [x for i, event in enumerate(events) for x in joiner.feed(i, event)]
    assert [example.labels for example in examples] == [[1.0], [0.0]] * 4


def test_the_world_answers_the_same_again() -> None:
    again = demo_data.warmup_from_world(1_700_000_000_000, requests=60, items=300)
    assert [e for e in again.events()] == [e for e in PAST.events()]
    lists = [e for e in PAST.events() if isinstance(e, Impression)]
    assert all(len({s.item_id for s in e.items}) == 8 for e in lists)
    assert lists[0].items[1].propensity == pytest.approx(1 / 299)


def test_no_time_is_before_1970() -> None:
    served = FeatureReplay(FEATURES, shift_ms=-5_000)
    times = [served.play(Item(time_ms=t, item_id=t, fields={}))[0].time_ms for t in (4_999, 5_001)]
    assert times == [0, 1] and served.impressions == 0
