"""All shards are asked at once; what one of them doesn't say is missing, in bounded time, at one version."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config, ServeConfig
from recsys.events.records import ITEMS
from recsys.log.protocol import MemoryLog
from serving.query import VectorVersion
from serving.retrieval.retrieval_client import (
    BREAKER_OPEN_S,
    FAILURE_SPACING_S,
    FAILURES,
    LONGEST_S,
    MIN_FAILURE_WAIT_S,
    RetrievalClient,
)
from serving.retrieval.retrieval_plan import RetrievalPlan, VectorQuery
from serving.retrieval.retrieval_service import RetrievalService
from serving.retrieval.retrieval_shard import ShardRequest, ShardResponse
from serving.service import Service
from tests.support.serving.service_harness import World, item, run, view

VERSION = VectorVersion("main", 0, 3, 40)
ONES = np.ones(4, np.float32)
LATER_S = 1.5 * FAILURE_SPACING_S  # failures count each
Answer = Callable[[bytes], Awaitable[bytes]]


def plan(*queries: VectorQuery, without: list[int] | None = None) -> RetrievalPlan:
    its = queries or (VectorQuery("vector", ONES, 2),)
    return RetrievalPlan(VERSION, its, np.array(without or [], np.int64))


def told(keys: list[int], products: list[float], counts: list[int] | None = None) -> ShardResponse:
    return ShardResponse(
        index="",
        counts=counts or [len(keys)],
        keys=np.array(keys, np.int64).tobytes(),
        products=np.array(products, np.float32).tobytes(),
    )


def answering(value: ShardResponse) -> Answer:
    async def search(asked: bytes) -> bytes:
        return msgspec.msgpack.encode(value)

    return search


async def gone(asked: bytes) -> bytes:
    raise ConnectionError("gone")


async def slow(asked: bytes) -> bytes:
    await asyncio.sleep(10)
    raise AssertionError("nobody waits for so long")


def test_user_sides_come_first_and_each_shard_hears_of_its_own_items() -> None:
    queries = (
        VectorQuery("similar", 2 * ONES, 5),
        VectorQuery("vector", ONES, 7),
        VectorQuery("similar", ONES, 5),
    )
    asks = plan(*queries, without=list(range(100))).requests(3, 40.0)
    assert [ask.ks for ask in asks] == [[7, 5, 5]] * 3 and {ask.user_vectors for ask in asks} == {1}
    assert np.frombuffer(asks[0].queries, np.float32)[:4].tolist() == ONES.tolist()
    parts = [np.frombuffer(ask.keys, np.int64).tolist() for ask in asks]
    assert sorted(sum(parts, [])) == list(range(100)) and all(parts)
    assert [(ask.shard, ask.shards) for ask in asks] == [(0, 3), (1, 3), (2, 3)]


def test_answers_are_put_together_by_product_and_then_by_key() -> None:
    queries = (VectorQuery("vector", ONES, 3), VectorQuery("similar", ONES, 1))
    one = told([9, 4, 7], [2.0, 1.0, 5.0], [2, 1])
    other = told([3, 5, 6], [2.0, 1.0, 5.0], [2, 1])
    near = plan(*queries).merge([one, other])
    assert near.keys["vector"].tolist() == [3, 9, 4] and near.keys["similar"].tolist() == [6]
    assert near.index == "2:flat+flat" and not near.missing
    half = plan(*queries).merge([one, ShardResponse(refused="behind")])
    assert half.keys["vector"].tolist() == [9, 4] and half.missing
    assert half.index == "2:flat+none"
    none = plan(*queries).merge([None, None])
    assert none.keys["vector"].tolist() == [] and none.index == "2:none+none"


@pytest.mark.parametrize("broken", [gone, slow, answering(ShardResponse(refused="behind"))])
def test_a_shard_that_gives_no_answer_is_missing_and_then_left_alone(broken: Answer) -> None:
    async def scenario() -> None:
        now_s, asked = [100.0], []

        async def counted(ask: bytes) -> bytes:
            asked.append(ask)
            return await broken(ask)

        shards = RetrievalClient([answering(told([1], [1.0])), counted], lambda: now_s[0])
        for _ in range(FAILURES + 2):
            began = time.monotonic()
            near = await shards.search(plan(), MIN_FAILURE_WAIT_S)
            assert near.missing and near.keys["vector"].tolist() == [1]
            assert time.monotonic() - began < LONGEST_S + 5
            now_s[0] += LATER_S
        assert len(asked) == FAILURES and shards.failures == FAILURES + 2
        now_s[0] += BREAKER_OPEN_S
        shards._shards[1] = answering(told([2], [2.0]))
        assert (await shards.search(plan(), 1.0)).keys["vector"].tolist() == [2, 1]

    asyncio.run(scenario())


class Counting:
    """A shard that counts who asks, and who of them gave it up; it answers what it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked, self.given_up = answer, 0, 0

    async def __call__(self, ask: bytes) -> bytes:
        self.asked += 1
        try:
            return await self.answer(ask)
        except asyncio.CancelledError:
            self.given_up += 1
            raise


