"""Imports an app's tables: writes their events to the log of a state folder, and trains from the newest ones.

The tables are read to their end first, so bad files leave nothing behind. A row is on the log once, however
often it is imported: ``STATE/import`` has a hash of each, and what a killed import wrote is read back. The
model is trained as by ``recsys replay``, and the system starts from its snapshot.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import mmh3
import msgspec
import numpy as np
from numpy.typing import NDArray

from parameter_server.storage import snapshots
from recsys.app.data_files import Interactions
from recsys.app.definition import BY_CLICK, App
from recsys.config.system_config import Config
from recsys.events.event_types import Event, Item, Rejected, User, decode, encode
from recsys.events.records import EVENTS, ITEMS, STEPS, record_of
from recsys.log.protocol import Append, Log, read_range
from recsys.process.part_process import write_atomically
from replay.datasets.mapped_files import SIGHTING, MappedFiles
from replay.direct_loop import DirectLoop, lost_engagements
from replay.judging.retrieval_recall import probe_for
from replay.player import Player
from replay.replay_run import Outputs, Progress, ReplayOptions, on_event_clock, replay_with
from runtime.jobs.history_folds import HistoryFolds
from serving.sessions import counter_loop, session_loop
from training.joining.joiner_loop import skip_events
from training.lines.control import append_live_record, live_epoch
from training.lines.line import MAIN

BATCH: Final = 5_000  # events that are appended together
JUDGED: Final = 500  # engagements at which retrieval is measured, for each question
_JUDGED_SHARE: Final = 0.2  # of the learned rows, the newest
_LEARN: Final = 40_000  # newest rows that are learned
_LEARN_CLICKS: Final = 20_000  # each with a list of candidates; more taught MovieLens nothing
_ENOUGH: Final = 4  # times the learned rows: fewer don't replace what a system has learned
_LOOKED: Final = 100_000  # first lists and engagements, in which those without a list are counted
_DAY_MS: Final = 86_400_000
_WEEK_MS: Final = 7 * _DAY_MS
_PREFIX: Final = "import:"  # of event ids
_OWN_ID: Final = re.compile(rf"{_PREFIX}(-?\d{{1,19}})", re.ASCII)  # a client's id may begin alike
Hashes = NDArray[np.int64]


class ImportProgress(msgspec.Struct):
    """``STATE/import/import.json``. ``ends``: how far the hashes reach on the log, by topic and partition;
    ``began``: ends of ``events`` before an import that isn't done; ``rows``: interactions on the log,
    ``mapping``: how they were read; ``is_due``: the model hasn't learned from the newest."""

    log_id: str
    shift_ms: int
    ends: dict[str, list[int]]
    began: list[int]
    rows: int
    mapping: Interactions
    is_due: bool


