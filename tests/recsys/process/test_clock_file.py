from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.clock import Clock, machine_ms
from recsys.config.clock_config import ClockConfig
from recsys.config.system_config import Config, laptop
from recsys.events.control_records import LogClock
from recsys.events.records import CONTROL, EVENTS, unpack
from recsys.log.protocol import Append, LogLost, MemoryLog
from recsys.process import clock_file
from recsys.process.clock_file import FILE, LEASE_S, ClockKeeper, MappedPace, claim_log, clock_of, start_clock
from recsys.process.open_log import create_topics, open_log

START_MS = 1_577_836_800_000
SCALED = ClockConfig("2020-01-01", 100.0)


class Machine:
    """The machine's clock, and a system in a folder that runs by it."""

    def __init__(self, folder: Path, clock: ClockConfig = SCALED) -> None:
        self.now_s = 1_700_000_000.0
        self.config = replace(laptop(), state=str(folder), clock=clock)
        self.keeper = ClockKeeper(folder, self.now_ns)

    def now_ns(self) -> int:
        return int(self.now_s * 1e9)

    def start(self, config: Config | None = None) -> Callable[[], int]:
        start_clock(config or self.config, self.now_ns)
        return Clock(MappedPace(Path(self.config.state) / FILE), self.now_ns)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    yield Machine(tmp_path / "state")


def test_a_system_without_a_clock_has_the_machines_and_no_file(tmp_path: Path) -> None:
    config = replace(laptop(), state=str(tmp_path))
    start_clock(config)
    assert clock_of(config) is machine_ms
    assert not list(tmp_path.iterdir())


def test_event_time_passes_from_its_start_once_the_lease_is_extended(machine: Machine) -> None:
    clock = machine.start()
    machine.now_s += 30
    assert clock() == START_MS
    machine.keeper.extend()
    machine.now_s += 1
    assert clock() == START_MS + 100_000
    assert isinstance(clock_of(machine.config), Clock)


def test_without_a_start_event_time_begins_now(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ClockConfig(speed=2.0))
    clock = machine.start()
    assert clock() == machine.now_s * 1000


def test_event_time_stands_still_while_the_system_is_down(machine: Machine) -> None:
    clock = machine.start()
    machine.keeper.extend()
    machine.now_s += 2
    machine.keeper.extend(0)
    machine.now_s += 86_400
    assert clock() == START_MS + 200_000
    again = machine.start()
    assert again() == START_MS + 200_000
    machine.keeper.extend()
    machine.now_s += 1
    assert clock() == again() == START_MS + 300_000


def test_after_a_kill_event_time_goes_on_at_the_end_of_the_lease(machine: Machine) -> None:
    clock = machine.start()
    machine.keeper.extend()
    machine.now_s += 3600
    reached_ms = START_MS + int(LEASE_S * 100_000)
    assert clock() == reached_ms  # in parts that outlived their supervisor, too
    assert machine.start()() == reached_ms


def test_a_system_that_starts_again_at_once_waits_until_its_parts_are_ready(machine: Machine) -> None:
    machine.start()
    machine.keeper.extend()
    machine.now_s += 1
    clock = machine.start()
    machine.now_s += 1
    assert clock() == START_MS + 100_000


def test_a_clock_set_back_lengthens_no_lease(machine: Machine) -> None:
    machine.start()
    machine.keeper.extend()
    machine.now_s -= 3600
    machine.keeper.change(100)
    machine.now_s += 3600
    assert clock_read_anew(machine) == START_MS + int(LEASE_S * 100_000)


def test_a_driver_changes_the_pace_while_parts_run(machine: Machine) -> None:
    clock = machine.start()
    machine.keeper.extend(1_000)
    machine.now_s += 1
    assert machine.keeper.change(2_000) == START_MS + 100_000
    machine.now_s += 1
    assert clock() == START_MS + 2_100_000
    machine.keeper.change(0)
    machine.now_s += 5
    machine.keeper.extend(1_000)
    assert clock() == START_MS + 2_100_000
    machine.keeper.change(10, limit_ms=START_MS + 2_105_000)
    machine.now_s += 5
    assert clock() == START_MS + 2_105_000
    machine.keeper.change(10, limit_ms=START_MS)  # is over: it holds the clock
    machine.now_s += 5
    assert clock() == START_MS + 2_105_000
    assert clock_read_anew(machine) == START_MS + 2_105_000
    with pytest.raises(ValueError, match="speed is -1, expected a finite number of 0 or more"):
        machine.keeper.change(-1)


def clock_read_anew(machine: Machine) -> int:
    """Event time in a process that starts now."""
    return Clock(MappedPace(Path(machine.config.state) / FILE), machine.now_ns)()


def test_a_start_ends_the_pace_of_a_driver(machine: Machine) -> None:
    machine.start()
    machine.keeper.change(0, limit_ms=START_MS)
    clock = machine.start()
    machine.keeper.extend()
    machine.now_s += 1
    assert clock() == START_MS + 100_000


def test_a_machine_whose_clock_is_set_back_waits_and_goes_on(machine: Machine) -> None:
    clock = machine.start()
    machine.keeper.extend()
    machine.now_s += 1
    reached_ms = clock()
    machine.now_s -= 3600
    assert clock() == reached_ms
    machine.keeper.extend()
    machine.now_s += 1
    assert reached_ms <= clock() + 100_000
    machine.now_s += 1
    machine.keeper.extend()
    machine.now_s += 2
    assert clock() > reached_ms