def test_who_has_no_time_left_asks_nobody_and_has_nobody_left_alone() -> None:
    async def scenario() -> None:
        shard = Counting(answering(told([1], [1.0])))
        shards = RetrievalClient([shard])
        for _ in range(FAILURES + 2):
            near = await shards.search(plan(), 0.0)
            assert near.missing and near.version == VERSION and near.index == "1:none"
        assert shard.asked == shards.failures == 0
        assert (await shards.search(plan(), 1.0)).keys["vector"].tolist() == [1]

    asyncio.run(scenario())


def test_a_shard_that_had_less_than_a_full_wait_did_not_fail() -> None:
    async def scenario() -> None:
        now_s, shard = [100.0], Counting(slow)
        shards = RetrievalClient([shard], lambda: now_s[0])
        for _ in range(FAILURES + 2):
            assert (await shards.search(plan(), MIN_FAILURE_WAIT_S / 5)).missing
            now_s[0] += LATER_S
        assert shard.asked == shards.failures == FAILURES + 2  # nobody left it alone

    asyncio.run(scenario())


def test_what_many_miss_at_one_moment_counts_once() -> None:
    async def scenario() -> None:
        now_s, shard = [100.0], Counting(slow)
        shards = RetrievalClient([shard], lambda: now_s[0])
        for moment in range(1, FAILURES + 1):
            await asyncio.gather(*(shards.search(plan(), MIN_FAILURE_WAIT_S) for _ in range(FAILURES)))
            assert shard.asked == moment * FAILURES
            now_s[0] += LATER_S
        await shards.search(plan(), MIN_FAILURE_WAIT_S)
        assert shard.asked == FAILURES * FAILURES  # by now it is left alone
        assert shards.failures == FAILURES * FAILURES + 1

    asyncio.run(scenario())


def test_a_request_that_is_given_up_gives_up_its_shards() -> None:
    async def scenario() -> None:
        shard = Counting(slow)
        search = asyncio.create_task(RetrievalClient([shard, shard]).search(plan(), LONGEST_S))
        await asyncio.sleep(0.01)
        search.cancel()
        await asyncio.gather(search, return_exceptions=True)
        await asyncio.sleep(0)
        assert search.cancelled() and (shard.asked, shard.given_up) == (2, 2)

    asyncio.run(scenario())


def test_shards_are_called_once_before_the_first_request_and_none_of_them_fails_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.retrieval.retrieval_client.CONNECT_S", 0.05)

    async def scenario() -> None:
        calls = [Counting(answering(ShardResponse(refused="line"))), Counting(slow), Counting(gone)]
        shards = RetrievalClient(calls)
        await shards.connect()
        assert [(shard.asked, shard.given_up) for shard in calls] == [(1, 0), (1, 1), (1, 0)]
        assert shards.failures == 0

    asyncio.run(scenario())


def shards_over(log: MemoryLog, config: Config, count: int) -> list[RetrievalService]:
    return [RetrievalService(config, log, n, count, lambda: 0) for n in range(count)]


