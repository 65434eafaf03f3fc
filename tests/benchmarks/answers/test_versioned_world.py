"""No answer is of two versions: each part of the canary's world shows its own, and planted bugs are met."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace as changed

from benchmarks.answers.bench_stamp import VersionedService, counts, in_process, measure_stamp, over_http
from benchmarks.answers.versioned_oracle import Oracle
from benchmarks.answers.versioned_world import (
    ITEMS_N,
    NOW_MS,
    ImpressionlessLog,
    VersionPublisher,
    versioned_config,
)
from benchmarks.harness.memory_sessions import MemorySessions
from recsys.events.event_types import Stamp
from recsys.process.open_log import create_topics
from serving.answers.answer_assembly import AnswerAssembly
from serving.followers.follower_thread import FollowerThread
from serving.replica.replica import Replica
from serving.request import Request
from serving.retrieval import retrieval_client
from serving.retrieval.retrieval_shard import RetrievalShard
from serving.scorers import ranker
from serving.service import Service

EVERY = {"step": 5, "session": 11, "states": 7, "items": 13, "policy": 17, "epoch": 150}
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a replica has it; more are slower here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seen(folder: Path, requests: int, way: Any = in_process, every: dict[str, int] = EVERY) -> dict[str, Any]:
    bird = VersionedService.in_folder(folder, every=every)
    return counts(bird, asyncio.run(way(bird, requests)), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "requests"), [(in_process, 2_000), (over_http, 300)])
def test_no_answer_is_of_two_versions(tmp_path: Path, way: Any, requests: int) -> None:
    every = {name: n * (requests // 500 + 1) for name, n in EVERY.items()}
    found = seen(tmp_path, requests, way, every)
    assert "first" not in found, found["first"]
    assert found["requests"] >= requests
    assert (found["mixed"], found["failed"], found["went_back"]) == (0, 0, 0)
    assert all(found["published"].values())


def with_shards(folder: Path, requests: int) -> dict[str, Any]:
    """Two shards follow the log by themselves, so that they are ahead or behind as it comes."""
    bird = VersionedService.in_folder(folder, every=EVERY, shards=2)
    return counts(bird, asyncio.run(in_process(bird, requests)), 0.0)


@pytest.mark.slow
def test_what_shards_find_is_of_the_answer_s_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_client, "LONGEST_S", 10.0)  # a busy machine is no reason to go without
    monkeypatch.setattr(retrieval_client, "WAIT_S", 5.0)
    found = with_shards(tmp_path, 500)
    assert (found["mixed"], found["went_back"]) == (0, 0), found["first"]
    assert found["failed"] < 25  # answers that went without, degraded: another epoch


def stamp(**fields: Any) -> Stamp:
    its = Stamp(epoch=1, step=20, catalogue_offset=5 * ITEMS_N, item_state_offset=9, session_offset=4)
    return changed(its, **fields)


@pytest.mark.parametrize("part", [
    {"step": 19}, {"step": 21}, {"epoch": 0}, {"catalogue_offset": 4 * ITEMS_N},
    {"catalogue_offset": 5 * ITEMS_N - 1}, {"item_state_offset": 8}, {"session_offset": 3}, {"policy": 2},
])  # fmt: skip
def test_every_version_shows_in_the_answer(tmp_path: Path, part: dict[str, int]) -> None:
    config, log = versioned_config(tmp_path), ImpressionlessLog()
    create_topics(log, config)
    canary, sessions = VersionPublisher(config, log, {}), MemorySessions()
    canary.publish_all()
    service = Service(config, log, sessions, lambda: NOW_MS)
    service.live.followers.catch_up(lambda: False)
    revisions = {}
    for revision in (1, 2):
        policy = service.live.control.policies.resolve("u0")
        revisions[revision] = {"policy": policy.digest, "arms": policy.arms}
        canary.publish_policy()
        service.live.followers.apply(service.live.followers.read())
    oracle, fields = Oracle(config), {k: v for k, v in part.items() if k != "policy"}
    one = oracle.of(stamp(**revisions[1]), "u0")
    other = oracle.of(stamp(**(fields | revisions[part.get("policy", 1)])), "u0")
    assert one.scores != other.scores


def late(of: type, name: str, lag: Callable[[Any, list[Any], Any], Any]) -> Plant:
    """Plants a method whose argument takes effect a call later, as ``lag`` says."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        kept: list[Any] = []
        original = getattr(of, name)
        patch.setattr(of, name, lambda self, value: original(self, lag(self, kept, value)))

    return plant


