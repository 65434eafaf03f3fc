"""`recsys study promotion --guard`: false rollbacks of a new live line, and the delay of justified ones.

The simulated models of `recsys study promotion` with swapped roles: one is live and chooses the lists, the
other is the unchanged line that it replaced. Engagement is compared with the time before the switch.
Everything is judged at every step, as long as a live line is guarded.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from benchmarks.studies.promotion.simulated_pairs import STEP, Pair, RunEnd, Stream, noise_for
from experiments.evidence.verdict import EngagementRates, Hold, Rollback
from experiments.promotion.kinds.guard import GuardState, engagement_alpha
from experiments.statistics.comparison import PairedPredictions
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import Candidate, Live

BEFORE: Final = 8_000  # examples that are shown before the switch
_NEW: Final = 0.1  # of users are new viewers: a segment of its own
_FAR: Final = 5  # times ``step``: a clearly bad line


@dataclass(frozen=True)
class Course:
    """Two pairs of models, live's and the guard's: before something breaks, and from ``at`` examples on."""

    pair: Pair
    then: Pair
    at: int = 0


def run_once(course: Course, seed: int, rules: PromotionConfig, chosen: bool = False) -> RunEnd:
    """One new live line, guarded until it is rolled back or the guard ends."""
    # The seed gives users the same noise before and after.
    before, after = (Stream(pair, seed, chosen=chosen) for pair in (course.pair, course.then))
    guard = GuardState(Candidate(line="guard", registry=""), live=Live(line="main", epoch=1))
    collected = guard.new_evidence(rules, retrieves=False)
    served = EngagementRates(["long_view"], engagement_alpha(rules), rules.canary_examples)
    collected.rates = served
    old = Stream(replace(course.pair, live=course.pair.candidate), seed + 1_000_000, chosen=chosen)
    for _ in range(BEFORE // STEP):
        shown = old.step()
        _show(served, shown, False)
    seen = 0
    while True:
        pairs = _in_segments((before if seen < course.at else after).step())
        seen += STEP
        collected.add(pairs)
        _show(served, pairs, True)
        decision = guard.judge(collected.evidence(hours=0.0), rules)
        if isinstance(decision, Rollback):
            return RunEnd("back", seen)
        if isinstance(decision, Hold) and decision.final:
            return RunEnd("stays", seen)


def _show(served: EngagementRates, shown: PairedPredictions, since: bool) -> None:
    size = len(shown)
    is_live, ranked = np.full(size, since), np.ones(size, np.bool_)
    served.add(shown.users_N, is_live, shown.labels_N[:, None], ranked, np.ones(size))


def _in_segments(pairs: PairedPredictions) -> PairedPredictions:
    new_N = pairs.users_N % round(1 / _NEW) == 0
    return replace(pairs, segments={"new viewers": new_N, "surface feed": ~new_N})


def measure_guard(
    runs: int, base: float, step: float, chosen: bool = False, sure: bool = False
) -> dict[str, Any]:
    """``runs`` each of lines as good as the one before, ``step`` of AUC worse, five times as much worse, and
    one that gets that bad halfway."""
    rules = PromotionConfig()
    half = rules.guard_examples // 2
    pairs = {gain: Pair(noise_for(base + gain), noise_for(base), sure) for gain in (0.0, -step, -_FAR * step)}
    equal, worse, far = pairs.values()
    courses = {
        "equal": (0.0, Course(equal, equal)),
        "worse": (-step, Course(worse, worse)),
        "far worse": (-_FAR * step, Course(far, far)),
        "breaks": (-_FAR * step, Course(equal, far, half)),
    }
    figures: dict[str, Any] = {
        "guard": True, "runs": runs, "guard_examples": rules.guard_examples,
        "auc": base, "alpha": rules.alpha, "chosen": chosen, "sure": sure, "breaks_at": half,
    }  # fmt: skip
    for name, (gain, course) in courses.items():
        ended = [run_once(course, seed, rules, chosen) for seed in range(runs)]
        at = [run.examples - course.at for run in ended if run.how == "back"]
        figures[name] = {
            "auc_gain": gain,
            "back": len(at) / runs,
            "median_examples_to_go_back": float(np.median(at)) if at else None,
        }
    return figures


def text_lines(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = []
    for name in ("equal", "worse", "far worse", "breaks"):
        course = figures[name]
        lines.append(
            f"{name:>9} ({course['auc_gain']:+.3f} AUC): rolled back {course['back']:.1%}, median examples "
            f"until then {course['median_examples_to_go_back']}"
        )
    return lines