def test_a_shard_waits_for_a_version_that_is_to_come(tmp_path: Path) -> None:
    world = World(tmp_path, items=20)

    async def scenario() -> None:
        [shard] = shards_over(world.log, world.config, 1)
        await shard.start()
        await shard.thread.caught_up(10.0)

        async def ask(offset: int, wait_ms: float) -> ShardResponse:
            query = np.ones(shard.shard.index.dim, np.float32).tobytes()
            asked = ShardRequest(VectorVersion("main", 0, 0, offset), query, [50], wait_ms=wait_ms)
            answer = await shard.search(msgspec.msgpack.encode(asked))
            return msgspec.msgpack.decode(answer, type=ShardResponse)

        assert (await ask(20, 0.0)).counts == [20]
        assert (await ask(21, 5.0)).refused == "behind"
        assert not shard._waiting  # who waited in vain isn't kept
        waiting = asyncio.create_task(ask(21, 5_000.0))
        await asyncio.sleep(0.01)
        world.put(item(20))
        assert (await waiting).counts == [21]
        assert (await ask(20, 0.0)).counts == [20]  # as it was
        assert len(shard.shard.catalogue) == 21 and not shard.thread.failure
        shard.thread.failure = "gone"
        told_in_time = asyncio.wait_for(ask(22, 60_000.0), 5.0)  # for what never comes nobody waits
        assert (await told_in_time).refused == "behind"
        shard.thread.failure = ""
        await shard.stop()

    asyncio.run(scenario())


class Sharded(World):
    """A service whose vectors are in two shards, over the same log."""

    def restart(self) -> None:
        policy = PolicyConfig(sources={"similar": 80, "vector": 80, "fresh": 20})
        self.config = replace(self.config, policy=policy)
        self.retrieval = shards_over(self.log, self.config, 2)
        self.shards = RetrievalClient([its.search for its in self.retrieval])
        self.service = Service(self.config, self.log, self.sessions, lambda: self.now_ms, self.shards)


async def liked(w: Sharded) -> None:
    """The shards follow, and the viewer likes something: so there is something to look around."""
    for its in w.retrieval:
        await its.start()
        await its.thread.caught_up(10.0)
    answer = await w.recommend(n=1)
    liked = answer["items"][0]["item_id"]
    sent = [view(answer["request_id"], liked, "e1", watch_ms=9_000, token=answer["token"])]
    assert (await w.client.post("/v1/events", json={"events": sent})).status_code == 202
    await w.written()
    while w.fold.turn():
        pass


async def ended(w: Sharded) -> None:
    for its in w.retrieval:
        await its.stop()


def near(answer: dict[str, Any]) -> set[str]:
    return {its["item_id"] for its in answer["items"] if "similar" in its["sources"]}


@pytest.fixture
def world(tmp_path: Path) -> Sharded:
    return Sharded(tmp_path, serve=ServeConfig(retrieval_shards=2))


def test_a_service_calls_its_shards_before_it_takes_requests(world: Sharded) -> None:
    async def scenario(w: World) -> None:
        assert isinstance(w, Sharded)
        calls = [Counting(answering(ShardResponse(refused="line"))) for _ in range(2)]
        w.shards._shards[:] = calls
        await w.service.caught_up(10.0)
        assert [shard.asked for shard in calls] == [1, 1]

    run(world, scenario)


def test_a_service_finds_by_shards_what_it_would_find_itself(world: Sharded) -> None:
    async def scenario(w: World) -> None:
        assert isinstance(w, Sharded)
        await liked(w)
        whole = await w.recommend(n=60)
        assert whole["degraded"] == ["model"] and whole["stamp"]["index"] == "2:flat+flat"
        assert len(near(whole)) == len(whole["items"]) and not w.service.replica.indexed
        narrow = {"topic": "t1", "author": ["a0", "a1", "a2"]}
        filtered = await w.recommend(n=60, filters=narrow)
        assert filtered["degraded"] == ["model"] and filtered["stamp"]["index"] == "2:flat+flat"
        meeting = {f"v{n}" for n in range(60) if n % 5 == 1 and n % 7 < 3}
        assert near(filtered) == meeting  # the liked one too: fewer than requested are left
        assert len(filtered["items"]) == len(meeting)
        given = await w.recommend(candidate_ids=["v3", "v4"])
        assert given["degraded"] == ["model"] and given["stamp"]["index"] == "2:none+none"
        path = "/v1/items/v1/similar"
        similar = (await w.client.get(path, params={"filters": '{"topic": "t1"}', "n": 50})).json()
        assert {shown["item_id"] for shown in similar["items"]} == {f"v{n}" for n in range(6, 60, 5)}
        assert similar["degraded"] == []
        w.shards._shards[1] = gone
        fewer = (await w.client.get(path, params={"n": 50})).json()
        assert fewer["degraded"] == ["retrieval"] and 0 < len(fewer["items"]) < 50
        half = await w.recommend(n=60)
        assert half["degraded"] == ["retrieval", "model"]
        assert half["stamp"]["index"] == "2:flat+none" and 0 < len(near(half)) < len(near(whole))
        w.shards._shards[0] = gone
        none = await w.recommend(n=50)
        assert len(none["items"]) >= 10 and not near(none)
        await ended(w)

    run(world, scenario)


