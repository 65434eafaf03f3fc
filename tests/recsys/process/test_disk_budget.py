"""Space levels, what each kind of data may take, and a simulated month on default settings."""

from dataclasses import replace

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from recsys.config.safety_config import DiskConfig
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, ITEM_COUNTS, topics
from recsys.process.disk_budget import DiskBudget, Level, Space, reserve_of, topic_bytes, usable_of

GB = 10**9
HOUR_S = 3_600
PLENTY = 10**13


def test_room_decides_the_level_and_the_worse_of_budget_and_disk_counts():
    config = DiskConfig(budget_gb=100.0, free_gb=1.0)
    for free, level in [(2.1, Level.OK), (1.9, Level.LOW), (0.9, Level.LOWER), (0.2, Level.FULL)]:
        by_disk = DiskBudget(config).plan({}, int(free * GB), 0)
        by_budget = DiskBudget(config).plan({"archive": int((100 - free) * GB)}, PLENTY, 0)
        assert (by_disk.level, by_budget.level) == (level, level), free
        if level:
            assert "disk.free_gb" in by_disk.why and "disk.budget_gb" in by_budget.why


def test_a_level_is_entered_at_once_and_left_step_by_step_after_thirty_seconds_of_room():
    budget, levels = DiskBudget(DiskConfig()), []
    assert budget.plan({}, 0, 0).level is Level.FULL
    for second in range(1, 130):
        levels.append(budget.plan({}, PLENTY, second * 1000).level)
    assert levels[:30] == [Level.FULL] * 30 and levels[30] is Level.LOWER
    assert levels[-1] is Level.OK
    assert levels == sorted(levels, reverse=True)


def test_a_level_is_left_though_the_clock_was_set_back():
    budget = DiskBudget(DiskConfig())
    budget.plan({}, 0, HOUR_S * 1000)
    budget.plan({}, PLENTY, HOUR_S * 1000 + 1)
    levels = [budget.plan({}, PLENTY, second * 1000).level for second in range(32)]
    assert levels[:30] == [Level.FULL] * 30 and levels[30] is Level.LOWER


