"""What is to be decided of candidates: a fold over ``control``, ``scores`` and ``examples``.

It keeps one comparison for each candidate at work, and says which records the director is to append. Where it
comes back after a kill, it folds the same records again and is where it was.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from experiments import gates
from experiments.comparison import Compared, Comparison, Paired
from experiments.lifecycle import CANARY, TAKING_OVER, Lifecycle, Standing
from experiments.promotion import Decision as Judged
from experiments.promotion import Evidence, Hold, Promote, Rollback, comparison, judge
from experiments.served import ServedRates
from parameter_server import snapshots
from recsys.config import Config
from recsys.consumer import UNREADABLE
from recsys.features import FeatureSet
from recsys.log import Log
from recsys.records import (
    EXAMPLES,
    SCORES,
    Candidate,
    Control,
    Decision,
    Live,
    Scores,
    Wish,
    unpack,
)
from training.candidates.canary_shown import Shown
from training.line import MAIN
from training.lineage import CAUGHT_UP, Lineage, last_steps, newest_step, starts_after

_READ: Final = 500
_LATELY: Final = 2  # times ``least_examples``: how far back "lately" goes, at the most
_LOG: Final = logging.getLogger(__name__)
_APPROVE, _ROLLBACK = "approve", "rollback"


class CantGoBack(ValueError):
    """Nothing to go back to, or not from here; says why."""


@dataclass
class Case:
    """All that is known of one candidate: since it was proposed, and lately, since its stage began or a few
    thousand examples ago, so that a long good past hides nothing."""

    comparison: Comparison | None
    recent: Comparison | None
    scores: gates.Scores = field(default_factory=gates.Scores)
    recent_scores: gates.Scores = field(default_factory=gates.Scores)
    served: ServedRates | None = None
    figures: dict[str, float] = field(default_factory=dict)
    refused: str = ""
    step: int = 0
    said: str = ""  # the newest judgement that was told
    ended: Compared | None = None  # what was known at its end

    @property
    def compared(self) -> Compared:
        return self.ended or (self.comparison or Comparison()).result()


class Promoter:
    """Feeds on the log; ``turn`` returns what is to be appended to ``control``. ``clock``: milliseconds."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int]
    ) -> None:
        self._log, self._config, self._rules = log, config, config.promotion
        self._labels, self._clock = features.main_labels, clock
        self._folder = Path(config.state) / "snapshots"
        self.lifecycle = Lifecycle()
        self.cases: dict[str, Case] = {}
        self._retrieves = features.history_length > 0
        self._adopted: int | None = None  # an epoch that was made to go back to, and isn't live yet
        self._approved: set[str] = set()
        self._wishes: list[Wish] = []
        self._scores = log.begin(SCORES, 0)
        self._shown: Shown | None = None  # what the canary that answers now has shown

    # --- folding ---

    def fold(self, said: Control) -> None:
        """A record of ``control``."""
        lives = len(self.lifecycle.lives)
        if isinstance(said, Wish):
            if said.what == _APPROVE:
                self._approved.add(said.line)
            elif said.what == _ROLLBACK:
                self._wishes.append(said)
        elif isinstance(said, Live | Decision):
            self._wishes = [wish for wish in self._wishes if not answers_wish(wish, said)]
        self.lifecycle.fold(said)
        if isinstance(said, Candidate):
            self.cases.setdefault(said.line, self._case())
        elif isinstance(said, Decision) and said.line in self.cases:
            self._moved(said)
        if len(self.lifecycle.lives) > lives:  # what was compared was compared with another
            self._shown = self._adopted = None
            self.cases = {line: self._anew(case) for line, case in self.cases.items()}

    def _moved(self, said: Decision) -> None:
        """A candidate is at another stage: from now on it is judged by that alone, too."""
        case = self.cases[said.line]
        if said.said == "promote":
            case.recent, case.recent_scores = comparison(self._rules), gates.Scores()
        elif said.final or said.said == "rollback":
            case.ended = case.compared  # the numbers stay, what they were made of goes
            case.comparison = case.recent = None

    def _anew(self, case: Case) -> Case:
        return case if case.ended else replace(self._case(), refused=case.refused)

    def _case(self) -> Case:
        return Case(comparison(self._rules), comparison(self._rules))

    @property
    def _epoch(self) -> int:
        """The live one."""
        return self.lifecycle.live.epoch if self.lifecycle.live else 0

    def read(self) -> None:
        """What candidates said and viewers did since."""
        self._read_scores()
        self._read_shown()

    def turn(self) -> list[Control]:
        """Reads what is new, and decides."""
        self.read()
        found: list[Control] = [*self._granted()]
        if not found:
            for standing in self.lifecycle.at_work:
                found.extend(self._decide(standing))
                if found:
                    break  # one at a time: each changes what the next rests on
        return found

    def _read_scores(self) -> None:
        while records := self._log.read(SCORES, 0, self._scores, _READ):
            self._scores = records[-1].offset + 1
            for record in records:
                try:
                    self._take(unpack(record.value, Scores))
                except (ValueError, *UNREADABLE) as error:  # whoever wrote it: it must stop nobody
                    _LOG.warning("scores at %d can't be read: %s", record.offset, error)

    def _take(self, said: Scores) -> None:
        case = self.cases.get(said.line)
        if case is None:
            return
        case.figures |= said.figures
        case.refused = said.refused or case.refused
        if said.against != (MAIN, self._epoch) or 0 <= said.step <= case.step:
            return
        case.step = max(case.step, said.step)
        if case.comparison is None or case.recent is None:
            return
        pairs, hits = pairs_of(said), np.frombuffer(said.hits, np.uint8)
        for scores in (case.scores, case.recent_scores):
            scores.add(pairs.live_N, pairs.candidate_N, pairs.labels_N)
        if case.recent.examples > _LATELY * self._rules.least_examples:
            case.recent, case.recent_scores = comparison(self._rules), gates.Scores()
        pairs, users = finite(pairs), np.frombuffer(said.hit_users, np.int64)
        for its in (case.comparison, case.recent):
            its.add(pairs)
            if len(hits):
                its.add_hits(users, (hits & 1) > 0, (hits & 2) > 0)

    def _read_shown(self) -> None:
        """What viewers do with the canary's lists and with live's, from its first on."""
        canary = self.lifecycle.canary
        if canary is None:
            self._shown = None
            return
        if self._shown is None or self._shown.canary != canary.line:
            live = f"{MAIN}/{self._epoch}"
            self._shown = Shown(self._log, canary, live, self._labels, self._rules)
            self.cases[canary.line].served = self._shown.rates
        self._shown.read()

    # --- deciding ---

    def evidence(self, standing: Standing) -> Evidence:
        """All that is known of a candidate now."""
        case = self.cases[standing.line]
        failed = [case.refused] if case.refused else []
        if not case.ended:
            sizes, picks = _sizes(case.figures), _picks(case.figures)
            failed += gates.failures(case.scores, self._rules, sizes, picks)
            failed += gates.failures(case.recent_scores, self._rules)
        return Evidence(
            CANARY if standing.stage == TAKING_OVER else standing.stage,
            case.compared,
            tuple(dict.fromkeys(failed)),
            case.served.result() if case.served is not None else None,
            Compared() if case.recent is None else case.recent.result(),
            self._retrieves,
        )

    def opinion(self, standing: Standing) -> str:
        """What would be decided of a candidate now, and why; nothing is."""
        if standing.stage == TAKING_OVER:
            return "its snapshot is being written"
        decided = self._decide(standing)
        if isinstance(decided[0] if decided else None, Decision):
            return decided[0].why  # type: ignore[union-attr]
        return self.cases[standing.line].said

    def _decide(self, standing: Standing) -> list[Control]:
        evidence = self.evidence(standing)
        said = judge(evidence, self._rules)
        if standing.stage == TAKING_OVER and not isinstance(said, Rollback):
            return self._live(standing)
        if isinstance(said, Rollback):
            return [self._told(standing, said)]
        if isinstance(said, Hold):
            case = self.cases[standing.line]
            if said.final:
                return [self._told(standing, said)]
            case.said = said.why
            return []
        return self._promote(standing, said)

    def _promote(self, standing: Standing, said: Promote) -> list[Control]:
        case, other = self.cases[standing.line], self.lifecycle.canary
        if other is not None and other.line != standing.line:
            case.said = f"{other.line} is at it: one candidate at a time; {said.why}"
            return []
        behind = newest_step(self._log, MAIN, self._epoch) - case.step
        if behind > CAUGHT_UP:  # it would bring back what was
            case.said = f"{behind} steps behind: it catches up; {said.why}"
            return []
        if self._rules.manual and standing.line not in self._approved:
            case.said = f"waits for approval: {said.why}"
            return []
        return [self._told(standing, said)]

    def _live(self, standing: Standing) -> list[Control]:
        """The pointer moves once the snapshot is there that the next epoch begins from."""
        steps = snapshots.complete_steps(self._folder, MAIN, standing.epoch)
        if not steps:
            return []
        snapshots.settle(self._folder, MAIN, standing.epoch, steps[-1])
        return [
            Live(
                line=MAIN, epoch=standing.epoch, reason=standing.why, time_ms=self._clock(),
                since=steps[-1], of=self._epoch, candidate=standing.line,
                size=standing.candidate.size,
            )
        ]  # fmt: skip

    def _granted(self) -> list[Control]:
        """What a person wished: a canary's, or the live line's, way back. It is answered in any case."""
        if not self._wishes:
            return []
        wish = self._wishes[0]
        standing = self.lifecycle.standings.get(wish.line)
        why = wish.reason or "a person asked for it"
        if standing is not None and standing.at_work:
            return [self._told(standing, Rollback(why, self.evidence(standing)))]
        if wish.line != f"{MAIN}/{self._epoch}":
            over = f"{wish.line} is over, or not known" if wish.line else "it says of what"
            return [_refusal(wish, f"{over}; what is live is {MAIN}/{self._epoch}", self._clock())]
        try:
            return [self._back(why)]
        except (CantGoBack, snapshots.NoSnapshot, OSError) as error:
            return [_refusal(wish, f"{wish.line} can't go back: {error}", self._clock())]

    def _back(self, why: str) -> Live:
        """The live line as it was before its newest promotion. Raises CantGoBack, NoSnapshot, OSError."""
        live = self.lifecycle.live
        if live is None or not live.candidate:
            raise CantGoBack("nothing was promoted before it")
        before = self.lifecycle.lives[-2].epoch
        steps = snapshots.complete_steps(self._folder, MAIN, before)
        if not steps:
            raise CantGoBack(f"no snapshot of epoch {before} is left")
        self._check_there(before, steps[-1])
        epoch = self._next_epoch() if self._adopted is None else self._adopted
        snapshots.adopt(self._folder, MAIN, (before, steps[-1]), epoch)
        self._adopted = epoch  # until it is live: a log that is away makes no second one
        return Live(
            line=MAIN, epoch=epoch, reason=why, time_ms=self._clock(), since=steps[-1], of=before,
            size=self.lifecycle.size(MAIN, before),
        )  # fmt: skip

    def _check_there(self, epoch: int, since: int) -> None:
        """Whether the log still has what is to be learned again. Raises CantGoBack."""
        lives = [live for live in self.lifecycle.lives if live.epoch <= epoch]
        starts = starts_after(Lineage(self._log, MAIN, lives), since)
        gone = {p for p, start in starts.items() if start < self._log.begin(EXAMPLES, p)}
        if gone:
            raise CantGoBack(
                f"the log no longer has the examples after step {since} of epoch {epoch} (partitions "
                f"{sorted(gone)})"
            )

    def _told(self, standing: Standing, said: Judged) -> Decision:
        promoted = isinstance(said, Promote)
        taking_over = promoted and said.to != CANARY  # type: ignore[union-attr]
        return Decision(
            line=standing.line,
            said=type(said).__name__.lower(),
            to=said.to if isinstance(said, Promote) else "",
            epoch=self._next_epoch() if taking_over else 0,
            share=self._rules.canary_share if promoted and not taking_over else 0.0,
            final=isinstance(said, Hold) and said.final,
            why=said.why,
            evidence=numbers(said.evidence),
            time_ms=self._clock(),
        )

    def _next_epoch(self) -> int:
        """One that nothing of was ever written."""
        known = [live.epoch for live in self.lifecycle.lives]
        known += [standing.epoch for standing in self.lifecycle.standings.values()]
        known += [step.epoch for step in last_steps(self._log)]
        return 1 + max([*known, *snapshots.epochs(self._folder, MAIN)])


