"""Line that an arm of an experiment trains. It answers that arm's users and is never judged:

arm ──► ended: the experiment is over, or history was replaced

It begins as the live line, and learns from all users' examples, weighted for the arm.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from experiments.assignment.arm_line import arm_line_name
from experiments.assignment.definition import Experiment
from experiments.evidence.verdict import Evidence, Hold
from experiments.promotion.kinds.line_state import LineState
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import ArmLine, Candidate, Control, Decision, ModelSize

ARM: Final = "arm"  # stage of an arm's line, and kind of its record


@dataclass(frozen=True)
class ArmState(LineState):
    """State of an arm's line."""

    first_stage: ClassVar[str] = ARM
    answers: ClassVar[bool] = True
    is_scored: ClassVar[bool] = False

    @classmethod
    def is_begun_by(cls, record: Candidate) -> bool:
        return record.arm is not None

    @classmethod
    def reserves(cls, name: str) -> str:
        if "." in name:
            return f"{name} has a dot, as arms' lines have: add the candidate under another name"
        return ""

    @property
    def arm(self) -> ArmLine:
        assert self.candidate.arm is not None, "a record of this kind names its arm"
        return self.candidate.arm

    @property
    def publishes(self) -> bool:
        return self.active

    def judge(self, evidence: Evidence, rules: PromotionConfig) -> Hold:
        return Hold(False, f"answers an arm of the experiment {self.arm.experiment}", evidence)

    def requested_rollback(self, why: str, evidence: Evidence) -> Hold:
        return Hold(False, "it answers an arm: stop its experiment, and it ends", evidence)


def arm_line_records(
    running: Iterable[Experiment], lines: Mapping[str, LineState], size: ModelSize | None,
    refused: Mapping[str, str], now_ms: int,
) -> list[Control]:  # fmt: skip
    """Records to append so that exactly the arms that train have a line. ``size``: of the live model.
    ``refused``: reasons by line."""
    wanted = {
        arm_line_name(experiment.name, arm.name): ArmLine(
            experiment=experiment.name, arm=arm.name, trains=arm.trains
        )
        for experiment in running
        for arm in experiment.arms
        if arm.trains
    }
    records: list[Control] = [
        Candidate(line=line, registry="", kind=ARM, time_ms=now_ms, arm=arm, size=size)
        for line, arm in wanted.items()
        if line not in lines
    ]
    for line, state in lines.items():
        if isinstance(state, ArmState) and state.active:
            why = refused.get(line) or ("" if line in wanted else "its experiment is over")
            if why:
                records.append(Decision(line=line, verdict="hold", final=True, why=why, time_ms=now_ms))
    return records


def experiments_without_line(lines: Iterable[LineState]) -> dict[str, str]:
    """Reasons by experiments that can't go on because the line of one of their arms ended."""
    return {
        state.arm.experiment: f"the line {state.line} ended: {state.why}"
        for state in lines
        if isinstance(state, ArmState) and not state.active
    }
