"""Lifecycles folded from records of ``control``, and the records of one promotion."""

import msgspec

from experiments.promotion.lifecycle import Lifecycle
from recsys.events.control_records import Candidate, Control, Decision, Live


def folded(*records: Control) -> Lifecycle:
    lifecycle = Lifecycle()
    for record in records:
        lifecycle.fold(record)
    return lifecycle


def stage(lifecycle: Lifecycle, line: str = "c1") -> str:
    return lifecycle.candidates[line].stage


FIRST = Live(line="main", epoch=0)
C1, C2 = Candidate(line="c1", registry="r"), Candidate(line="c2", registry="r")
TO_CANARY = Decision(line="c1", verdict="promote", to="canary", share=0.3)
TO_ALL = Decision(line="c1", verdict="promote", to="all", epoch=1)
IS_LIVE = Live(line="main", epoch=1, base_step=7, parent_epoch=0, candidate="c1")
GUARDED = msgspec.structs.replace(IS_LIVE, guarded=True, time_ms=70)
BACK = Live(line="main", epoch=2, base_step=6, parent_epoch=0)