def answers_wish(wish: Wish, said: Live | Decision) -> bool:
    """Whether a record is what came of a wish to go back: it is granted once, also for who folds it again."""
    if isinstance(said, Live):
        return not said.candidate and wish.line.startswith(f"{said.line}/")
    return said.line == wish.line and (said.said == "rollback" or said.to == _ROLLBACK)


def _refusal(wish: Wish, why: str, now_ms: int) -> Decision:
    return Decision(line=wish.line, said="hold", to=_ROLLBACK, why=why, time_ms=now_ms)


def pairs_of(said: Scores) -> Paired:
    """The arrays of a record."""
    bits = np.frombuffer(said.segments, np.int64)
    return Paired(
        np.frombuffer(said.users, np.int64),
        np.frombuffer(said.live, np.float32).astype(np.float64),
        np.frombuffer(said.candidate, np.float32).astype(np.float64),
        np.frombuffer(said.labels, np.uint8).astype(np.float64),
        {name: (bits >> n & 1).astype(np.bool_) for n, name in enumerate(said.names)},
        np.frombuffer(said.weights, np.float32).astype(np.float64) if said.weights else None,
    )


def finite(pairs: Paired) -> Paired:
    """Without what the candidate gave no number for."""
    fine = np.isfinite(pairs.candidate_N) & np.isfinite(pairs.live_N)
    if fine.all():
        return pairs
    return Paired(
        pairs.users_N[fine],
        pairs.live_N[fine],
        pairs.candidate_N[fine],
        pairs.labels_N[fine],
        {name: mask[fine] for name, mask in pairs.segments.items()},
        None if pairs.weights_N is None else pairs.weights_N[fine],
    )


