"""The rows of a log that a rehearsal plays, and the judgement of the lists that were served before them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from recsys.app.definition import App
from recsys.events.event_types import MAX_TIME_MS, Engagement, Event, Item, User
from recsys.events.hashing import Id
from replay.datasets.mapped_files import MappedFiles
from replay.judging.asked_lists import Judge
from replay.judging.questions import pause_of
from replay.rehearsal.log_viewers import Judged, LogViewers, System

END_MS: Final = MAX_TIME_MS


@dataclass(frozen=True)
class RehearsalOptions:
    """``from_ms``: time of the first row that is rehearsed. ``rows``: most of them. ``read``: lists a row
    that are only read. ``speed``: most event time by the machine's."""

    from_ms: int
    rows: int
    speed: float = 2_000.0
    read: float = 0.0


class AskedRows:
    """Judged rows with the lists of one system, to be judged when it no longer needs the machine."""

    def __init__(self) -> None:
        self._rows: list[tuple[Id, Id, int, tuple[Id, ...]]] = []
        self._asked: tuple[Id, ...] = ()

    def ask(self, user_id: Id, time_ms: int, our_items: Sequence[Id] | None) -> None:
        self._asked = tuple(our_items or ())

    def take(self, user_id: Id, item_id: Id, time_ms: int) -> None:
        self._rows.append((user_id, item_id, time_ms, self._asked))

    def judge(self, judge: Judge) -> None:
        """Has a judge take all rows."""
        for user_id, item_id, time_ms, asked in self._rows:
            judge.ask(user_id, time_ms, asked)
            judge.take(user_id, item_id, time_ms)


def rows_of(dataset: MappedFiles, options: RehearsalOptions) -> Iterator[Event]:
    """Events from ``from_ms`` on, up to the number of rows; of items and users those that are new then."""
    rows = 0
    for event in dataset.events(options.from_ms):
        if isinstance(event, Item | User):
            if event.time_ms >= options.from_ms:
                yield event
            continue
        if isinstance(event, Engagement):
            if rows >= options.rows:
                return
            rows += event.kind == dataset.labels[0]
        yield event


def play(
    system: System, events: Iterable[Event], label: str, judge: Judged, read: float = 0.0
) -> Counter[str]:
    """Plays events to a system; returns the counts of the viewers."""
    viewers = LogViewers(system, judge, label, read)
    for event in events:
        viewers.play(event)
    return viewers.counts


def judged(app: App, past: Iterable[Event], lives: AskedRows, replayed: AskedRows) -> dict[str, Any]:
    """The report: figures of both questions and hits by thousands of rows, of the running system beside all
    simple lists, and of the replay."""
    pause_s = pause_of(app.features)
    judges = [Judge(pause_s, app.repeats), Judge(pause_s, app.repeats, lists=[])]
    for event in past:
        if isinstance(event, Engagement) and event.kind == app.labels[0]:
            for judge in judges:
                judge.take(event.user_id, event.item_id, event.time_ms)
    lives.judge(judges[0])
    replayed.judge(judges[1])
    live, replay = (judge.report() for judge in judges)
    return {**live, "replay": {name: replay[name] for name in ("questions", "curves")}}