def test_room_that_comes_and_goes_keeps_the_level():
    budget = DiskBudget(DiskConfig())
    budget.plan({}, GB // 2, 0)
    for second in range(1, 200):
        free = int((1.6 if second % 20 else 1.4) * GB)  # leaving takes 1.5
        assert budget.plan({}, free, second * 1000).level is Level.LOWER


def test_what_others_leave_the_archive_may_have_and_gives_it_back_when_they_grow():
    config, archive = DiskConfig(), 9 * GB
    plan = DiskBudget(config).plan
    alone = plan({"archive": archive, "log/events": GB}, PLENTY, 0)
    assert alone.archive == usable_of(config) - GB > archive
    beside = plan({"archive": archive, "log/events": 8 * GB, "parts": 9 * GB // 4}, PLENTY, 0)
    assert beside.level is Level.LOWER and beside.archive < archive - 2 * GB
    few = DiskBudget(config).plan({"archive": GB, "log/events": 12 * GB, "parts": 3 * GB}, PLENTY, 0)
    assert few.level is Level.OK
    assert few.archive == int(config.archive * usable_of(config))


def test_while_space_is_low_the_archive_shrinks_until_the_level_can_be_left():
    config = DiskConfig()
    plan = DiskBudget(config).plan({"archive": 8 * GB}, int(1.5 * GB), 0)
    freed = 8 * GB - plan.archive
    assert plan.level is Level.LOW and 3 * GB <= 1.5 * GB + freed < 3.3 * GB
    kinds = {"archive": 6 * GB, "log/events": 12 * GB + GB // 2}
    plan = DiskBudget(config).plan(kinds, PLENTY, 0)
    assert plan.level is Level.LOW
    assert 20 * GB - (sum(kinds.values()) - (6 * GB - plan.archive)) >= 3 * reserve_of(config)


def test_a_topic_over_its_share_is_named():
    config = DiskConfig()
    share = topic_bytes(config, 4)[EVENTS] * 4 / 0.8
    plan = DiskBudget(config).plan
    assert plan({"log/events": int(share)}, PLENTY, 0).over == []
    assert plan({"log/events": int(1.2 * share)}, PLENTY, 0).over == [EVENTS]


@given(
    budget_gb=st.floats(0.1, 1000), free_gb=st.floats(0.01, 100), archive=st.floats(0.05, 0.35),
    log=st.floats(0.05, 0.45), snapshots=st.floats(0.01, 0.15), partitions=st.integers(1, 64),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_shares_leave_enough_room_for_every_level_to_end(
    budget_gb, free_gb, archive, log, snapshots, partitions
):
    config = DiskConfig(budget_gb, archive, log, snapshots, free_gb)
    limits = topic_bytes(config, partitions)
    file_bytes = sum(
        size / 0.8 * (partitions if topic in (EVENTS, EXAMPLES, ITEM_COUNTS) else 1)
        for topic, size in limits.items()
    )
    kinds = {
        "archive": int(archive * usable_of(config)),
        "log/all": int(file_bytes),
        "snapshots": int(snapshots * usable_of(config)),
    }
    plan = DiskBudget(config).plan(kinds, 10**16, 0)
    assert plan.level is Level.OK
    assert plan.archive >= kinds["archive"]
    assert plan.used + (plan.archive - kinds["archive"]) <= usable_of(config) + 3
    assert plan.budget - plan.used >= 3 * reserve_of(config)


def test_topics_with_retention_get_bytes_and_the_others_none():
    by_name = {topic.name: topic for topic in topics(4, 72, topic_bytes(DiskConfig(), 4))}
    limited = {name for name, topic in by_name.items() if topic.retention_bytes}
    assert limited == {name for name, topic in by_name.items() if topic.retention_ms}
    assert 4 * by_name[EVENTS].retention_bytes < 2 * GB
    assert by_name[DELTAS].retention_bytes < 4 << 30


class Month:
    """The state folder hour by hour: a log with retention by time and bytes, which holds stop, an archive
    that compresses five times, and the rest. Bytes a second are those of ``Rates``."""

    # Bytes a second at 20 events/s, measured on a system with four steps a second: an event takes 1,094 B on
    # the topic, all impressions included; a third of them become examples of 3,047 B; the deltas take
    # 479 KB/s, a step's record 264 B, item states 6 KB/s. Here each event becomes an example.
    RATES = {
        EVENTS: 20 * 1_094, EXAMPLES: 20 * 3_047, DELTAS: 479_000, ITEM_COUNTS: 6_000, "item_state": 6_000,
        "scores": 400,
    }  # fmt: skip

    def __init__(self, config: DiskConfig) -> None:
        self.config, self.plan = config, DiskBudget(config)
        self.limits = {
            t: size * (4 if t in (EVENTS, EXAMPLES, ITEM_COUNTS) else 1)
            for t, size in topic_bytes(config, 4).items()
        }
        self.hours = {topic: list[int]() for topic in self.RATES}
        self.held = {topic: 0 for topic in self.RATES}  # hours that a hold keeps
        self.archive: list[int] = []
        self.steps = 0
        self.disk_others = 0
        self.disk = 10**12
        self.lost = 0
        self.space = self.measure(0)

    def measure(self, hour: int):
        kinds = {f"log/{t}": int(sum(sizes) / 0.8) for t, sizes in self.hours.items()}
        kinds |= {"log/wal": 9 * (64 << 20), "log/steps": self.steps, "snapshots": GB, "valkey": GB // 5}
        kinds |= {"archive": sum(self.archive), "parts": GB // 20, "run": GB // 20}
        free = self.disk - self.disk_others - sum(kinds.values())
        self.space = self.plan.plan(kinds, max(0, free), hour * HOUR_S * 1000)
        return self.space

    def hour(self, hour: int, held: dict[str, int] | None = None) -> None:
        level = self.space.level
        for topic, rate in self.RATES.items():
            if level is Level.FULL and topic in (EVENTS, EXAMPLES):
                continue
            sizes = self.hours[topic]
            sizes.append(rate * HOUR_S)
            while len(sizes) > 72 or sum(sizes) > self.limits[topic]:
                if len(sizes) <= (held or {}).get(topic, 0):
                    break
                beyond = sum(sizes) - self.limits[topic] if len(sizes) <= 72 else sizes[0]
                sizes[0] -= min(beyond, sizes[0])
                if not sizes[0]:
                    sizes.pop(0)
        if level is Level.OK:
            self.archive.append((self.RATES[EVENTS] + self.RATES[EXAMPLES]) * HOUR_S // 5)
        if level >= Level.LOWER:
            self.hours[DELTAS] = self.hours[DELTAS][-1:]
        self.steps = int(4 * HOUR_S * 264 / 0.8 * max(len(self.archive), 1))
        for minute in range(0, 60, 10):
            self.measure(hour)
            while self.archive and sum(self.archive) > self.space.archive:
                self.archive.pop(0)
            self.plan.plan(self.space.kinds, self.space.free, (hour * 60 + minute) * 60_000)
        self.measure(hour)


def test_a_month_at_twenty_events_a_second_stays_within_the_budget():
    month = Month(DiskConfig())
    levels = set()
    for hour in range(30 * 24):
        month.hour(hour)
        assert month.space.used <= month.space.budget, hour
        levels.add(month.space.level)
    assert levels == {Level.OK}  # no low-space mode: retention alone does it
    assert len(month.archive) >= 5 * 24  # days of history
    assert sum(month.hours[EXAMPLES]) >= 8 * month.RATES[EXAMPLES] * HOUR_S  # hours on the log


@pytest.mark.parametrize("topic", [EVENTS, EXAMPLES])
def test_a_part_that_is_down_for_two_days_keeps_its_records_and_the_archive_yields(topic):
    month = Month(DiskConfig())
    for hour in range(30 * 24):
        down = hour - 10 * 24 if 10 * 24 <= hour < 12 * 24 else 0
        month.hour(hour, {topic: down})
        assert month.space.used <= month.space.budget, hour
        if 0 < down:
            assert len(month.hours[topic]) >= down  # everything that it hasn't read
    assert month.space.level is Level.OK and len(month.archive) >= 5 * 24


def test_a_disk_that_others_fill_refuses_events_and_takes_them_again_when_there_is_room():
    month = Month(DiskConfig())
    levels = []
    for hour in range(20 * 24):
        month.disk_others = month.disk - 14 * GB if 100 <= hour < 200 else 0
        month.disk_others += 4 * GB * max(0, hour - 150) if 150 <= hour < 200 else 0
        month.hour(hour)
        levels.append(month.space.level)
    assert Level.FULL in levels[100:200] and levels[-1] is Level.OK
    assert set(levels[:100]) == {Level.OK} and set(levels[210:]) == {Level.OK}


def test_a_small_budget_has_a_small_reserve():
    assert reserve_of(replace(DiskConfig(), budget_gb=1.0)) == 50_000_000
    assert reserve_of(DiskConfig()) == GB


def test_shares_of_more_than_the_budget_are_refused():
    with pytest.raises(ValueError, match=r"disk\.log \+ disk\.snapshots is 1\.25, expected at most 1"):
        DiskConfig(archive=0.6, log=0.5, snapshots=0.15)
    assert DiskConfig(archive=0.4, log=0.45, snapshots=0.15)


def test_default_settings_in_bytes():
    config = DiskConfig()
    assert (reserve_of(config), usable_of(config)) == (10**9, 16_700_000_000)
    assert topic_bytes(config, 4) == {
        "events": 390_780_000, "examples": 541_080_000, "deltas": 1_202_400_000,
        "item_counts": 30_060_000, "item_state": 180_360_000, "scores": 180_360_000,
        "dead_letters": 120_240_000,
    }  # fmt: skip
    plan = DiskBudget(config).plan({}, PLENTY, 0)
    assert (plan.budget, plan.snapshots, plan.archive) == (20 * GB, 2_505_000_000, usable_of(config))


@pytest.mark.parametrize(
    ("free", "level"), [(2.01, 0), (1.99, 1), (1.01, 1), (0.99, 2), (0.26, 2), (0.24, 3)]
)
def test_bounds_of_levels_in_gigabytes(free, level):
    assert DiskBudget(DiskConfig()).plan({}, int(free * GB), 0).level == level


def test_a_topic_may_be_a_tenth_over_its_share():
    share = 0.26 * DiskConfig().log * usable_of(DiskConfig())
    for times, over in ((1.09, []), (1.11, [EVENTS])):
        assert DiskBudget(DiskConfig()).plan({"log/events": int(times * share)}, PLENTY, 0).over == over


def test_a_space_without_figures_is_empty():
    assert msgspec.structs.astuple(Space()) == (Level.OK, 0, 0, 0, {}, 0, 0, [], "", 0, 0)