def numbers(evidence: Evidence) -> dict[str, float]:
    """The evidence as it is written down; what isn't known is left out."""
    its = evidence.compared
    found = {
        "examples": its.examples, "users": its.users, "live_loss": its.live_loss,
        "live_calibration": its.live_calibration, "calibration": its.candidate_calibration,
    }  # fmt: skip
    estimates = {"loss": its.loss, "auc": its.auc, "user auc": its.user_auc, "recall": its.recall}
    estimates |= {f"loss in {name}": e for name, e in its.segments.items()}
    if evidence.served is not None:
        found |= {"shown": evidence.served.examples, "degraded": evidence.served.degraded}
        estimates |= {f"share of {kind}": e for kind, e in evidence.served.gained.items()}
    for name, estimate in estimates.items():
        found |= {
            f"{name} gained": estimate.mean,
            f"{name} at least": estimate.low,
            f"{name} at most": estimate.high,
        }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _sizes(figures: dict[str, float]) -> tuple[gates.Size, gates.Size] | None:
    names = ("live_rank_us", "live_bytes", "rank_us", "bytes")
    if not all(name in figures for name in names):
        return None
    live_us, live_bytes, us, nbytes = (figures[name] for name in names)
    return gates.Size(live_us, live_bytes), gates.Size(us, nbytes)


def _picks(figures: dict[str, float]) -> gates.Picks | None:
    if "picks" not in figures or "live_picks" not in figures:
        return None
    return gates.Picks(figures["live_picks"], figures["picks"], int(figures.get("pickers", 0)))
