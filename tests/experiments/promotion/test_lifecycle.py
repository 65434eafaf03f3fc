import msgspec
import pytest

from experiments.promotion.lifecycle import (
    CANARY,
    ENDED,
    LIVE,
    SHADOW,
    TAKING_BACK,
    TAKING_OVER,
    Lifecycle,
    is_in_canary,
)
from recsys.events.control_records import Candidate, Control, Decision, Experiments, Live, OperatorRequest
from recsys.events.records import pack, unpack


def folded(*said: object) -> Lifecycle:
    lifecycle = Lifecycle()
    for record in said:
        lifecycle.fold(record)  # type: ignore[arg-type]
    return lifecycle


FIRST = Live(line="main", epoch=0)
C1, C2 = Candidate(line="c1", registry="r"), Candidate(line="c2", registry="r")
TO_CANARY = Decision(line="c1", verdict="promote", to="canary", share=0.3)
TO_ALL = Decision(line="c1", verdict="promote", to="all", epoch=1)
IS_LIVE = Live(line="main", epoch=1, base_step=7, parent_epoch=0, candidate="c1")


def stage(lifecycle: Lifecycle, line: str = "c1") -> str:
    return lifecycle.candidates[line].stage


def test_a_candidate_goes_through_its_stages() -> None:
    assert stage(folded(FIRST, C1)) == SHADOW
    canary = folded(FIRST, C1, TO_CANARY)
    assert stage(canary) == CANARY and canary.canary is canary.candidates["c1"]
    taking_over = folded(FIRST, C1, TO_CANARY, TO_ALL)
    assert stage(taking_over) == TAKING_OVER and taking_over.candidates["c1"].epoch == 1
    assert taking_over.canary is not None and taking_over.canary.share == 0.3  # it answers until it is live
    live = folded(FIRST, C1, TO_CANARY, TO_ALL, IS_LIVE)
    assert stage(live) == LIVE and live.canary is None and live.live is IS_LIVE


def test_one_that_was_live_ends_with_the_next() -> None:
    second = Live(line="main", epoch=2, base_step=9, parent_epoch=1, candidate="c2")
    lifecycle = folded(FIRST, C1, C2, IS_LIVE, second)
    assert (stage(lifecycle), stage(lifecycle, "c2")) == (ENDED, LIVE)
    assert lifecycle.excluded == []  # nobody went back


def test_held_for_good_or_rolled_back_it_ends() -> None:
    assert stage(folded(C1, Decision(line="c1", verdict="hold", final=True, why="no"))) == ENDED
    open_still = folded(C1, Decision(line="c1", verdict="hold", why="not yet"))
    assert stage(open_still) == SHADOW and open_still.candidates["c1"].why == "not yet"
    back = folded(C1, TO_CANARY, Decision(line="c1", verdict="rollback", why="worse"))
    assert stage(back) == ENDED and back.canary is None and back.excluded == ["c1/0"]


def test_a_line_that_went_back_quarantines_what_came_between() -> None:
    back = Live(line="main", epoch=2, base_step=6, parent_epoch=0)
    lifecycle = folded(FIRST, C1, IS_LIVE, C2, back)
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
        assert not lifecycle.fold(said)  # type: ignore[arg-type]
    assert stage(lifecycle) == SHADOW and lifecycle.rolled_back == []


def test_a_canary_answers_its_share_of_users_the_same_ones_always() -> None:
    canary = folded(FIRST, C1, TO_CANARY).canary
    users = [f"u{n}" for n in range(4_000)]
    chosen = [user for user in users if is_in_canary(canary, user)]
    assert abs(len(chosen) / len(users) - 0.3) < 0.03
    assert chosen == [user for user in users if is_in_canary(canary, user)]
    assert not any(is_in_canary(None, user) for user in users)


GUARDED = msgspec.structs.replace(IS_LIVE, guarded=True, time_ms=70)
WORSE = Decision(line="guard-1", verdict="rollback", why="worse", time_ms=80)
BACK = Live(line="main", epoch=2, base_step=6, parent_epoch=0)


def test_what_was_live_guards_against_what_replaced_it() -> None:
    lifecycle = folded(FIRST, C1, GUARDED)
    guard = lifecycle.candidates["guard-1"]
    assert (guard.stage, guard.guards, guard.since_ms) == (SHADOW, 1, 70)
    assert guard in lifecycle.active and lifecycle.canary is None
    assert lifecycle.guarded_live(guard) is GUARDED
    assert list(folded(FIRST, C1, IS_LIVE).candidates) == ["c1"]


def test_its_word_takes_the_live_line_back_and_quarantines_what_that_served_alone() -> None:
    decided = folded(FIRST, C1, GUARDED, WORSE)
    assert stage(decided, "guard-1") == TAKING_BACK and decided.candidates["guard-1"].active
    assert decided.rolled_back == [] and decided.excluded == []  # a guard has answered nobody
    back = folded(FIRST, C1, GUARDED, WORSE, BACK)
    assert stage(back, "guard-1") == ENDED and back.active == []
    assert back.excluded == ["main/1", "c1/0"]
    assert list(back.candidates) == ["c1", "guard-1"]  # nothing guards what was there before


@pytest.mark.parametrize(
    "said, stage_then",
    [
        (Decision(line="guard-1", verdict="hold", final=True, why="nothing against it"), ENDED),
        (Decision(line="guard-1", verdict="hold", why="not yet"), SHADOW),
        (Decision(line="guard-1", verdict="promote", to="canary", share=0.5), SHADOW),
        (BACK, ENDED),
        (Live(line="main", epoch=2, base_step=9, parent_epoch=1, candidate="c2", guarded=True), ENDED),
    ],
)
def test_how_a_guard_ends(said: Control, stage_then: str) -> None:
    lifecycle = folded(FIRST, C1, C2, GUARDED, said)
    assert stage(lifecycle, "guard-1") == stage_then
    assert lifecycle.canary is None
    guards = [its.line for its in lifecycle.active if its.guards]
    next_one = isinstance(said, Live) and said.guarded
    assert guards == (["guard-2"] if next_one else ["guard-1"] if stage_then == SHADOW else [])


def test_one_that_has_ended_says_nothing_more() -> None:
    over = Decision(line="guard-1", verdict="hold", final=True, why="nothing against it")
    lifecycle = folded(FIRST, C1, GUARDED, over)
    assert not lifecycle.fold(WORSE) and stage(lifecycle, "guard-1") == ENDED


def test_a_name_that_a_candidate_has_is_no_guards() -> None:
    theirs = Candidate(line="guard-1", registry="r")
    lifecycle = folded(FIRST, C1, theirs, GUARDED)
    assert lifecycle.candidates["guard-1"].candidate is theirs
    assert not lifecycle.candidates["guard-1"].guards


def test_records_from_before_there_were_guards_are_read() -> None:
    old = {"type": "live", "line": "main", "epoch": 1, "since": 7, "candidate": "c1"}
    said = unpack(msgspec.msgpack.encode(old), Control)  # type: ignore[arg-type]
    assert isinstance(said, Live) and not said.guarded
    assert unpack(pack(GUARDED), Control) == GUARDED  # type: ignore[arg-type]
