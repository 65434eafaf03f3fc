"""A run of all parts in one process on a SQLite log, and the reconstruction of its answers.

Viewers ask, watch, like and hide; items come, change and go; an experiment begins; the replica restarts now
and then. The checker gets only the log, the snapshots and the request ids.
"""

import asyncio
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.local_system import START_MS, LocalSystem, small_config
from plugins.answer_explanation.answer_check import EQUAL, AnswerChecker
from recsys.events.control_records import Experiments
from recsys.events.event_types import Item, User
from recsys.events.hashing import uniform
from serving.request import Request

ITEMS: Final = 400
USERS: Final = 40
_EXPERIMENT: Final = """
name: bolder
traffic: 0.8
arms:
  control: {share: 0.5}
  treatment: {share: 0.5, overrides: {explore: 0.3, weights.like: 2.0, per_author: 1}}
"""


def explain_run(folder: Path, requests: int, seed: int) -> dict[str, Any]:
    """Runs the system, then recomputes every answer; counts those equal to the last bit."""
    config = small_config(folder)
    began = time.monotonic()
    asked, steps = asyncio.run(run_system(LocalSystem(config), requests, seed))
    ran_s, began = time.monotonic() - began, time.monotonic()
    system = LocalSystem(config)  # as after a restart, without memory of the run
    explainer = AnswerChecker(system.log, config, system.features)
    checks = [explainer.explain(request_id, user) for request_id, user in asked]
    system.close()
    unequal = [
        f"{check.verdict}: {check.why} {check.differences[:2]}" for check in checks if check.verdict != EQUAL
    ]
    figures = {
        "explained": len(checks),
        "equal": len(checks) - len(unequal),
        "steps": steps,
        "run_s": round(ran_s, 1),
        "explain_s": round(time.monotonic() - began, 1),
    }
    return figures | ({"first": unequal[:5]} if unequal else {})


def _item(n: int, seed: int, version: int = 0) -> Item:
    draws = [uniform(seed, "item", n, version, k) for k in range(4)]
    tags = [f"t{int(10 * draw)}" for draw in draws[:2]]
    fields = {"author": f"a{n % 50}", "tags": tags, "topic": tags[0],
              "duration_ms": int(5_000 + 20_000 * draws[3])}  # fmt: skip
    return Item(time_ms=START_MS, item_id=f"v{n}", fields=fields)


async def run_system(system: LocalSystem, requests: int, seed: int) -> tuple[list[tuple[str, str]], int]:
    system.publish([_item(n, seed) for n in range(ITEMS)])
    for n in range(0, USERS, 2):
        system.profile(User(time_ms=START_MS, user_id=f"u{n}", fields={"country": f"c{n % 7}"}))
    await system.start()
    asked = []
    for n in range(requests):
        system.now_ms += 500
        if n % 25 == 24:
            await _change(system, n, seed)
        user = f"u{int(USERS * uniform(seed, 'who', n))}"
        answer = await system.ask(_request(n, user, seed))
        asked.append((answer.request_id, user))
        if uniform(seed, "watches", n) < 0.7:
            await system.watch(answer)
        if n % 2:
            system.turn()
    steps = system.service.replica.step
    await system.stop()
    return asked, steps


def _request(n: int, user: str, seed: int) -> Request:
    some = tuple(f"v{int(ITEMS * uniform(seed, 'some', n, k))}" for k in range(30))
    if n % 10 == 3:
        return Request(user, n=5, candidate_ids=some, by_score=n % 20 == 13)
    return Request(user, n=8, context={"surface": "feed"}, exclude_ids=some[: n % 4])


async def _change(system: LocalSystem, n: int, seed: int) -> None:
    """Changes the catalogue, the experiments or the replica."""
    turn = n // 25
    changed = _item(int(ITEMS * uniform(seed, "changed", n)), seed, turn)
    changed.time_ms = system.now_ms
    removed = Item(time_ms=system.now_ms, item_id=f"v{turn}", removed=True)
    system.publish([changed, removed, _item(ITEMS + turn, seed)])
    if turn == 4:
        system.experiments(Experiments(revision=1, configs={"bolder": _EXPERIMENT}))
    if turn % 5 == 4:
        await system.restart_replica()
