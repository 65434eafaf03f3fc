"""Retrieval in two shards of its own behind Serve: lists come, a new item too, and a shard that is killed."""

import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support.systems.serve_process import System, recsys, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(300)]
ITEMS = 200


def item(name: str) -> dict[str, Any]:
    number = int(name[1:])
    fields = {"author": f"a{number % 40}", "tags": [f"t{number % 9}"], "duration_ms": 9_000}
    return {"item_id": name, "fields": fields}


def put(system: System, *names: str) -> None:
    body = {"items": [item(name) for name in names]}
    done = system.client.post("/v1/items", json=body, headers=system.admin)
    assert done.status_code == 202 and done.json()["accepted"] == len(names), done.text


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    state = tmp_path_factory.mktemp("retrieval") / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS__SERVE__RETRIEVAL_SHARDS", "2")
        patch.setenv("RECSYS__SERVE__SOURCE_FLOOR", "1")  # the shares stay as they are set
        patch.setenv("RECSYS__POLICY__SOURCES__SIMILAR", "80")
        up = recsys("up", "--detach", "--only", "serve,session-fold", state=state)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        running = System(state)
        put(running, *(f"v{n}" for n in range(ITEMS)))
        until(lambda: running.client.get("/v1/status").json()["items"] == ITEMS)
        yield running
    finally:
        recsys("down", state=state)


def shard_process(system: System, number: int) -> psutil.Process | None:
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if f"Retrieval-{number}" in words and str(system.state) in str(process.environ()):
            return process
    return None


def test_shards_answer_follow_and_may_be_killed(system: System) -> None:
    first = system.recommend("anna", n=1)
    liked = first["items"][0]["item_id"]
    system.view(first, "anna", 8_000)
    until(lambda: system.events_of("anna") == 2)

    others = [f"v{n}" for n in range(ITEMS - 20)]  # so few are left that all of them are in the list
    new = f"v{int(liked[1:]) + 360}"  # of the same author, with the same tags

    def ask() -> dict[str, Any]:
        return system.recommend("anna", n=50, exclude_ids=others)

    def near(answer: dict[str, Any]) -> set[str]:
        return {its["item_id"] for its in answer["items"] if "similar" in its["sources"]}

    whole: dict[str, Any] = {}

    def is_whole() -> bool:
        """Whether both shards were in time: with other work on the machine one may be late."""
        whole.update(ask())
        return bool(whole["degraded"] == ["model"])

    until(is_whole, 10.0)
    assert whole["stamp"]["index"] == "2:flat+flat"
    assert len(near(whole)) >= 10 and not near(whole) & set(others)
    put(system, new)
    until(lambda: new in near(ask()), 10.0)

    killed = shard_process(system, 1)
    assert killed is not None
    killed.kill()
    seen, slowest = set(), 0.0
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        answer = ask()
        seen.add(answer["stamp"]["index"])
        slowest = max(slowest, answer["took_ms"])
        if "retrieval" not in answer["degraded"] and "2:flat+none" in seen:
            break
        time.sleep(0.1)
    assert seen == {"2:flat+flat", "2:flat+none"}  # while it was away, the other was asked alone
    assert answer["degraded"] == ["model"] and near(answer) == near(whole) | {new}
    assert slowest < 5_000
