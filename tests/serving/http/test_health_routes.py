"""Health, readiness, metrics and pages over ASGI."""

import asyncio
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys.config.system_config import ServeConfig
from recsys.log.protocol import LogUnavailable
from serving.followers.follower_thread import FollowerThread
from serving.http_app import build_app
from tests.support.serving.service_harness import World, living


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_health_readiness_metrics_page_and_docs(world: World) -> None:
    async with living(world) as w:
        await w.recommend()
        assert (await w.client.get("/healthz")).status_code == 200
        assert (await w.client.get("/readyz")).json()["ready"] is True
        text = (await w.client.get("/metrics")).text
        assert 'recsys_requests_total{route="/v1/recommend",status="200"} 1.0' in text
        assert "recsys_items 60.0" in text
        answer_ms = re.findall(r"(?m)^recsys_answer_p\d\d_ms (\S+)", text)
        assert len(answer_ms) == 2 and all(0 < float(ms) < 60_000 for ms in answer_ms)
        shares = re.findall(r"(?m)^recsys_(failed|degraded)_share (\S+)", text)
        assert dict(shares) == {"failed": "0.0", "degraded": "1.0"}  # without a model yet
        assert "<!doctype html>" in (await w.client.get("/")).text
        assert (await w.client.get("/static/main.js")).status_code == 200
        schema = (await w.client.get("/openapi.json")).json()
        assert {"/v1/recommend", "/v1/events", "/v1/status"} <= schema["paths"].keys()
        body = schema["components"]["schemas"]["RecommendIn"]
        assert body["examples"][0]["user_id"] == "u42"
        docs = (await w.client.get("/docs")).text
        needed = re.findall(r'(?:src|href)="([^"]+)"', docs)
        assert needed, "the page has its script and style"
        for path in needed:  # all from here: a laptop without a network reads them too
            assert path.startswith("/") and (await w.client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/popular", "/static/main.js"])
async def test_head_answers_as_get_does_and_nothing_is_reused_without_asking(world: World, path: str) -> None:
    async with living(world) as w:
        head, get = await w.client.head(path), await w.client.get(path)
        assert head.status_code == get.status_code == 200
        assert head.headers["content-length"] == get.headers["content-length"]
        # By its Last-Modified a browser would keep a file for days, and mix two versions of the page.
        assert get.headers["cache-control"] == "no-cache"


async def test_the_schema_names_each_field_of_a_stamp_and_of_the_status(world: World) -> None:
    async with living(world) as w:
        schemas = (await w.client.get("/openapi.json")).json()["components"]["schemas"]
        stamp = (await w.recommend())["stamp"]
        assert schemas["StampOut"]["properties"].keys() == stamp.keys()
        status = (await w.client.get("/v1/status")).json()
        assert schemas["StatusOut"]["properties"].keys() == status.keys()


async def test_the_status_has_the_figures_of_answers_that_the_metrics_have(world: World) -> None:
    async with living(world) as w:
        before = (await w.client.get("/v1/status")).json()
        assert before["answers"] == 0 and before["answer_p50_ms"] is before["degraded_share"] is None
        for _ in range(3):
            await w.recommend()
        await w.client.get("/v1/popular")
        status = (await w.client.get("/v1/status")).json()
        text = (await w.client.get("/metrics")).text
        for name in ("answers", "answer_p50_ms", "answer_p99_ms", "failed_share", "degraded_share"):
            [value] = re.findall(rf"(?m)^recsys_{name} (\S+)", text)
            assert float(value) == status[name], name
        assert (status["answers"], status["degraded_share"]) == (4, 0.75)


@pytest.mark.parametrize("path", ["popular", "latest", "trending", "items/v1/similar", "rank"])
async def test_lists_of_every_kind_count_in_the_times_and_shares_of_answers(world: World, path: str) -> None:
    async with living(world) as w:
        body = {"user_id": "u", "candidate_ids": ["v1"]}
        answer = await (
            w.client.post("/v1/rank", json=body) if path == "rank" else w.client.get(f"/v1/{path}")
        )
        assert answer.status_code == 200, answer.text
        text = (await w.client.get("/metrics")).text
        answer_ms = re.findall(r"(?m)^recsys_answer_p\d\d_ms (\S+)", text)
        assert len(answer_ms) == 2 and all(0 < float(ms) < 60_000 for ms in answer_ms)
        shares = re.findall(r"(?m)^recsys_degraded_share (\S+)", text)
        assert shares == ["1.0" if path == "rank" else "0.0"]  # without a model yet
        name = "items/{item_id:path}/similar" if "/" in path else path
        assert f'recsys_requests_total{{route="/v1/{name}",status="200"}} 1.0' in text


async def test_of_several_replicas_each_says_which_one_it_is(tmp_path: Path) -> None:
    several = World(tmp_path, serve=ServeConfig(replicas=2))

    async with living(several) as w:
        told = list[str]()
        for _ in range(2):
            text = (await w.client.get("/metrics")).text
            told += re.findall(r'recsys_items{replica="(\w{8})"} 60.0', text)
            samples = [line for line in text.splitlines() if not line.startswith("#")]
            assert all(f'replica="{told[0]}"' in line for line in samples)
        assert len(told) == 2 and len(set(told)) == 1


async def test_not_ready_is_said_before_the_log_is_read(world: World) -> None:
    async with living(world) as w:
        w.service.live.followers.ready = False
        assert (await w.client.get("/readyz")).status_code == 503
        answer = await w.client.post("/v1/recommend", json={"user_id": "u1"})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


async def test_a_replica_that_is_cut_off_from_the_log_is_not_ready_and_answers_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.followers.follower_thread._RETRY_S", 0.01)
    now_s = [100.0]
    live = world.service.live
    live.thread = FollowerThread(world.log, live.followers, lambda: now_s[0])
    read = world.log.read
    failed = []

    def away(*_: Any) -> Any:
        failed.append(1)
        raise LogUnavailable("no broker answers")

    async def until(condition: Callable[[], bool]) -> None:
        for _ in range(500):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it didn't come to that")

    async with living(world) as w:
        w.log.read = away  # type: ignore[method-assign]
        await until(lambda: len(failed) > 2)
        assert (await w.client.get("/readyz")).status_code == 200  # perhaps it comes back at once
        now_s[0] += 6.0
        told = await w.client.get("/readyz")
        assert told.status_code == 503 and told.json()["ready"] is False
        assert told.json()["failure"] == "the log has been away for 6 s: no broker answers"
        assert (await w.client.get("/healthz")).status_code == 200
        assert w.service.failure == ""  # else Serve would put another replica in its place
        assert len((await w.recommend(n=5))["items"]) == 5
        assert "recsys_ready 0.0" in (await w.client.get("/metrics")).text
        w.log.read = read  # type: ignore[method-assign]
        await until(lambda: w.service.ready)
        again = await w.client.get("/readyz")
        assert again.status_code == 200 and again.json()["failure"] == ""


async def test_the_app_has_started_once_the_replica_has_caught_up(world: World) -> None:
    catch_up = world.service.live.followers.catch_up
    let = threading.Event()

    def late(stopped: Callable[[], bool]) -> None:
        let.wait(5)
        catch_up(stopped)

    world.service.live.followers.catch_up = late  # type: ignore[method-assign]

    told: list[bool] = []

    async def start(wait_s: float) -> None:
        app = build_app(world.service, lambda: "", wait_s, lambda: told.append(world.service.ready))
        async with app.router.lifespan_context(app):
            assert world.service.ready and told == [True]

    starting = asyncio.ensure_future(start(5.0))
    await asyncio.sleep(0.1)
    assert not starting.done() and not world.service.ready and not told
    let.set()
    await starting


async def test_a_page_is_told_the_definition_and_each_change_of_it(world: World) -> None:
    file = Path(world.config.state) / "app.yaml"
    async with living(world) as w:
        shown = (await w.client.get("/v1/app")).json()
        labels = {kind["kind"]: kind["label"] for kind in shown["kinds"]}
        assert labels["like"] == "positive" and labels["hide"] == "negative" and shown["layout"] == "swipe"
        for changed_ns, name in enumerate(("first", "second"), 1):
            file.write_text(f"app: {name}")
            os.utime(file, ns=(changed_ns, changed_ns))
            assert (await w.client.get("/v1/app")).json()["app"] == name
