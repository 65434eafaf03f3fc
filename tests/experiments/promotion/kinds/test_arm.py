from experiments.evidence.verdict import Evidence, Hold
from experiments.promotion.kinds.arm import ARM, experiments_without_line
from experiments.promotion.kinds.line_state import ENDED
from experiments.promotion.line_kinds import reserved
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import ArmLine, Candidate, Decision
from tests.support.folded_control import BACK, FIRST, IS_LIVE, folded, stage

LINE = "warmer.warm"
RECORD = Candidate(
    line=LINE, registry="", kind=ARM, arm=ArmLine(experiment="warmer", arm="warm", trains="weighted")
)
OVER = Decision(line=LINE, verdict="hold", final=True, why="its experiment is over")


def test_it_answers_its_arm_and_is_not_judged() -> None:
    lifecycle = folded(FIRST, RECORD)
    state = lifecycle.candidates[LINE]
    assert stage(lifecycle, LINE) == ARM and lifecycle.arms == [LINE] and lifecycle.canary is None
    said = state.judge(Evidence(failed=("it is broken",)), PromotionConfig())
    assert isinstance(said, Hold) and not said.final
    asked = state.requested_rollback("why not", Evidence())
    assert not asked.final and "stop its experiment" in asked.why  # type: ignore[union-attr]


def test_it_ends_with_its_experiment_or_its_history() -> None:
    for record in (OVER, BACK):
        lifecycle = folded(FIRST, RECORD, record)
        assert stage(lifecycle, LINE) == ENDED and lifecycle.arms == []
    lifecycle = folded(FIRST, RECORD, IS_LIVE, Decision(line=LINE, verdict="rollback"))
    assert stage(lifecycle, LINE) == ARM and lifecycle.rolled_back == []


def test_an_experiment_without_one_of_its_lines_is_known() -> None:
    lines = folded(FIRST, RECORD).candidates
    assert experiments_without_line(lines.values()) == {}
    ended = folded(FIRST, RECORD, OVER).candidates
    assert experiments_without_line(ended.values()) == {"warmer": f"the line {LINE} ended: {OVER.why}"}


def test_names_with_a_dot_are_reserved() -> None:
    assert "has a dot" in reserved(LINE) and not reserved("warmer")
