"""A little real run in one process: what its parts left on the log is enough to make its answers again."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from recsys.cli.explainer import EQUAL, Explainer
from recsys.cli.one_process import START_MS, OneProcess, small_config
from recsys.events import Item, User
from recsys.hashing import uniform
from serving.request import Request

EXPERIMENT = """
name: more
traffic: 1.0
arms:
  control: {share: 0.5}
  treatment: {share: 0.5, overrides: {explore: 0.5, weights.like: 3.0, per_author: 1}}
"""


def item(n: int, **more: Any) -> Item:
    fields = {"author": f"a{n % 7}", "tags": [f"t{n % 5}", f"s{n % 3}"], "topic": f"t{n % 5}",
              "duration_ms": 8_000 + 500 * (n % 9)}  # fmt: skip
    return Item(time_ms=START_MS, item_id=f"v{n}", fields=fields | more)


async def live(system: OneProcess, requests: int, users: int = 7) -> list[str]:
    """Viewers ask and watch; the ids of their requests."""
    asked = []
    for n in range(requests):
        system.now_ms += 1_000
        user = f"u{n % users}"
        answer = await system.ask(Request(user, n=5, context={"surface": "feed"}))
        asked.append(answer.request_id)
        if uniform(0, n) < 0.8:
            await system.watch(answer)
        if n % 3 == 0:
            system.turn()
    return asked


def run(config: Any, scenario: Callable[[OneProcess], Awaitable[None]]) -> None:
    async def whole() -> None:
        system = OneProcess(config)
        system.publish([item(n) for n in range(60)])
        for n in range(4):
            system.profile(User(time_ms=START_MS, user_id=f"u{n}", fields={"country": f"c{n % 2}"}))
        await system.start()
        try:
            await scenario(system)
        finally:
            await system.stop()

    asyncio.run(whole())


def verdicts(system: OneProcess, asked: list[str]) -> list[tuple[str, str]]:
    explainer = Explainer(system.log, system.config, system.features)
    found = [explainer.explain(request_id) for request_id in asked]
    return [(its.verdict, f"{its.why} {its.differences[:2]}") for its in found]


def test_every_answer_of_a_run_is_made_again(tmp_path: Path) -> None:
    async def scenario(system: OneProcess) -> None:
        asked = await live(system, 40)
        found = verdicts(system, asked)
        assert [why for verdict, why in found if verdict != EQUAL] == []

    run(small_config(tmp_path), scenario)
