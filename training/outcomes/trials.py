"""The director's care of experiments: what the next revision is, and why.

Files beside the code, wishes of people, and what is seen of those that run (their ramp, their guardrails,
their sample ratio) each give a revision; it is the director who appends it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from experiments.assignment.definition import Experiment
from experiments.statistics.ramp import RUNNING, STOPPED, move, stop
from experiments.statistics.readout import BROKEN, HARM, Readout
from experiments.statistics.revision import Told, all_of, each_of, grant, with_files
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Experiments, ExperimentWish, Stand
from recsys.log.protocol import Log
from training.outcomes.trial_fold import TrialFold

LOOK_EVERY_MS: Final = 10_000
_MOST_USERS: Final = 100_000
_POLLS: Final = 4  # a few at a time: the director has other things to look at
_LOG: Final = logging.getLogger(__name__)


class Trials:
    """Fold every control record, then ask ``turn`` for what is to be appended.

    ``files``: YAML texts by file name; None: whoever has told of some is not contradicted. Raises YamlError
    for files that can't be read, before anyone is told.
    """

    def __init__(
        self, log: Log, config: Config, labels: Sequence[str], files: Mapping[str, str] | None
    ) -> None:
        self._log, self._config, self._labels = log, config, tuple(labels)
        self._files = None if files is None else dict(files)
        all_of(Told(self._files or {}), config.policy, labels)
        self.newest = Experiments(revision=0)
        self._wishes: dict[int, ExperimentWish] = {}  # by their offset on control
        self._folds: dict[str, TrialFold] = {}
        # Reading YAML takes a while: once for each revision.
        self._checked: Experiments | None = None  # the revision that the files were laid beside
        self._read: tuple[Experiments, list[Experiment], dict[str, str]] | None = None
        self._due_ms = 0
        self.lost: Mapping[str, str] = {}  # experiments that can't go on, and why: set by who asks

    def fold(self, offset: int, said: Control) -> None:
        """A record of ``control``, with where it stands."""
        if isinstance(said, ExperimentWish):
            self._wishes[offset] = said
        elif isinstance(said, Experiments):
            self.newest = said
            self._wishes.pop(said.answers, None)

    def turn(self, now_ms: int) -> Experiments | None:
        """The next revision, where there is one; fold it, and ask again."""
        return self._of_files(now_ms) or self._of_wishes(now_ms) or self._of_looks(now_ms)

    @property
    def running(self) -> list[Experiment]:
        """Those that give arms now, and have a place where they stand."""
        stands = self.newest.stands
        return [
            its for its in self._experiments()[0]
            if its.name in stands and stands[its.name].state == RUNNING
        ]  # fmt: skip

    def stopped_for(self, verdict: str) -> int:
        """Experiments that ended by themselves with this verdict, ``broken`` or ``harm``: all ever told."""
        stands = self.newest.stands.values()
        return sum(its.state == STOPPED and its.why.startswith(f"{verdict}: ") for its in stands)

    def _of_files(self, now_ms: int) -> Experiments | None:
        if self._files is None or self._checked is self.newest:
            return None
        self._checked, told = self.newest, self._told()
        try:
            new = with_files(told, self._files, self._config.policy, self._labels, now_ms)
        except ValueError as error:
            _LOG.error("files of experiments don't fit beside what runs: %s", error)
            return None
        return None if new == told else self._revision(new, now_ms)

    def _of_wishes(self, now_ms: int) -> Experiments | None:
        for offset, wish in self._wishes.items():
            told = self._told()
            try:
                new = grant(told, wish, self._config.policy, self._labels, now_ms)
            except ValueError as error:
                return self._revision(told, now_ms, offset, str(error))
            return self._revision(new, now_ms, offset)
        return None

    def _of_looks(self, now_ms: int) -> Experiments | None:
        stands = self.newest.stands
        if not any(its.state != STOPPED for its in stands.values()):
            self._folds.clear()
            return None
        due = now_ms >= self._due_ms
        if due:
            self._due_ms = now_ms + LOOK_EVERY_MS
        changed = dict(stands)
        read, unread = self._experiments()
        for its in read:
            if its.name in stands:
                changed[its.name] = self._moved(its, stands[its.name], now_ms, due)
        for name, why in unread.items():
            if name in stands:
                changed[name] = stop(stands[name], now_ms, f"{BROKEN}: can't be read: {why}")
        if changed == stands:
            return None
        for name, stand in changed.items():
            if stand.state != RUNNING:
                self._folds.pop(name, None)
            if stand is not stands[name] and stand.why.startswith((f"{BROKEN}: ", f"{HARM}: ")):
                _LOG.warning("experiment %s is stopped: %s", name, stand.why)
        return self._revision(Told(self.newest.configs, changed), now_ms)

    def _moved(self, experiment: Experiment, stand: Stand, now_ms: int, due: bool) -> Stand:
        """Where one stands from now on. One that can't be judged ends; all else goes on."""
        if experiment.name in self.lost and stand.state == RUNNING:
            return stop(stand, now_ms, f"{BROKEN}: {self.lost[experiment.name]}")
        try:
            # Nothing of an interleaving is looked at: it has no ramp, and no guardrails.
            running = stand.state == RUNNING and not experiment.interleaves
            seen = self._seen(experiment, stand.started_ms, due) if running else None
            return move(experiment, stand, now_ms, seen)
        except (ValueError, ArithmeticError) as error:
            _LOG.exception("experiment %s can't be judged", experiment.name)
            return stop(stand, now_ms, f"{BROKEN}: can't be judged: {error}")

    def _seen(self, experiment: Experiment, started_ms: int, due: bool) -> Readout | None:
        """What an experiment has shown, where it is time to look; it reads on in any case."""
        fold = self._folds.get(experiment.name)
        if fold is None:
            fold = self._folds[experiment.name] = TrialFold(
                self._log, self._config, self._labels, experiment, started_ms, _MOST_USERS
            )
        fold.read(_POLLS)
        return fold.readout(parts=False) if due else None

    def _experiments(self) -> tuple[list[Experiment], dict[str, str]]:
        """Those of the newest revision that aren't stopped, and by name why others can't be read."""
        if self._read is None or self._read[0] is not self.newest:
            its = each_of(self.newest, self._config.policy, self._labels, stopped=False)
            self._read = (self.newest, *its)
        return self._read[1:]

    def _told(self) -> Told:
        return Told(self.newest.configs, self.newest.stands)

    def _revision(
        self, told: Told, now_ms: int, answers: int = -1, refused: str = ""
    ) -> Experiments:
        return Experiments(
            revision=self.newest.revision + 1, configs=dict(told.configs), time_ms=now_ms,
            stands=dict(told.stands), answers=answers, refused=refused,
        )  # fmt: skip