class ImportedRows:
    """Hashes of the events that imports have written to a log."""

    def __init__(self, folder: Path, log: Log) -> None:
        self._folder, self._log = folder, log
        folder.mkdir(parents=True, exist_ok=True)
        self._hashes, self._new = np.zeros(0, np.int64), list[Hashes]()
        self.progress: ImportProgress | None = None
        if (folder / "import.json").exists():
            progress = _read(folder / "import.json")
            if progress.log_id == log.id:
                self.progress, self._hashes = progress, np.load(folder / "rows.npy")
                self.add(self._read_back(progress.ends))
                self._merge()

    def contains(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Mask of the hashes that earlier imports wrote."""
        if not len(self._hashes):
            return np.zeros(len(hashes), np.bool_)
        at = np.searchsorted(self._hashes, hashes)
        mask: NDArray[np.bool_] = self._hashes[np.minimum(at, len(self._hashes) - 1)] == hashes
        return mask

    def add(self, hashes: Hashes) -> None:
        self._new.append(hashes)

    def save(self, shift_ms: int, *values: Any) -> None:
        """Keeps all hashes and more ``values``. After a kill before it, the log has the missing ones."""
        self._merge()
        partial = self._folder / "rows.part.npy"
        np.save(partial, self._hashes)
        os.sync()  # the log, too: rows that a power cut took from it alone would never be written
        partial.replace(self._folder / "rows.npy")
        self.progress = ImportProgress(self._log.id, shift_ms, self.ends(), *values)
        text = msgspec.json.encode(self.progress)
        write_atomically(self._folder / "import.json", text, sync=True)

    def ends(self) -> dict[str, list[int]]:
        """Ends of the topics that are written to."""
        log = self._log
        return {t: [log.end(t, p) for p in range(log.partitions(t))] for t in (ITEMS, EVENTS)}

    def _merge(self) -> None:
        self._hashes = np.concatenate([self._hashes, *self._new])
        self._new.clear()
        self._hashes.sort()

    def _read_back(self, ends: dict[str, list[int]]) -> Hashes:
        events = (e for topic, start in ends.items() for e in events_after(self._log, topic, start))
        ids = (getattr(event, "event_id", None) or "" for event in events)
        own = [int(match[1]) for id_ in ids if (match := _OWN_ID.fullmatch(id_))]
        return np.array([hash_ for hash_ in own if -(2**63) <= hash_ < 2**63], np.int64)


def _read(path: Path) -> ImportProgress:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ImportProgress)
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{path} can't be read ({error}), expected what this version writes: import into a new state "
            "folder, or use the version of the earlier imports"
        ) from error


def _hashes(events: Iterable[Event]) -> Hashes:
    return np.array([mmh3.hash64(encode(event))[0] for event in events], np.int64)


def events_after(log: Log, topic: str, offsets: Sequence[int]) -> Iterator[Event]:
    """Readable events of a topic from an offset of each partition on."""
    for partition, offset in enumerate(offsets):
        start = max(offset, log.begin(topic, partition))
        for record in read_range(log, topic, partition, start, log.end(topic, partition)):
            with suppress(Rejected):
                yield decode(record.value)


def rows_to_learn(app: App) -> int:
    """Number of the newest rows that an import learns by default."""
    return _LEARN_CLICKS if app.shown == BY_CLICK else _LEARN


@dataclass(frozen=True)
class Importer:
    """Imports into the ``log`` of a system that doesn't run. ``clock``: event time in ms. ``learn``: newest
    rows to train from. ``on_trained`` gets the player that has trained. ``fold``: starts to fold what is on
    the log, beside the training; else the live parts do it."""

    app: App
    config: Config
    log: Log
    clock: Callable[[], int]
    learn: int
    progress: Progress
    on_trained: Callable[[Player], None] = lambda player: None
    fold: Callable[[Config], HistoryFolds] | None = None

    def run(self, dataset: MappedFiles, keep_times: bool = False) -> dict[str, Any]:
        """Writes and trains; returns the report. Raises ValueError before it writes anything."""
        times_ms = dataset.times_ms
        rows = ImportedRows(Path(self.config.state) / "import", self.log)
        before, mapping, rows_before = rows.progress, dataset.mapping, 0
        if before is not None:
            _check_mapping(before.mapping, mapping, self.app)
            dataset.shift_ms = before.shift_ms
            rows_before = before.rows
            actions = (e for e in dataset.events() if not isinstance(e, Item | User))
            newest = [] if mapping.time else [*islice(actions, max(0, rows_before - 1), rows_before)]
            if not mapping.time and not (newest and rows.contains(_hashes(newest)).all()):
                raise ValueError(
                    f"{self.app.name} has rows without a time, which count in the order of the files: "
                    f"expected the {rows_before:,} of earlier imports first. Give all files, old ones first"
                )
        elif not keep_times:
            dataset.shift_ms = whole_weeks(self.clock() - int(times_ms[-1]))
        ahead_ms = int(times_ms[-1]) + dataset.shift_ms - self.clock()
        if ahead_ms > _DAY_MS:  # counters would rank items of the future first until it is there
            raise ValueError(
                f"the newest row would be {ahead_ms / _DAY_MS:.1f} days ahead, expected at most 1: "
                f"{self.config.state} moves all times by {dataset.shift_ms // _WEEK_MS} weeks, as its first "
                "import did. Leave out the newest rows, or import the files into a new state folder (--state)"
            )
        lists = self._check_lists(dataset, may_follow=before is not None)
        began = (before.began if before else []) or rows.ends()[EVENTS]
        rows.save(dataset.shift_ms, began, rows_before, mapping, True)
        self._hold()
        report: dict[str, Any] = {**self._append(dataset, rows), "shift_ms": dataset.shift_ms}
        report |= {"rows": dict(dataset.rows), "refused": dict(dataset.dead_letters)}
        report |= {"repeated": dataset.repeats, "out_of_order": dataset.out_of_order}
        report |= {"items_without_fields": dataset.unlisted} | lists
        report |= {"from_ms": int(times_ms[0]), "until_ms": int(times_ms[-1])}
        skip_events(self.log, self.config, self.app.feature_set(self.config.model.features), began)
        live, old = live_epoch(self.log), report["old_rows"]
        rows_now = max(rows_before, old) + report["new_rows"]
        # After a kill from here on, only events of later rows are still to be skipped.
        rows.save(dataset.shift_ms, rows.ends()[EVENTS], rows_now, mapping, True)
        folds = self.fold(self.config) if self.fold else None
        # A system that has learned goes on from there, and few rows don't replace what all taught.
        is_due = bool(report["new"] or not live or (before and (before.is_due or before.began)))
        if self.learn and is_due and self.log.end(STEPS, 0) == 0:
            is_due = bool(live) and old < rows_before and len(times_ms) < _ENOUGH * self.learn
            report |= {"missing": rows_before - old} if is_due else self._train(dataset)
        if folds:
            report["folded"] = folds.finish()
        rows.save(dataset.shift_ms, [], rows_now, mapping, is_due)
        return report

    def _check_lists(self, dataset: MappedFiles, may_follow: bool) -> dict[str, int]:
        """Counts engagements of the first events that no list shows. Raises ValueError for most of them,
        unless their lists ``may_follow`` from earlier imports."""
        if self.app.shown == BY_CLICK:
            return {}
        join, first = self.config.join, islice(dataset.interactions(), _LOOKED)
        engaged, lost = lost_engagements(first, self.app.schema, join)
        if lost > engaged / 2 and not may_follow:
            raise ValueError(
                f"{lost:,} of the first {engaged:,} engagements have no list before them that shows their "
                f"item to their viewer within {join.window_s:g} s, so they would teach nothing; expected at "
                "most half. Where a row is either a shown item or an engagement, add its kind to "
                "files.interactions.shown; where engagements come later, set a longer window; where the "
                "files have no shown items, set shown: clicks"
            )
        return {"engagements_looked_at": engaged, "engagements_without_a_list": lost}

    def _append(self, dataset: MappedFiles, rows: ImportedRows) -> dict[str, int]:
        counts = Counter(new=0, imported_before=0, new_rows=0, old_rows=0)
        events = self.progress(dataset.events())
        newest = dict[str, str]()  # event ids of imported records, by item
        again = dict[str, Item]()  # rows that other imported ones have replaced since, by item
        dated = set[str]()  # items whose age is known
        for item in (e for e in events_after(self.log, ITEMS, [0]) if isinstance(e, Item)):
            name, id_ = str(item.item_id), item.event_id or ""
            dated |= {name} if item.time_ms else set()
            if id_.startswith(SIGHTING):
                continue
            newest[name] = id_ if id_.startswith(_PREFIX) else newest.get(name, "")
        while batch := list(islice(events, BATCH)):
            hashes = _hashes(batch)
            old = rows.contains(hashes)
            # An item without fields is one that no table has: it must not replace what is there.
            bare = [type(e) is Item and not e.fields and str(e.item_id) in newest for e in batch]
            seen = [isinstance(e, Item) and e.event_id == SIGHTING for e in batch]
            # An item whose age is known may have been changed or removed since.
            again_seen = [
                is_sighting and isinstance(e, Item) and str(e.item_id) in dated
                for e, is_sighting in zip(batch, seen, strict=True)
            ]
            old |= np.array(bare) | np.array(again_seen)
            records: dict[str, list[Append]] = {ITEMS: [], EVENTS: []}
            for event, hash_, skipped, is_sighting in zip(
                batch, hashes.tolist(), old.tolist(), seen, strict=True
            ):
                event.event_id = f"{SIGHTING if is_sighting else _PREFIX}{hash_}"  # type: ignore[union-attr]
                if isinstance(event, Item) and event.fields and not is_sighting:
                    again.pop(name := str(event.item_id), None)
                    if not skipped:
                        newest[name] = event.event_id
                    elif newest.get(name) not in ("", event.event_id):
                        again[name] = event
                if not skipped:
                    topic = ITEMS if isinstance(event, Item) else EVENTS
                    records[topic].append(record_of(event, self.config.log.partitions))
            for topic, appends in records.items():
                self.log.append(topic, appends)
            rows.add(hashes[~old])
            own = old[~np.array(seen)]
            counts.update(new=int((~own).sum()), imported_before=int(own.sum()))
            old = old[[not isinstance(event, Item | User) for event in batch]]
            counts.update(new_rows=int((~old).sum()), old_rows=int(old.sum()))
        rewritten = (record_of(item, 1) for item in again.values())
        while appends := [*islice(rewritten, BATCH)]:
            self.log.append(ITEMS, appends)
        counts.update(new=len(again), imported_before=-len(again))
        return dict(counts)

    def _hold(self) -> None:
        """Has the log keep all events until the folds have read them."""
        for name in (session_loop.NAME, counter_loop.NAME):
            for partition in range(self.log.partitions(EVENTS)):
                if name not in self.log.holds(EVENTS, partition):
                    self.log.hold(name, EVENTS, partition, self.log.begin(EVENTS, partition))

    def _train(self, dataset: MappedFiles) -> dict[str, Any]:
        """Replays the newest rows, and makes the weights the live epoch."""
        times = dataset.times_ms
        dataset.learned_ms = int(times[-min(self.learn, len(times))])
        learned = times[times >= dataset.learned_ms]
        judged = learned[-max(1, int(len(learned) * _JUDGED_SHARE)) :]
        judge_from_ms = int(judged[0]) + dataset.shift_ms
        options = ReplayOptions(self.config.model.features, judge_from_ms=judge_from_ms)
        config = on_event_clock(dataset, options, self.config)  # that of the app already
        features = self.app.feature_set(config.model.features)
        loop = DirectLoop(features, config)
        player = Player(features, config, loop)
        outputs = Outputs(probe=probe_for(dataset, options, cases=JUDGED))
        replayed = replay_with(player, dataset, options, self.progress, loop.digest, outputs)
        self._make_live(loop, replayed.steps)
        self.on_trained(player)
        return {
            "steps": replayed.steps,
            "learned": len(learned),
            "retrieval": replayed.retrieval,
            "constant_columns": replayed.constant_columns,
        }

    def _make_live(self, loop: DirectLoop, step: int) -> None:
        folder, before = Path(self.config.state) / "snapshots", live_epoch(self.log)
        epoch = 1 + max([before, *snapshots.epochs(folder, MAIN)])
        for shard in loop.client.shards:
            part = shard.spec.part, shard.spec.parts
            snapshots.write_part(folder, MAIN, epoch, step, *part, *shard.export())
        append_live_record(self.log, MAIN, epoch, "imported", self.clock(), step, before)


def _check_mapping(before: Interactions, mapping: Interactions, app: App) -> None:
    """Raises ValueError where rows that are on the log would be other events now."""
    names = {k: v for k, v in mapping.names.items() if k in before.names or k in app.events}
    mapping = msgspec.structs.replace(mapping, files=before.files, names=names)
    for name in Interactions.__struct_fields__:
        if (now := getattr(mapping, name)) != (was := getattr(before, name)):
            raise ValueError(
                f"files.interactions.{name} is {now!r}, expected {was!r} as in the first import: rows would "
                "count twice. Keep it, or import into a new state folder (--state)"
            )


def whole_weeks(age_ms: int) -> int:
    """Time by which events are moved whose newest is so old: counters and ages are of the moment at which a
    system runs. Hours and days of the week stay; events of the last two weeks aren't moved."""
    return age_ms // _WEEK_MS * _WEEK_MS if age_ms > 2 * _WEEK_MS else 0
