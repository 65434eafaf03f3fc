import msgspec

from experiments.promotion.kinds.line_state import ENDED, SHADOW
from recsys.events.control_records import Control, Decision, Experiments, Live, OperatorRequest
from recsys.events.records import pack, unpack
from tests.support.folded_control import BACK, C1, C2, FIRST, GUARDED, IS_LIVE, folded, stage


def test_a_line_that_went_back_quarantines_what_came_between() -> None:
    lifecycle = folded(FIRST, C1, IS_LIVE, C2, BACK)
    assert lifecycle.excluded == ["main/1", "c1/0"]
    assert lifecycle.active == []  # C2 has learned what came between


def test_unlearning_ends_candidates_at_work_and_quarantines_nothing() -> None:
    unlearned = Live(line="main", epoch=1, base_step=3, parent_epoch=0)
    lifecycle = folded(FIRST, C1, unlearned)
    assert stage(lifecycle) == ENDED and lifecycle.excluded == []
    assert lifecycle.unlearned is unlearned
    back = Live(line="main", epoch=3, base_step=5, parent_epoch=0)
    assert folded(FIRST, C1, IS_LIVE, back).unlearned is None
    assert folded(FIRST, C1, IS_LIVE, back, Live(line="main", epoch=4, parent_epoch=3)).unlearned is not None


def test_what_is_not_about_candidates_changes_nothing() -> None:
    lifecycle = folded(FIRST, C1)
    for said in (Experiments(revision=1), OperatorRequest(what="approve", line="c1"),
                 Decision(line="unknown", verdict="rollback"), C1):  # fmt: skip
        assert not lifecycle.fold(said)
    assert stage(lifecycle) == SHADOW and lifecycle.rolled_back == []


def test_records_from_before_there_were_guards_are_read() -> None:
    old = {"type": "live", "line": "main", "epoch": 1, "since": 7, "candidate": "c1"}
    said = unpack(msgspec.msgpack.encode(old), Control)  # type: ignore[arg-type]
    assert isinstance(said, Live) and not said.guarded
    assert unpack(pack(GUARDED), Control) == GUARDED  # type: ignore[arg-type]
