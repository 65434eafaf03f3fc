"""``recsys study narrowed``: new accounts leave one item to choose from, and like it, over the API's routes.

People read lists of a small catalogue in one process, with all parts. Then each account of an attack asks for
lists of one item that its filters leave, once for each target, and engages with it. Targets are compared with
controls of the same popularity: their places in people's lists, and in those that are the same for all."""

import asyncio
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import numpy as np
import typer
from numpy.typing import NDArray
from typer import Option

from benchmarks.harness.commands import study_command
from benchmarks.harness.local_system import LocalSystem, small_config
from plugins.quarantine.cohorts import Accounts
from recsys.config.safety_config import AccessConfig, BoundsConfig
from recsys.events.event_types import Item, decode
from recsys.events.hashing import uniform
from recsys.events.records import EVENTS
from serving.access.key_files import TOKEN_KEYS
from serving.http_app import build_app

_ITEMS: Final = 143
_TARGETS, _CONTROLS = 8, 16
_LIST: Final = 10
_PROBED: Final = 30  # people whose lists are compared
_PAUSE_MS: Final = 20_000  # between two lists of people
_HOLD_NATS: Final = 8.0


class AttackedApi:
    """A system behind its routes, with people who read lists and accounts that attack."""

    def __init__(self, system: LocalSystem, client_of: Any, seed: int) -> None:
        self.system, self._client_of, self.seed = system, client_of, seed
        self.ids = [f"v{n}" for n in range(_ITEMS)]
        self.counts = Counter[str]()

    async def read(self, person: int, turn: int) -> None:
        """A person reads a list, and likes some items by their appeal."""
        user = f"u{person}"
        answer = await self._post(user, "/v1/recommend", {"user_id": user, "n": _LIST})
        events = []
        for item in answer["items"]:
            likes = uniform(self.seed, "like", user, turn, item["item_id"]) < self._appeal(item["item_id"])
            kind = {"kind": "like"} if likes else {"kind": "view", "watch_ms": 500}
            events.append(self._event(user, answer, item["item_id"]) | kind)
        self.counts.update(await self._send(user, events))

    async def attack(self, account: int, target: str) -> None:
        """A new account leaves one item to choose from, and likes it."""
        user, others = f"a{account}", [item for item in self.ids if item != target]
        asked = {"user_id": user, "n": 1, "exclude_ids": others}
        answer = await self._post(user, "/v1/recommend", asked)
        events = [self._event(user, answer, target) | {"kind": kind} for kind in ("like", "share")]
        events.append(self._event(user, answer, target) | {"kind": "view", "watch_ms": 20_000})
        self.counts.update(await self._send(user, events))

    async def places(self) -> NDArray[np.float64]:
        """Mean place of each item among all in people's lists (I,)."""
        places = np.zeros(_ITEMS)
        for person in range(_PROBED):
            user = f"u{person}"
            asked = {"user_id": user, "candidate_ids": self.ids, "n": _ITEMS, "log": False}
            answer = await self._post(user, "/v1/rank", asked)
            for place, item in enumerate(answer["items"]):
                places[int(item["item_id"][1:])] += place / _PROBED
        return places

    async def shared_lists(self) -> set[str]:
        """Items of the first twenty that are popular or trending."""
        listed = set[str]()
        for name in ("popular", "trending"):
            answer = await self._client_of("u0").get(f"/v1/{name}", params={"n": 20})
            listed |= {item["item_id"] for item in answer.json()["items"]}
        return listed

    def pass_time(self, ms: int) -> None:
        self.system.now_ms += ms
        self.system.turn()

    def _appeal(self, item_id: str) -> float:
        return 0.5 * uniform(self.seed, "appeal", item_id) ** 2

    def _event(self, user: str, answer: dict[str, Any], item_id: str) -> dict[str, Any]:
        about = {"user_id": user, "item_id": item_id, "time_ms": self.system.now_ms}
        return about | {"type": "engagement"} | {name: answer[name] for name in ("request_id", "token")}

    async def _send(self, user: str, events: list[dict[str, Any]]) -> dict[str, int]:
        receipt = await self._post(user, "/v1/events", {"events": events})
        return {name: receipt[name] for name in ("accepted", "unproven", "rejected") if name in receipt}

    async def _post(self, user: str, path: str, body: dict[str, Any]) -> Any:
        answer = await self._client_of(user).post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()