def test_a_record_that_is_being_written_is_not_taken(machine: Machine) -> None:
    clock = machine.start()
    machine.keeper.extend(1_000)
    machine.now_s += 1
    assert clock() == START_MS + 100_000
    path = Path(machine.config.state) / FILE
    before = path.read_bytes()
    machine.keeper.change(0)
    after = path.read_bytes()
    at = next(n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
    with path.open("r+b") as file:
        file.write(after[: at + 40] + before[at + 40 :])
    machine.now_s += 1
    assert clock() == START_MS + 200_000
    with path.open("r+b") as file:
        file.write(after)
    assert clock() == START_MS + 200_000
    machine.now_s += 1
    assert clock() == START_MS + 200_000


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (ClockConfig(), "start is '', clock.speed 1.0, expected start 1577836800000, speed 100.0"),
        (ClockConfig("2020-01-01", 10.0), "clock.speed 10.0, expected start 1577836800000"),
        (ClockConfig("2020-01-02", 100.0), "clock.start is '2020-01-02'"),
        (ClockConfig(speed=100.0), "clock.start is ''"),
    ],
)
def test_another_clock_than_that_of_the_state_folder_is_refused(
    machine: Machine, changed: ClockConfig, expected: str
) -> None:
    machine.start()
    with pytest.raises(ValueError, match="use another state folder") as error:
        machine.start(replace(machine.config, clock=changed))
    assert expected in str(error.value)


def test_the_same_start_may_be_written_otherwise(machine: Machine) -> None:
    machine.start()
    machine.start(replace(machine.config, clock=ClockConfig(START_MS, 100.0)))


def test_a_state_folder_with_records_gets_no_clock(machine: Machine) -> None:
    with closing(open_log(replace(machine.config, clock=ClockConfig()))):
        pass
    with pytest.raises(ValueError, match="expected none: .* has records of the machine's time"):
        machine.start()


def test_a_start_in_the_future_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ClockConfig(1_700_000_000_000 + 7_200_000))
    with pytest.raises(ValueError, match=r"clock.start is .* 2.0 hours ahead of the machine's time"):
        machine.start()
    assert not (tmp_path / FILE).exists()


def test_a_missing_or_damaged_file_is_named(machine: Machine) -> None:
    with pytest.raises(ValueError, match="clock.json, which the clock .* needs: `recsys up` makes"):
        clock_of(machine.config)
    machine.start()
    (Path(machine.config.state) / FILE).write_bytes(b"")
    with pytest.raises(ValueError, match="clock.json can't be read .* restore it from a backup"):
        machine.start()


# --- the log ---


def topics_of(config: Config) -> MemoryLog:
    log = MemoryLog()
    create_topics(log, config)
    return log


def test_the_first_record_of_a_log_names_its_clock(machine: Machine) -> None:
    machine.start()
    log = topics_of(machine.config)
    create_topics(log, machine.config)
    (record,) = log.read(CONTROL, 0, 0)
    mark = unpack(record.value, LogClock)
    assert (mark.start_ms, mark.speed) == (START_MS, 100.0)


def test_two_clocks_cannot_share_a_log(machine: Machine, tmp_path: Path) -> None:
    machine.start()
    log = topics_of(machine.config)
    for name, clock in (("other", SCALED), ("faster", ClockConfig("2020-01-01", 200.0))):
        other = Machine(tmp_path / name, clock)
        other.start()
        with pytest.raises(LogLost, match="two clocks can't share a log"):
            claim_log(log, other.config)
    with pytest.raises(LogLost, match="speed 100.0.*expected the machine's clock"):
        claim_log(log, replace(machine.config, clock=ClockConfig()))
    claim_log(log, machine.config)


@pytest.mark.parametrize("topic", [CONTROL, EVENTS])
def test_a_log_with_records_of_the_machines_time_is_refused(machine: Machine, topic: str) -> None:
    log = topics_of(replace(machine.config, clock=ClockConfig()))
    log.append(topic, [Append(0, b"", b"unreadable")])
    machine.start()
    with pytest.raises(LogLost, match="has the times of the machine's clock, expected the clock"):
        claim_log(log, machine.config)


def test_of_two_systems_that_start_together_one_gets_the_log(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.start()
    log = topics_of(machine.config)
    slower = Machine(tmp_path / "slower")
    slower.start()
    seen = iter([False])
    monkeypatch.setattr(clock_file, "_has_records", lambda _: next(seen))
    marks = iter([None])
    mark_on = clock_file._mark_on
    monkeypatch.setattr(clock_file, "_mark_on", lambda log: next(marks, mark_on(log)))
    with pytest.raises(LogLost):
        claim_log(log, slower.config)


def test_the_file_is_written_in_place(machine: Machine) -> None:
    machine.start()
    path = Path(machine.config.state) / FILE
    inode = path.stat().st_ino
    for n in range(20):
        machine.now_s += n / 7
        machine.keeper.extend()
        machine.keeper.change(1234.5678 + n / 3, START_MS + 1e9 / 3)
    assert path.stat().st_ino == inode
