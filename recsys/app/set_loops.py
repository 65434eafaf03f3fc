"""One fold for each feature set in use: a new set is folded from the log's beginning beside the one that
answers, until the ``control`` topic says that every replica answers with it."""

from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from recsys.events.control_records import ALONE, FOLDED, Control, Definition
from recsys.events.records import CONTROL
from recsys.features.feature_set import FeatureSet, read_set
from recsys.log.protocol import Log
from recsys.process.log_consumer import Consumer, decoded, readable
from recsys.process.part_process import Heartbeat

_BESIDE: Final = 200  # records of a partition that a fold beside the first reads in a turn


class SetLoop(Protocol):
    """A fold of one set."""

    @property
    def offsets(self) -> list[int]:
        """Next of ``events`` to fold, by partition."""

    def turn(self, limit: int = ...) -> int: ...

    def end(self) -> None:
        """Releases what the fold held and removes what it stored: nothing reads it any more."""


L = TypeVar("L", bound=SetLoop)


def qualified(what: str, name: str) -> str:
    """A name with that of a feature set appended; the first set's is empty."""
    return f"{what}@{name}" if name else what


class SetsInUse:
    """Feature sets that are folded, by name, the newest last. Fold ``control`` in order. ``first``: that of
    the state folder's file, whose name is empty; other sets are named by their digests. ``answers``: with
    which a new replica answers."""

    def __init__(self, first: FeatureSet) -> None:
        self._first = self.answers = first
        self.sets = {"": first}

    @classmethod
    def of(cls, log: Log, first: FeatureSet) -> "SetsInUse":
        """As of the records that the log has."""
        in_use = cls(first)
        for record in readable(log, CONTROL, Control):
            in_use.fold(record)
        return in_use

    def name(self, features: FeatureSet) -> str:
        """Name of a set's state."""
        return "" if features.digest == self._first.digest else features.digest

    def fold(self, record: Control) -> bool:
        """Folds a record; returns whether it concerns sets."""
        if not isinstance(record, Definition):
            return False
        features = read_set(record.logged)
        name = self.name(features)
        self.sets.setdefault(name, features)
        if record.stage != FOLDED:
            self.answers = features
        if record.stage == ALONE:
            self.sets = {name: features}
        return True


class SetLoops(Generic[L]):
    """Runs the loop of each set in use. ``make`` creates one from its name and set; where it stored something
    before, it continues."""

    def __init__(self, log: Log, first: FeatureSet, make: Callable[[str, FeatureSet], L]) -> None:
        self._control, self._make = Consumer(log, CONTROL, [0]), make
        self.in_use = SetsInUse(first)
        self._over: set[str] = set()  # names of sets that were in use
        self.loops: dict[str, L] = {}
        self._follow()

    @property
    def oldest(self) -> L:
        """The loop of the set that replicas answer with until all have changed."""
        return next(iter(self.loops.values()))

    @property
    def behind(self) -> int:
        """Records that the set furthest behind has to fold until it is where the oldest is."""
        here = sum(self.oldest.offsets)
        return max(here - sum(loop.offsets) for loop in self.loops.values())

    def report(self, beat: Heartbeat) -> None:
        """Writes the progress of a change into a heartbeat."""
        beat.gauge("sets", len(self.loops))
        beat.gauge("sets_behind", self.behind)

    def turn(self) -> int:
        """Follows ``control``, and turns each loop; returns the number of records consumed."""
        self._follow()
        first, *beside = self.loops.values()
        return first.turn() + sum(loop.turn(_BESIDE) for loop in beside)

    def _follow(self) -> None:
        for _, record in decoded(self._control.drain(), Control):
            before = self.in_use.sets
            if self.in_use.fold(record):
                self._over = self._over | before.keys()
        sets = self.in_use.sets
        for name, features in sets.items():
            if name not in self.loops:
                self.loops[name] = self._make(name, features)
        for name in (self._over | self.loops.keys()) - sets.keys():
            loop = self.loops.pop(name, None) or self._make(name, self.in_use.answers)
            loop.end()
        self._over = set()