def test_admission_hears_once_of_a_list_what_it_waited_for_all_that_it_asked(world: Sharded) -> None:
    """Whether shards are asked or not: for the session, and for each search."""

    async def scenario(w: World) -> None:
        assert isinstance(w, Sharded)
        await liked(w)
        heard: list[float] = []
        w.service.admission.observe_io_wait = lambda took_s, now_s: heard.append(took_s)  # type: ignore[method-assign]
        search = w.shards.search

        async def late(asked: RetrievalPlan, patience_s: float) -> Any:
            found = await search(asked, patience_s)
            before = w.service.replica.catalogue_offset
            if len(searches) < 2:  # so that it has to be asked twice
                w.put(item(60 + w.log.end(ITEMS, 0)))
                while w.service.replica.catalogue_offset == before:
                    await asyncio.sleep(0.001)
            began_s = time.monotonic()
            await asyncio.sleep(0.02)
            searches.append(time.monotonic() - began_s)
            return found

        searches: list[float] = []
        w.shards.search = late  # type: ignore[method-assign, assignment]
        await w.recommend(n=5)
        assert len(searches) >= 2 and len(heard) == 1 and heard[0] >= sum(searches)
        await w.recommend(candidate_ids=["v3"])  # nothing is asked of shards
        assert len(heard) == 2 and heard[1] < heard[0]
        await ended(w)

    run(world, scenario)


def test_what_was_found_at_another_version_is_asked_for_again_or_not_used(world: Sharded) -> None:
    """Between the shards' answer and the list an item comes: each time, or only once."""

    async def scenario(w: World) -> None:
        assert isinstance(w, Sharded)
        await liked(w)
        left, search = [1], w.shards.search

        async def overtaken(asked: RetrievalPlan, patience_s: float) -> Any:
            found = await search(asked, patience_s)
            if left[0]:
                left[0] -= 1
                before = w.service.replica.catalogue_offset
                w.put(item(60 + w.log.end(ITEMS, 0)))
                while w.service.replica.catalogue_offset == before:
                    await asyncio.sleep(0.001)
            return found

        w.shards.search = overtaken  # type: ignore[method-assign, assignment]
        answer = await w.recommend(n=60)
        assert answer["degraded"] == ["model"] and near(answer)
        assert answer["stamp"]["catalogue_offset"] == 61
        left[0] = 100
        answer = await w.recommend(n=50)
        assert answer["degraded"] == ["retrieval", "model"] and not near(answer)
        assert answer["stamp"]["index"] == "2:none+none" and left[0] == 97
        await ended(w)

    run(world, scenario)


@pytest.mark.parametrize(("apart_s", "asked"), [(FAILURE_SPACING_S, 3), (FAILURE_SPACING_S - 0.01, 5)])
def test_failures_count_from_the_least_time_apart_on(apart_s: float, asked: int) -> None:
    now_s, calls = [0.0], []

    async def counted(request: bytes) -> bytes:
        calls.append(request)
        raise ConnectionError("gone")

    async def fail() -> None:
        shards = RetrievalClient([counted], lambda: now_s[0])
        for n in range(5):
            now_s[0] = n * apart_s
            await shards.search(plan(), LONGEST_S)

    asyncio.run(fail())
    assert len(calls) == asked  # three failures in a row, and it is left alone
