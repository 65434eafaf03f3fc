"""``recsys study reading``: what lists that nobody engages with teach a running system, over HTTP.

Each viewer's last engagement of the first kind is held out, the rest is imported, and all parts start. The
lists of these viewers are asked for, then many lists of other ids, without and with a key, and then their
lists again."""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

from rich.console import Console
from typer import Option

from recsys.app.data_files import read_data_files
from recsys.client import ApiError, Client
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event
from recsys.events.records import EXAMPLES
from recsys.free_ports import free_ports
from recsys.log.protocol import Log
from recsys.process.open_log import create_topics, open_log
from replay.datasets.mapped_files import MappedFiles
from replay.judging.answers import HIT, OURS, Answers
from runtime.cli.common import JsonOption, show
from runtime.cli.system import end
from runtime.cli.up import keep_definition, start, with_definition
from runtime.jobs.import_job import Importer
from runtime.reports.tables import plain_table

_LIST: Final = 10
_CALLS: Final = 4  # at once


class WithoutLast(MappedFiles):
    """Tables without each viewer's last engagement of the first kind. ``held_out``: these, by viewer."""

    held_out: dict[str, str] = {}

    def find_held_out(self) -> None:
        """Holds them out from now on."""
        last = dict[str, str]()
        for event in self.events():
            if isinstance(event, Engagement) and event.kind == self.labels[0]:
                last[str(event.user_id)] = str(event.item_id)
        self.held_out = last

    def events(self, from_ms: int | None = None, until_ms: int | None = None) -> Iterator[Event]:
        for event in super().events(from_ms, until_ms):
            if not (isinstance(event, Engagement) and self._is_held_out(event)):
                yield event

    def _is_held_out(self, event: Engagement) -> bool:
        return self.held_out.get(str(event.user_id)) == str(event.item_id)


def reading(
    app: Annotated[Path, Option(help="Definition of an app with tables.")] = Path("app.yaml"),
    lists: Annotated[int, Option(min=1, help="Lists without a key; as many with one.")] = 20_000,
    ids: Annotated[int, Option(min=1, help="Made-up ids that read them.")] = 1_000,
    learn: Annotated[int, Option(min=1, help="Newest rows to train from.")] = 40_000,
    most: Annotated[int, Option(min=1, help="Most viewers that are judged.")] = 1_000,
    json: JsonOption = None,
) -> None:
    """Hits of other viewers' held-out items before and after many lists that are only read."""
    with ExitStack() as stack:
        state = Path(stack.enter_context(TemporaryDirectory(prefix="reading-")))
        settings, definition, _ = with_definition("laptop", state / "state", app)
        assert definition is not None
        serve = replace(settings.serve, port=next(free_ports()), dashboard=False)
        settings = replace(settings, serve=serve)
        tables = read_data_files(app)
        paths = [app.parent / name for name in tables.names]
        dataset = WithoutLast(definition, tables, paths, now_ms=machine_ms(), scratch=state)
        dataset.find_held_out()
        Path(settings.state).mkdir()
        keep_definition(settings, definition, app)
        with closing(open_log(settings)) as log:
            create_topics(log, settings)
            Importer(definition, settings, log, machine_ms, learn, iter).run(dataset)
        if start(settings, detach=True, file=app):
            raise SystemExit(1)
        stack.callback(end, Path(settings.state), Console())
        viewers = dict(list(dataset.held_out.items())[-most:])
        result = _measured(settings, viewers, lists, ids, definition.window_s)
    show({"shown": definition.shown, "phases": result}, json, _table)


def _measured(
    config: Config, viewers: dict[str, str], lists: int, ids: int, window_s: float
) -> list[dict[str, Any]]:
    key = (Path(config.state) / "run" / "admin.key").read_text().strip()
    phases = []
    with closing(open_log(config)) as log:
        for name, own_key in (("before", ""), ("without a key", None), ("with a key", key)):
            examples, took_s = _examples(log), 0.0
            if name != "before":
                took_s = _read(config, [f"reader-{n % ids}" for n in range(lists)], own_key)
                time.sleep(
                    window_s + 10
                )  # until their windows are over, and what is due is learned
            made = _examples(log) - examples
            phases.append(
                {"phase": name, "lists": lists * (name != "before"), "examples": made, "seconds": took_s}
                | _figures(config, viewers)
            )  # fmt: skip
    return phases


def _examples(log: Log) -> int:
    return sum(log.end(EXAMPLES, p) for p in range(log.partitions(EXAMPLES)))


def _figures(config: Config, viewers: dict[str, str]) -> dict[str, Any]:
    answers = Answers()
    with Client(f"http://127.0.0.1:{config.serve.port}", timeout_s=30.0) as client:
        for row, (user, wanted) in enumerate(viewers.items()):
            listed = [str(item.item_id) for item in client.recommend(user, _LIST).items]
            answers.add(user, row, {OURS: listed.index(wanted) + 1 if wanted in listed else 0})
    figures = answers.figures()[OURS]
    return {"cases": len(answers), HIT: figures[HIT], "interval": figures["intervals"][HIT]}


def _read(config: Config, users: Sequence[str], key: str | None) -> float:
    """Asks for the lists; returns the seconds that it took."""
    began_s = time.monotonic()

    def ask(some: Iterable[str]) -> None:
        with Client(
            f"http://127.0.0.1:{config.serve.port}", admin_key=key, timeout_s=30.0
        ) as client:
            for user in some:
                while True:
                    try:
                        client.recommend(user, _LIST)
                        break
                    except ApiError as error:
                        if not error.passing:
                            raise
                        time.sleep(0.05)

    with ThreadPoolExecutor(_CALLS) as pool:
        list(pool.map(ask, [users[n::_CALLS] for n in range(_CALLS)]))
    return time.monotonic() - began_s


def _table(result: dict[str, Any]) -> list[Any]:
    rows = [
        (phase["phase"], f"{phase['lists']:,}", f"{phase['examples']:,}", _text(phase[HIT]),
         " to ".join(map(_text, phase["interval"])), f"{phase['seconds']:.0f}")
        for phase in result["phases"]
    ]  # fmt: skip
    names = ("", "lists read", "examples made", HIT, "95 %", "seconds")
    title = f"shown: {result['shown']}, {result['phases'][0]['cases']:,} held-out items"
    return [plain_table(names, rows, title=title, right=names[1:])]


def _text(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.3f}"