def table_later(table: str) -> Plant:
    def lag(_: Replica, kept: list[Any], delta: Any) -> Any:
        tables = dict(delta.tables)
        kept.append(tables.pop(table))
        return replace(delta, tables=tables | ({table: kept.pop(0)} if len(kept) > 1 else {}))

    return late(Replica, "apply_step", lag)


def dense_later(_: Replica, kept: list[Any], delta: Any) -> Any:
    kept.append(delta.dense)
    return replace(delta, dense=kept.pop(0) if len(kept) > 1 else None)


def vectors_later(_: Replica, kept: list[Any], indices: Any) -> Any:
    kept.append(indices)
    return kept.pop(0) if len(kept) > 2 else indices[:0]


def applied_during_a_request(patch: pytest.MonkeyPatch) -> None:
    """As where a request gives the loop away between retrieval and ranking."""
    waiting: list[Callable[[], None]] = []
    scored = ranker.probabilities

    class Loop:
        def call_soon_threadsafe(self, apply: Callable[[], None]) -> None:
            waiting.append(apply)

    def probabilities(*arguments: Any) -> Any:
        while waiting:
            waiting.pop(0)()
        return scored(*arguments)

    start = FollowerThread.start
    patch.setattr(FollowerThread, "start", lambda self, _: start(self, Loop()))  # type: ignore[arg-type]
    patch.setattr(ranker, "probabilities", probabilities)


def stamp_of_before(patch: pytest.MonkeyPatch) -> None:
    """As where the stamp is taken when a request comes, and something is applied while it waits."""
    taken: list[Stamp] = []
    made = AnswerAssembly._stamp

    def its(self: AnswerAssembly, *of: Any) -> Stamp:
        now = made(self, *of)
        taken.append(changed(now, policy="", arms={}, session_offset=0))
        old = taken.pop(0) if len(taken) > 1 else taken[0]
        return changed(old, policy=now.policy, arms=now.arms, session_offset=now.session_offset)

    patch.setattr(AnswerAssembly, "_stamp", its)


PLANTS: dict[str, Plant] = {
    "applied during a request": applied_during_a_request,
    "stamp of before": stamp_of_before,
    "vectors later than rows": late(Replica, "_place", vectors_later),
    "dense parameters later": late(Replica, "apply_step", dense_later),
    **{f"{name} later": table_later(name) for name in ("features", "items", "users")},
}


@pytest.mark.slow
def test_a_shard_whose_vectors_stay_as_they_were_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = RetrievalShard._place

    def stays(its: RetrievalShard, indices: Any) -> None:
        if len(its.index) < len(its.catalogue):
            place(its, indices)

    monkeypatch.setattr(RetrievalShard, "_place", stays)
    assert with_shards(tmp_path, 200)["mixed"] > 0


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_met(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    found = seen(tmp_path, 100)
    assert found["mixed"] > 0 and found["failed"] == 0, found


def test_a_step_that_goes_back_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are of one version each, but one is of before."""
    bird = VersionedService.in_folder(tmp_path, every=EVERY)
    older = Service(
        bird.service.config, bird.service.log, bird.service.sessions.store.sessions, lambda: NOW_MS
    )
    older.live.followers.catch_up(lambda: False)
    asked = bird.service.recommend

    async def recommend(request: Request) -> Any:
        return await (older.recommend if bird.asked % 20 == 19 else asked)(request)

    monkeypatch.setattr(bird.service, "recommend", recommend)
    found = counts(bird, asyncio.run(in_process(bird, 100)), 0.0)
    assert found["went_back"] > 0 and found["mixed"] == 0, found


def test_the_bench_adds_up_what_its_parts_found() -> None:
    found = measure_stamp(40, 0, 12, seed=3)["figures"]
    assert (found["requests"], found["explained"], found["equal"]) == (40, 12, 12)
    assert found["mixed"] == found["failed"] == found["went_back"] == 0
    assert "over_http" not in found
