"""`recsys app apply` on a real system under traffic: a feature is added, learned, answers, and goes back."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.answer_explanation.answer_check import EQUAL, AnswerChecker
from recsys.app.app_file import APP_FILE, app_of, read_app
from recsys.client import ApiError
from recsys.config.system_config import Config, ParameterServerConfig, TrainerConfig
from recsys.events.control_records import Decision, Live
from recsys.events.event_types import Engagement, Impression, decode
from recsys.events.records import CONTROL, EVENTS, SCORES, Scores, pack
from recsys.features.feature_set_file import feature_set, write_feature_set
from recsys.log.protocol import Append, Log
from recsys.process.log_consumer import readable
from recsys.process.open_log import open_log
from runtime.cli.app import apply
from runtime.cli.candidates import rollback
from runtime.cli.up import start
from runtime.supervision import launch_plan
from runtime.supervision.system_status import gather
from tests.support.paths import ROOT
from tests.support.systems.live_system import OPEN_GATES, LiveSystem, until
from training.lines.control import ControlReader
from training.lines.line import MAIN

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]

ITEMS, USERS = 60, 20
EXPLAINED = 20  # answers on each side
READERS = int(os.environ.get("RECSYS_READERS", "2"))  # each asks up to ten times a second
TEXT = (ROOT / "examples" / "news" / "app.yaml").read_text("utf-8").replace("window: 2m", "window: 3s")


@pytest.fixture
def news(tmp_path: Path) -> Iterator[LiveSystem]:
    """The news example, running, with items."""
    app = app_of(TEXT)
    # One step a second: a shadow on busy cores takes two, and must catch up.
    step = replace(
        Config().step, every_ms=1_000, soonest_ms=1_000, snapshot_every=10, snapshot_s=0, snapshots_kept=500
    )
    system = LiveSystem(tmp_path / "state", promotion=OPEN_GATES, step=step, trainer=TrainerConfig(workers=1),
        parameter_server=ParameterServerConfig(shards=1),
    )  # fmt: skip
    system.desired = app.config(system.desired)
    write_feature_set(system.desired, app.feature_set())
    (system.state / APP_FILE).write_text(TEXT, "utf-8")
    try:
        start(system.desired, detach=True)
        system.config, _ = launch_plan.read(system.state)
        system.wait_ready(900)  # busy cores start slowly
        with system.client(admin=True) as client:
            fields = {"category": "c", "author": "a"}
            client.upsert_items(
                {f"n{n}": {k: f"{v}{n % 7}" for k, v in fields.items()} for n in range(ITEMS)}
            )
        yield system
    finally:
        system.down()


class Readers:
    """Readers of news, who click on even items; each answer and failure is noted."""

    def __init__(self, system: LiveSystem) -> None:
        self._system, self._stop = system, threading.Event()
        self.answers: list[tuple[str, str, Any]] = []  # request, user, stamp
        self.failures: list[str] = []
        self.began_s = time.monotonic()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(READERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self.ended_s = time.monotonic()

    def _run(self, own: int) -> None:
        with self._system.client() as client:
            number = 0
            while not self._stop.wait(0.1):
                number += 1
                user = f"u{(READERS * number + own) % USERS}"
                try:
                    answer = client.recommend(user, 6)
                    now_ms = time.time_ns() // 1_000_000
                    clicks = [
                        Engagement(
                            time_ms=now_ms, request_id=answer.request_id, user_id=user,
                            item_id=item.item_id, kind="click",
                            event_id=f"{answer.request_id}-{item.item_id}",
                        )
                        for item in answer.items
                        if int(str(item.item_id)[1:]) % 2 == 0
                    ][:2]  # fmt: skip
                    client.send_events(clicks)
                except ApiError as error:
                    self.failures.append(str(error))
                    continue
                self.answers.append((answer.request_id, user, answer.stamp))


def assert_explained(log: Log, news: LiveSystem, answers: list[tuple[str, str, Any]]) -> None:
    """All answers are recomputed, bit for bit."""
    time.sleep(2)  # for their impressions to be written
    checker = AnswerChecker(log, news.config, feature_set(news.config))
    checks = [checker.explain(request, user) for request, user, _ in answers]
    assert [c.verdict for c in checks] == [EQUAL] * len(answers), [c.why for c in checks if c.why]


def on_each_side(answers: list[Any], before: int, after: int) -> list[Any]:
    """Last answers until one place, and first ones from another."""
    assert before >= EXPLAINED and len(answers) >= after + EXPLAINED
    return [*answers[before - EXPLAINED : before], *answers[after:][:EXPLAINED]]


def live(log: Log) -> Live | None:
    control = ControlReader(log)
    control.turn()
    return control.lifecycle.live


def shown(log: Log) -> dict[str, Impression]:
    return {e.request_id: e for e in readable_events(log) if isinstance(e, Impression)}


def readable_events(log: Log) -> Iterator[Any]:
    for partition in range(log.partitions(EVENTS)):
        offset = log.begin(EVENTS, partition)
        while records := log.read(EVENTS, partition, offset, 1_000):
            offset = records[-1].offset + 1
            yield from (decode(record.value) for record in records)


def test_a_feature_is_added_learned_and_taken_back_under_traffic(news: LiveSystem, tmp_path: Path) -> None:
    log, readers = open_log(news.config), Readers(news)
    first = feature_set(news.config)
    file = tmp_path / "changed.yaml"
    text = TEXT.replace("half_lives: [30m, 3h, 24h]", "half_lives: [5m, 30m, 3h, 7d]")
    file.write_text(text.replace("    - user×author\n", "    - user×author\n    - context\n"))

    def features() -> dict[str, str]:
        with news.client() as client:
            served: dict[str, str] = client.status()["features"]
            return served

    def answering(epoch: int) -> bool:
        return readers.answers[-1][2].line == MAIN and readers.answers[-1][2].epoch == epoch

    try:
        until(lambda: (gather(news.state).served or 0) and gather(news.state).served.step > 12, 180, "learns")
        before = len(readers.answers)
        apply(file, news.state, 300.0)
        after = len(readers.answers)
        assert features()["read"] == first.digest != features()["logged"]
        assert "logged, features-" in gather(news.state).change
        control = ControlReader(log)
        control.turn()
        name = next(n for n in control.lifecycle.candidates if n.startswith("features-"))
        until(lambda: _scored(log, name), 180, "the candidate is scored")
        log.append(
            CONTROL, [Append(0, b"", pack(Decision(line=name, verdict="promote", to="canary", share=0.5)))]
        )
        until(lambda: any(s.line == name for _, _, s in readers.answers[-50:]), 90, "it answers")
        until(lambda: (now := live(log)) is not None and now.candidate == name, 180, "it takes over")
        until(lambda: answering(1), 60, "its epoch answers")
        promoted = len(readers.answers)
        until(lambda: readers.answers[-1][2].step > live(log).base_step + 3, 120, "it learns")
        assert features()["read"] == read_app(file).feature_set().digest
        assert_explained(log, news, on_each_side(readers.answers, before, promoted))
        rollback("", "a test", news.state)
        until(lambda: answering(2), 60, "the old one answers")
        until(lambda: readers.answers[-1][2].step > live(log).base_step + 3, 120, "it learns again")
        assert features()["read"] == first.digest
    finally:
        readers.stop()
    assert readers.failures == []
    time.sleep(2)
    impressions = shown(log)
    sets = [impressions[r].features.feature_set for r, _, _ in readers.answers]
    assert {*sets[:before]} == {first.digest} and first.digest not in sets[after:]
    assert_explained(log, news, readers.answers[-EXPLAINED:])
    per_s = len(readers.answers) / (readers.ended_s - readers.began_s)
    print(f"{len(readers.answers)} answers, {per_s:.0f}/s, {after - before} during the change")
    log.close()


def _scored(log: Log, name: str) -> bool:
    return sum(len(s.labels) for s in readable(log, SCORES, Scores) if s.line == name) >= 30
