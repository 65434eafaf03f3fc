"""Each dependency gone in turn, at its adapter, while requests come: all are answered, degraded says how, and
every impression stands on the log in the end, once."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.config.system_config import ServeConfig
from recsys.events.event_types import Engagement, Impression
from recsys.events.records import EVENTS
from recsys.log.protocol import Append, LogUnavailable
from serving.followers.progress import ProgressChange
from serving.followers.weights import WeightsChange
from tests.support.serving.replica_harness import step_delta
from tests.support.serving.service_harness import Broken, Slow, World, living, run, view

REQUESTS = 30
AT_ONCE = 6
NO_DEADLINE = ServeConfig(deadline_ms=10_000.0, queue_ms=10_000.0)  # what is gone is the matter here


def raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the index is broken")


class Fault:
    """Breaks a world, and mends it."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self._patch = name, monkeypatch

    def begin(self, world: World) -> None:
        service = world.service
        if self.name == "store hangs":
            service.sessions.store.sessions = Slow()
        elif self.name == "store is gone":
            service.sessions.store.sessions = Broken()
        elif self.name == "index":
            self._patch.setattr(service.replica.index, "search", raises)
        elif self.name == "model":
            self._patch.setattr("serving.scorers.ranker.probabilities", raises)
        elif self.name == "log hangs":
            append = world.log.append

            def late(topic: str, records: Sequence[Append]) -> list[int]:
                time.sleep(0.3)
                return append(topic, records)

            self._patch.setattr(world.log, "append", late)
        elif self.name == "log is away":
            for method in ("append", "read", "end"):
                self._patch.setattr(world.log, method, self._away)

    def _away(self, *_: Any, **__: Any) -> Any:
        raise LogUnavailable("no broker answers")


FAULTS = {
    "store hangs": "session",
    "store is gone": "session",
    "index": "retrieval",
    "model": "rank",
    "log hangs": "",
    "log is away": "",
}


async def ask(world: World, answers: list[httpx.Response]) -> None:
    async def some(first: int) -> None:
        for n in range(first, REQUESTS, AT_ONCE):
            body = {"user_id": f"u{n}", "n": 5}
            answers.append(await world.client.post("/v1/recommend", json=body))

    await asyncio.gather(*[some(first) for first in range(AT_ONCE)])


@pytest.mark.parametrize("name", FAULTS)
async def test_a_feed_answers_whatever_is_gone_and_no_impression_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    world = World(tmp_path, serve=NO_DEADLINE)
    world.service.writer._retry_s = 0.02
    monkeypatch.setattr("serving.followers.follower_thread._RETRY_S", 0.02)

    async with living(world) as w:
        w.service.replica.apply_step(step_delta(w.service.replica, 1))
        answers: list[httpx.Response] = []
        with monkeypatch.context() as patch:
            Fault(name, patch).begin(w)
            await ask(w, answers)
            if name == "log is away":
                await until(lambda: w.service.writer.on_disk_bytes > 0)
                await events_are_refused(w)
        assert [answer.status_code for answer in answers] == [200] * REQUESTS
        told = Counter(stage for answer in answers for stage in answer.json()["degraded"])
        assert told == ({FAULTS[name]: REQUESTS} if FAULTS[name] else {})
        await until(lambda: not w.service.writer.kept_bytes + w.service.writer.on_disk_bytes)
        logged = [e.request_id for e in w.events() if isinstance(e, Impression)]
        assert sorted(logged) == sorted(answer.json()["request_id"] for answer in answers)
        await events_are_taken(w, answers[0].json())


async def events_are_refused(w: World) -> None:
    event = view("r", "v1", "e0")
    answer = await w.client.post("/v1/events", json={"events": [event]})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


async def events_are_taken(w: World, answer: dict[str, Any]) -> None:
    event = view(answer["request_id"], answer["items"][0]["item_id"], "e1")
    taken = await w.client.post("/v1/events", json={"events": [event]})
    assert taken.status_code == 202
    assert [e.event_id for e in w.events() if isinstance(e, Engagement)] == ["e1"]


def test_a_replica_that_ends_while_the_log_is_away_loses_no_impression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, ids = World(tmp_path), list[str]()
    append = world.log.append

    async def before(w: World) -> None:
        monkeypatch.setattr(world.log, "append", Fault("", monkeypatch)._away)
        ids.extend([(await w.recommend(user_id=f"u{n}"))["request_id"] for n in range(5)])

    async def after(w: World) -> None:
        await until(lambda: len(w.events()) == 5)
        assert sorted(e.request_id for e in w.events()) == sorted(ids)

    run(world, before)
    monkeypatch.setattr(world.log, "append", append)
    assert world.log.end(EVENTS, 0) == 0
    world.restart()
    run(world, after)


async def test_weights_that_stand_still_while_examples_come_are_stale(tmp_path: Path) -> None:
    world = World(tmp_path)

    async with living(world) as w:
        live, replica = w.service.live, w.service.replica
        replica.apply_step(step_delta(replica, 1))
        stale_ms = int(1000 * w.config.serve.stale_s)
        w.now_ms += 10 * stale_ms
        assert (await w.recommend())["degraded"] == []  # nobody did anything: there is no newer
        live.progress._unlearned_ms = w.now_ms  # an example came
        w.now_ms += stale_ms
        assert (await w.recommend())["degraded"] == []
        w.now_ms += 1
        answer = await w.recommend()
        assert answer["degraded"] == ["stale"]
        live.followers.weights.apply(WeightsChange(steps=[step_delta(replica, 2)]))
        live.progress.apply(ProgressChange())
        assert (await w.recommend())["degraded"] == []
        await w.written()
        [impression] = [e for e in w.events() if e.request_id == answer["request_id"]]
        assert impression.degraded == ["stale"]


async def until(holds: Any) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it didn't come to that")
