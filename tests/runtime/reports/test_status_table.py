"""The table of parts: what it says of ports, addresses and times."""

from dataclasses import replace

import pytest

from recsys.config.clock_config import ClockConfig
from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config, ServeConfig, SessionConfig
from recsys.events.control_records import LineHold
from runtime.reports.status_table import (
    addresses,
    exposure_warning,
    format_duration,
    note,
    ports,
    status_table,
)
from runtime.supervision.processes import Identity, Socket
from runtime.supervision.run_file import PartRecord, Running
from runtime.supervision.system_status import Status
from serving.access.hosts import is_loopback


@pytest.mark.parametrize(
    "host, expected",
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("127.0.0.53", True),
     ("0.0.0.0", False), ("::", False), ("::ffff:192.0.2.2", False), ("fe80::1%eth0", False)],
)  # fmt: skip
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_ports_beyond_loopback_are_told_with_their_guard():
    sockets = [Socket(1, "127.0.0.1", "x"), Socket(2, "0.0.0.0", "haproxy"), Socket(3, "::", "raylet")]
    assert ports(sockets) == "1 0.0.0.0:2 (OPEN to other machines) :::3 (guarded by token)"
    many = [Socket(port, "::1", "x") for port in range(9)]
    assert ports(many) == "0 1 2 3 …"


def test_a_lost_part_says_its_reason_and_nothing_else(tmp_path):
    record = PartRecord(name="joiner", state="lost", reason="LogLost: retention passed it", last_exit=4)
    assert note(record, tmp_path) == "LogLost: retention passed it"


def test_answers_are_shown_as_the_api_has_them(tmp_path):
    config, found = Config(state=str(tmp_path)), []
    running = Running(supervisor=Identity(1, 0.0), config_digest="", started_ms=0, time_ms=0)
    for server in ({}, {"answers": 4_100, "answer_p50_ms": 6.24, "answer_p99_ms": 21.96}):
        status = Status(state=str(tmp_path), running=True, ready=True, server=server)
        lines = map(str, status_table(status, running, config).renderables)
        found += [line.split(maxsplit=1)[1] for line in lines if line.startswith("answers")]
    assert found == ["–, – ms (p50), – ms (p99)", "4,100, 6.2 ms (p50), 22 ms (p99)"]


def test_passwords_are_not_shown():
    config = replace(Config(), sessions=SessionConfig(url="redis://:hush@127.0.0.1:6379/0"))
    assert "hush" not in "".join(addresses(config))


@pytest.mark.parametrize(
    "host, told",
    [("0.0.0.0", True), ("192.0.2.7", True), ("feed.example", True),
     ("127.0.0.1", False), ("::1", False), ("localhost", False)],
)  # fmt: skip
def test_an_api_beyond_loopback_is_told_with_what_guards_it(host, told):
    config = replace(Config(), state="s", serve=ServeConfig(host=host))
    said = exposure_warning(config)
    assert bool(said) is told
    assert not told or (f"{host}:8000" in said and "s/run/admin.key" in said)
    said = exposure_warning(replace(config, access=AccessConfig(mode="open")))
    assert bool(said) is told
    assert not told or "calls without a key may recommend, events, read" in said


def test_durations():
    assert [format_duration(ms) for ms in (-5, 999, 61_000, 7_500_000)] == ["0s", "0s", "1m01s", "2h05m"]


def test_event_time_is_shown_where_it_is_not_the_machines(tmp_path):
    running = Running(supervisor=Identity(1, 0.0), config_digest="", started_ms=0, time_ms=0)
    server = {"time_ms": 1_577_836_800_000}
    status = Status(state=str(tmp_path), running=True, ready=True, server=server)
    texts = [
        " ".join(map(str, status_table(status, running, Config(clock=clock)).renderables))
        for clock in (ClockConfig(), ClockConfig("2020-01-01", 100.0))
    ]
    assert "event time" not in texts[0]
    assert "event time       2020-01-01 00:00:00+00:00, clock.speed 100" in texts[1]


@pytest.mark.parametrize(
    "action, effect",
    [("rewind", "its state of that time serves"), ("rollback", "what it replaced serves"),
     ("", "it goes on: nothing better can serve")],
)  # fmt: skip
def test_a_held_line_is_shown_with_its_reason_and_what_serves(tmp_path, action, effect):
    running = Running(supervisor=Identity(1, 0.0), config_digest="", started_ms=0, time_ms=0)
    hold = LineHold(
        line="main", epoch=3, kind="behind", reason="popularity hits more", action=action, since_ms=0
    )
    status = Status(state=str(tmp_path), running=True, ready=True, hold=hold)
    lines = map(str, status_table(status, running, Config(state=str(tmp_path))).renderables)
    (line,) = [line for line in lines if line.startswith("line held")]
    since = "main/3 since 1970-01-01 00:00:00+00:00"
    assert line.split(maxsplit=2)[2] == f"{since}: popularity hits more; {effect}"
