"""``recsys bench audit``: runs apps by their definitions in one process, and recomputes every logged number.

Viewers draw kinds, values and fields from what a definition declares, so that any definition will do. Items
change, come and go, profiles change, and the replica restarts now and then.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.archived_log import archive_log
from benchmarks.harness.local_system import START_MS, LocalSystem, small_config
from plugins.feature_audit.archive_audit import audit_features
from plugins.feature_audit.audit_source import AuditSource
from recsys.app.app_file import read_app
from recsys.app.definition import App, Field
from recsys.config.system_config import Config
from recsys.events.event_types import Impression, Item, User
from recsys.events.hashing import uniform
from recsys.features.feature_set import FeatureSet, read_block
from recsys.features.feature_set_file import write_feature_set
from recsys.process.open_log import open_log
from runtime.supervision import launch_plan
from runtime.supervision.launch_plan import Plan, RayPorts
from serving.access.caller import SERVER
from serving.request import Answer, Request

_ITEMS: Final = 300
_USERS: Final = 40
_LIST: Final = 10
_EVERY: Final = 25  # requests between two changes of the catalogue
_RESTART_EVERY: Final = 50


def measure_audit(definitions: Sequence[Path], values: int, seed: int) -> dict[str, Any]:
    """Figures of each definition, by name of its app: at least ``values`` recomputed numbers each."""
    return {app.name: _audited(app, values, seed) for app in map(read_app, definitions)}


def _audited(app: App, values: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="recsys-audit-") as folder:
        archive = Path(folder) / "archive"
        requests, steps = asyncio.run(_AppRun(app, Path(folder), seed).run(values, archive))
        report = audit_features(Path(folder), 1.0, requests)
        recomputed = _logged_numbers(archive, app.feature_set())
    return {
        "lists": report.compared,
        "numbers": recomputed,
        "differing": sum(difference.numbers for difference in report.differing.values()),
        "columns_that_differ": sorted(report.differing),
        "not_recomputed": dict(report.not_recomputed),
        "without_counters": dict(report.without_counters),
        "steps": steps,
    }


def _logged_numbers(archive: Path, features: FeatureSet) -> int:
    placed = AuditSource(archive).impressions()
    return sum(_numbers_of(one.impression, features) for one in placed)


def _numbers_of(impression: Impression, features: FeatureSet) -> int:
    """Number of keys, outcomes and columns of an impression."""
    assert impression.features is not None
    block = read_block(impression.features, features)
    arrays = (block.user_U, block.items_NI, block.history_TH, block.outcomes_TO, block.dense_NF)
    return sum(array.size for array in arrays)


class _AppRun:
    """A system of an app in one process, and viewers who do what its definition declares."""

    def __init__(self, app: App, folder: Path, seed: int) -> None:
        self._app, self._seed = app, seed
        config = app.config(small_config(folder))
        write_feature_set(config, app.feature_set())
        launch_plan.write(config, Plan(ray=RayPorts(*range(len(RayPorts.__struct_fields__)))))
        self.config, self.system = config, LocalSystem(config)

    async def run(self, values: int, archive: Path) -> tuple[int, int]:
        """Runs until enough is logged, and archives it. Returns the number of lists and of steps."""
        system = self.system
        system.publish([self._item(number, 0) for number in range(_ITEMS)])
        for number in range(0, _USERS, 2):
            system.profile(self._user(number, 0))
        await system.start()
        lists, logged = 0, 0
        while logged < values:
            answer = await system.ask(self._request(lists))
            await self._engage(answer)
            lists, logged = lists + 1, logged + _numbers_of(answer.impression, system.features)
            if lists % _EVERY == 0:
                await self._change(lists)
            if lists % 2:
                system.turn()
        steps = system.service.replica.step
        await system.stop()
        _archive(self.config, archive)
        return lists, steps

    def _request(self, number: int) -> Request:
        self.system.now_ms += 500
        user = f"u{int(_USERS * uniform(self._seed, 'who', number))}"
        return Request(user, n=_LIST, context=self._fields("context", "c", number % 7))

    async def _engage(self, answer: Answer) -> None:
        """The viewer does something with most items, of a kind that the app declares."""
        events = []
        for shown in answer.items:
            self.system.now_ms += 700
            draws = [uniform(self._seed, answer.request_id, shown.rank, n) for n in range(3)]
            kinds = sorted(self._app.schema.kinds)
            kind = kinds[int(len(kinds) * draws[0])]
            event = {
                "type": "engagement", "time_ms": self.system.now_ms, "request_id": answer.request_id,
                "user_id": answer.impression.user_id, "item_id": shown.item_id, "kind": kind,
            }  # fmt: skip
            if kind == "view":
                event["watch_ms"] = int(20_000 * draws[1])
            elif value := self._app.events[kind].value:
                event[value] = round(50 * draws[1], 2)
            if draws[2] < 0.6:
                events.append(event)
        taken = await self.system.service.write_api.append_events(events, SERVER)
        assert taken.count("accepted") == len(events), taken.results

    async def _change(self, lists: int) -> None:
        """Changes an item and a profile, removes an item, adds one; restarts the replica now and then."""
        system, turn = self.system, lists // _EVERY
        changed = self._item(int(_ITEMS * uniform(self._seed, "changed", lists)), turn)
        gone = Item(time_ms=system.now_ms, item_id=f"i{turn}", removed=True)
        system.publish([changed, gone, self._item(_ITEMS + turn, 0)])
        system.profile(self._user(turn % _USERS, turn))
        if lists % _RESTART_EVERY == 0:
            await system.restart_replica()

    def _item(self, number: int, version: int) -> Item:
        fields = self._fields("item", f"i{number}", version)
        return Item(time_ms=self.system.now_ms, item_id=f"i{number}", fields=fields)

    def _user(self, number: int, version: int) -> User:
        fields = self._fields("user", f"u{number}", version)
        return User(time_ms=self.system.now_ms, user_id=f"u{number}", fields=fields)

    def _fields(self, part: str, *of: str | int) -> dict[str, Any]:
        declared = self._app.fields.get(part, {})
        return {name: self._value(f, name, *of) for name, f in declared.items()}

    def _value(self, declared: Field, *of: str | int) -> Any:
        draws = [uniform(self._seed, *of, n) for n in range(max(2, declared.length))]
        match declared.kind:
            case "list":
                return [f"v{int(8 * draw)}" for draw in draws]
            case "vector":
                return [round(draw - 0.5, 4) for draw in draws]
            case "number":
                return round(60_000 * draws[0])
            case "time":
                return START_MS - int(86_400_000 * draws[0])
        return f"v{int(20 * draws[0])}"


def _archive(config: Config, folder: Path) -> None:
    log = open_log(config)
    archive_log(log, folder)
    log.close()
