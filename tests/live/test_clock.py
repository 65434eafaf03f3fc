"""A whole system at a hundred times the machine's pace, from 2020 on: event time is that everywhere."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from recsys.client import Client
from recsys.clock import parse_time_ms
from recsys.config.clock_config import ClockConfig
from recsys.config.system_config import Config, ParameterServerConfig, TrainerConfig
from recsys.events.control_records import Control, Live, LogClock
from recsys.events.event_types import Engagement, Event, Impression, Tick, decode
from recsys.events.records import CONTROL, EVENTS, EXAMPLES, STEPS, Example, Step, unpack
from recsys.log.compression import plain
from recsys.log.protocol import Log
from recsys.process.clock_file import ClockKeeper, clock_of, start_clock
from recsys.process.open_log import open_log
from runtime.cli.up import start
from runtime.supervision.system_status import Status, gather
from tests.support.systems.live_system import LiveSystem, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]

START_MS, SPEED, DAY_MS = parse_time_ms("2020-01-01"), 100.0, 86_400_000
USERS = 10


@pytest.fixture
def system(tmp_path: Path) -> Iterator[LiveSystem]:
    system = LiveSystem(
        tmp_path / "state",
        clock=ClockConfig("2020-01-01", SPEED),
        trainer=TrainerConfig(workers=1),
        parameter_server=ParameterServerConfig(shards=1),
    )
    try:
        system.up()
        system.wait_ready()
        yield system
    finally:
        system.down()


def visit(system: LiveSystem, client: Client, number: int) -> None:
    user_id = f"u{number % USERS}"
    answer = client.recommend(user_id, 3)
    client.engage(answer, user_id, answer.items[0].item_id, "view", 500 + 3_000 * (number % 3))
    client.engage(answer, user_id, answer.items[1].item_id, "like")  # without a view


def test_a_whole_system_runs_at_the_pace_of_its_clock(system: LiveSystem) -> None:
    config = system.config
    clock = clock_of(config)
    assert START_MS <= clock() < START_MS + DAY_MS  # it stood still while parts started
    key = (system.state / "run" / "admin.key").read_text().strip()
    with Client(system.url, admin_key=key, timeout_s=10.0, clock_ms=clock) as client:
        client.upsert_items({f"i{n}": {"author": f"a{n % 5}"} for n in range(60)})
        until(lambda: client.recommend("u0", 3).items, 60, "items are served")
        for number in range(60):
            visit(system, client, number)
        until(lambda: client.status()["version"]["step"] > 0, 120, "a step is served")
        refused = client.send_events([late_engagement(client, clock() + 60_000)])
        assert refused.results[0].status == "rejected"  # a minute ahead of event time

    status: list[Status] = []

    def is_ready() -> bool:
        status[:] = [gather(system.state)]
        return status[0].ready and bool(status[0].served)

    until(is_ready, 60, "recsys status says that all is ready")
    fresh_ms = status[0].click_to_served_p95_ms
    assert fresh_ms is None or 0 <= fresh_ms < 60_000  # the machine's, not a hundred times as much

    until(lambda: unseen(config), 60, "a window closes without a view")
    until(lambda: any(isinstance(e, Tick) for e in events(config)), 60, "partitions are ticked")
    check_log(config)
    reached_ms = clock()
    ClockKeeper(system.state).change(0)
    time.sleep(0.3)
    held_ms = clock()
    time.sleep(0.3)
    assert reached_ms < held_ms == clock()

    system.down()
    ended_ms = clock()
    time.sleep(1.0)
    assert clock() == ended_ms
    start_clock(system.desired)
    assert ended_ms == clock()
    slower = replace(system.desired, clock=ClockConfig("2020-01-01", 10.0))
    with pytest.raises(typer.Exit):
        start(slower, detach=True)


def late_engagement(client: Client, time_ms: int) -> Engagement:
    answer = client.recommend("u0", 1)
    return Engagement(
        time_ms=time_ms, request_id=answer.request_id, user_id="u0", item_id=answer.items[0].item_id,
        kind="view", watch_ms=1_000,
    )  # fmt: skip


def check_log(config: Config) -> None:
    """All times on the log are of that clock, and windows have closed by it."""
    examples, seen = unseen(config), events(config)
    with closing(open_log(config)) as log:
        controls = [unpack(value, Control) for value in values(log, CONTROL)]  # type: ignore[arg-type]
        steps = [unpack(value, Step) for value in values(log, STEPS)]
    now_ms = clock_of(config)()
    assert isinstance(controls[0], LogClock)
    for kind in (Impression, Engagement, Tick):
        times_ms = [event.time_ms for event in seen if isinstance(event, kind)]
        assert times_ms and START_MS <= min(times_ms) <= max(times_ms) <= now_ms, kind
    lives = [record.time_ms for record in controls if isinstance(record, Live)]
    assert START_MS <= lives[0] <= now_ms and START_MS <= steps[-1].time_ms <= now_ms
    assert all(START_MS <= example.closed_ms <= now_ms for example in examples)
    assert min(e.closed_ms - e.shown_ms for e in examples) >= 1000 * config.join.window_s


def events(config: Config) -> list[Event]:
    with closing(open_log(config)) as log:
        return list(map(decode, values(log, EVENTS)))


def unseen(config: Config) -> list[Example]:
    """Examples that closed without a view."""
    with closing(open_log(config)) as log:
        examples = [unpack(plain(value), Example) for value in values(log, EXAMPLES)]
        return [e for e in examples if not e.view_ended_ms and not e.correction]


def values(log: Log, topic: str) -> list[bytes]:
    partitions = range(log.partitions(topic))
    return [r.value for p in partitions for r in log.read(topic, p, log.begin(topic, p), 100_000)]
