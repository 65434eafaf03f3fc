"""A little real run in one process whose lists other policies are judged by, the second half interleaved."""

import asyncio
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.local_system import START_MS, LocalSystem, small_config
from recsys.config.system_config import Config, JoinConfig
from recsys.events.control_records import Experiments
from recsys.events.event_types import Item
from recsys.events.hashing import uniform
from runtime.supervision import launch_plan as plans
from runtime.supervision.launch_plan import Plan, RayPorts
from serving.request import Request

USERS, LISTS = 36, 150
INTERLEAVING = """
name: duel
kind: interleaving
layer: duels
credit: {like: 1.0, long_view: 0.5}
arms:
  control:
  treatment: {overrides: {weights.like: 3.0, diversity: 0.1}}
"""


def config_of(folder: Path) -> Config:
    base = small_config(folder)
    policy = replace(base.policy, temperature=0.2, explore=0.2)
    surfaces = {"detail": {"explore": 0.5, "weights.like": 2.0, "sources.fresh": 8}}
    return replace(base, policy=policy, join=JoinConfig(window_s=30.0), surfaces=surfaces)


def item(n: int) -> Item:
    fields = {"author": f"a{n % 9}", "tags": [f"t{n % 5}", f"s{n % 3}"], "topic": f"t{n % 5}",
              "duration_ms": 8_000 + 500 * (n % 9)}  # fmt: skip
    return Item(time_ms=START_MS, item_id=f"v{n}", fields=fields)


def request_of(n: int) -> Request:
    user = f"u{n % USERS}"
    if n % 10 == 7:
        return Request(user, n=3, by_score=True)
    surface = "detail" if n % 4 == 2 else "feed"
    return Request(user, n=3, exclude_ids=("v1", "v2")[: n % 3], surface=surface)


async def scenario(folder: Path) -> list[str]:
    """The ids of its requests. Its folder is one that commands can read."""
    config = config_of(folder)
    system = LocalSystem(config)
    plans.write(config, Plan(ray=RayPorts(*range(len(RayPorts.__struct_fields__)))))
    system.publish([item(n) for n in range(40)])
    await system.start()
    asked = []
    for n in range(2 * LISTS):
        if n == LISTS:
            system.experiments(
                Experiments(revision=1, configs={"duel.yaml": INTERLEAVING}, time_ms=system.now_ms)
            )
            system.turn()
        system.now_ms += 1_000
        answer = await system.ask(request_of(n))
        asked.append(answer.request_id)
        if uniform(0, n) < 0.9:
            await system.watch(answer)
        if n % 5 == 0:
            system.turn()
    for _ in range(3):
        system.now_ms += 40_000
        system.turn()
    await system.stop()
    return asked


def run(folder: Path) -> list[str]:
    return asyncio.run(scenario(folder))