async def measured(
    folder: Path, accounts: int, people: int, lists: int, seed: int, free_share: float
) -> dict[str, Any]:
    """Places of targets and controls before and after an attack by so many accounts."""
    bounds, access = BoundsConfig(free_share=free_share), AccessConfig(mode="open")
    config = replace(small_config(folder), bounds=bounds, access=access)
    (folder / "run").mkdir(parents=True)
    (folder / "run" / TOKEN_KEYS).write_text("secret of the study's tokens")
    system = LocalSystem(config)
    items = [
        Item(time_ms=system.now_ms, item_id=f"v{n}", fields={"author": f"a{n % 9}"}) for n in range(_ITEMS)
    ]
    system.publish(items)
    await system.start()
    app = build_app(system.service, lambda: "")

    def client_of(user: str) -> httpx.AsyncClient:
        number = int(user[1:]) + (0 if user[0] == "u" else 10_000)
        address = f"10.{number // 200}.{number % 200}.1"  # a network of its own
        transport = httpx.ASGITransport(app=app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    api = AttackedApi(system, client_of, seed)
    for turn in range(lists):
        for person in range(people):
            await api.read(person, turn)
            api.pass_time(_PAUSE_MS)
    api.pass_time(120_000)
    before = await api.places()
    draw = np.random.default_rng(seed)
    chosen = draw.choice(np.argsort(before)[_ITEMS // 2 :], _TARGETS + _CONTROLS, replace=False)
    targets, controls = chosen[:_TARGETS], chosen[_TARGETS:]
    listed = await api.shared_lists()
    api.counts.clear()
    for account in range(accounts):
        for target in targets:
            await api.attack(account, f"v{target}")
        api.pass_time(1_000)
    for _ in range(4):
        api.pass_time(60_000)
    moved, entered = before - await api.places(), await api.shared_lists() - listed
    held = _held(system)
    await system.stop()
    return {
        "accounts": accounts,
        "engagements": dict(api.counts),
        "targets_moved": float(np.median(moved[targets])),
        "controls_moved": float(np.median(moved[controls])),
        "targets_moved_most": float(moved[targets].max()),
        "targets_entered": sum(f"v{n}" in entered for n in targets),
        "attackers_named": sum(user.startswith("a") for user in held),
        "people_named": sum(user.startswith("u") for user in held) / people,
    }


def _held(system: LocalSystem) -> set[str]:
    accounts = Accounts()
    for partition in range(system.log.partitions(EVENTS)):
        for record in system.log.read(EVENTS, partition, 0, 10**6):
            accounts.feed(decode(record.value))
    return {user for cohort in accounts.over(_HOLD_NATS) for user in cohort.users}


@study_command
def narrowed(
    accounts: Annotated[list[int], Option(help="Numbers of new accounts.")] = [20, 200],  # noqa: B006
    people: Annotated[int, Option(min=20, help="People before the attack.")] = 60,
    lists: Annotated[int, Option(min=1, help="Lists of each.")] = 6,
    seed: Annotated[int, Option(help="Seed.")] = 1,
    free_share: Annotated[float, Option(min=0, max=1, help="bounds.free_share; 0: no bound.")] = 0.5,
) -> dict[str, Any]:
    """Targets of accounts that leave one item to choose from, beside controls."""
    rows = []
    for count in accounts:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(asyncio.run(measured(Path(folder), count, people, lists, seed, free_share)))
        typer.echo(json.dumps(rows[-1]))
    return {"free_share": free_share, "rows": rows}
