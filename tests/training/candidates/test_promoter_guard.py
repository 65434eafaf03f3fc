"""A new live line that is guarded, from records alone: what the guard said of it is drawn."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.promotion.simulated_pairs import Pair
from experiments.evidence.line_evidence import LineEvidence
from parameter_server.storage import snapshots
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import Candidate, Control, Decision, Live, OperatorRequest
from tests.support.training.promotion_harness import EQUAL, RULES, Town, told
from training.candidates.promoter import answers_request

GUARD = "guard-1"
LIVE_IS_WORSE, LIVE_IS_BETTER = Pair(1.6, 0.3), Pair(0.3, 1.6)
NAN = np.array([0.1, np.nan], np.float32).tobytes()


def guarded(folder: Path, rules: PromotionConfig = RULES, snapshot: bool = True) -> Town:
    """A town in which ``good`` has become live."""
    town = Town(folder, replace(rules, guard_examples=rules.guard_examples and 4_000))
    if snapshot:
        written(folder, 0, 5)
    town.say(Candidate(line="good", registry="r"))
    town.say(Decision(line="good", verdict="promote", to="all", epoch=1, why="better"))
    written(folder, 1, 7)
    town.show("main/0", 400, 0.5)
    town.now_ms += 1_000
    (live,) = town.decide()
    assert isinstance(live, Live) and (live.epoch, live.candidate) == (1, "good")
    assert live.guarded == bool(rules.guard_examples)
    return town


def written(folder: Path, epoch: int, step: int) -> None:
    arrays, where = {"dense/values": np.zeros(3, np.float32)}, folder / "snapshots"
    snapshots.write_part(where, "main", epoch, step, 0, 1, arrays, {"step": step})


def decided(found: list[Control]) -> tuple[Decision, Live]:
    decision, live = found
    assert isinstance(decision, Decision) and isinstance(live, Live)
    return decision, live


def test_a_line_that_is_worse_is_taken_back(tmp_path: Path) -> None:
    town = guarded(tmp_path)
    town.scored(GUARD, LIVE_IS_WORSE, 10, epoch=1)
    decision, live = decided(town.decide())
    assert told([decision]) == [(GUARD, "rollback", "")]
    assert decision.why.startswith("live's log loss is worse than the former live line's")
    assert decision.evidence["loss at least"] > RULES.guard_loss_margin
    assert (live.epoch, live.parent_epoch, live.base_step, live.candidate) == (2, 0, 5, "")
    assert live.reason == f"{GUARD}: {decision.why}"
    assert snapshots.complete_steps(tmp_path / "snapshots", "main", 2) == [5]
    assert town.promoter.lifecycle.excluded == ["main/1", "good/0"]
    # Nothing guards what is live again: there is no going to and fro.
    town.scored(GUARD, LIVE_IS_BETTER, 20, epoch=2)
    assert town.decide() == [] and town.promoter.lifecycle.active == []


def test_an_epoch_that_goes_on_after_unlearning_answers_no_rollback() -> None:
    request = OperatorRequest(what="rollback", line="main/5")
    unlearned, rolled_back = (
        Live(line="main", epoch=6, parent_epoch=parent, base_step=3) for parent in (5, 4)
    )
    assert not answers_request(request, unlearned) and answers_request(request, rolled_back)


def test_a_line_that_is_as_good_or_better_stays_and_the_guard_ends(tmp_path: Path) -> None:
    for pair in (EQUAL, LIVE_IS_BETTER):
        town = guarded(tmp_path / str(pair.live))
        town.scored(GUARD, pair, 31, epoch=1)
        assert town.decide() == []
        (standing,) = town.promoter.lifecycle.active
        assert town.promoter.opinion(standing).startswith("3968 of 4000 examples compared, nothing")
        town.scored(GUARD, pair, 1, epoch=1)
        (over,) = town.decide()
        assert isinstance(over, Decision) and over.final and over.verdict == "hold"
        assert over.evidence["examples"] == 32 * 128
        assert town.promoter.lifecycle.active == [] and town.decide() == []


def test_a_guard_ends_by_time_on_a_system_with_few_examples(tmp_path: Path) -> None:
    """By the time of the live record, whoever looks, and however often the director begins anew."""
    town = guarded(tmp_path)
    town.scored(GUARD, LIVE_IS_BETTER, 2, epoch=1)
    town.now_ms += 24 * 3_600_000 - 1
    assert town.decide() == []
    town.restart()
    town.now_ms += 1
    (over,) = town.decide()
    assert isinstance(over, Decision) and (over.verdict, over.final) == ("hold", True)
    assert over.why.startswith("24 hours over, 256 examples compared, nothing against")
    assert town.promoter.lifecycle.active == []


def test_what_was_said_of_another_epoch_does_not_count(tmp_path: Path) -> None:
    town = guarded(tmp_path)
    town.scored(GUARD, LIVE_IS_WORSE, 10, epoch=0)
    assert town.decide() == []
    assert town.promoter.collected[GUARD].compared.examples == 0


def test_what_ends_by_a_live_record_keeps_its_numbers_and_no_more(tmp_path: Path) -> None:
    """A candidate that became live, a guard whose live line is replaced, one at work when live goes back."""
    town = guarded(tmp_path)
    town.scored(GUARD, EQUAL, 3, epoch=1)
    assert after(town, (100, 0.5, b"0000")) == []
    town.say(Candidate(line="next", registry="r"))
    town.say(Decision(line="next", verdict="promote", to="all", epoch=2))
    written(tmp_path, 2, 9)
    town.decide()
    cases = town.promoter.collected
    assert town.promoter.lifecycle.candidates[GUARD].stage == "ended"
    assert (closed(cases["good"]), closed(cases["next"]), closed(cases[GUARD])) == (True,) * 3
    assert cases[GUARD].compared.examples == 3 * 128
    assert cases[GUARD].served is not None and cases[GUARD].served.examples == 100
    assert not closed(cases["guard-2"])
    town.say(Candidate(line="other", registry="r"))
    town.scored("other", EQUAL, 3, epoch=2)
    town.say(OperatorRequest(what="rollback", line="main/2", reason="it looks odd"))
    town.decide()
    assert town.promoter.lifecycle.active == [] and all(map(closed, cases.values()))
    assert town.promoter.collected["other"].compared.examples == 3 * 128


def closed(case: LineEvidence) -> bool:
    """Whether nothing is left of what its numbers were made of."""
    return not (case.comparison or case.recent or getattr(case, "calibration", None) or case.rates)


def test_a_kill_before_or_after_the_decision_changes_nothing(tmp_path: Path) -> None:
    town = guarded(tmp_path)
    town.scored(GUARD, LIVE_IS_BETTER, 5, epoch=1)
    assert town.decide() == []
    before = str(town.promoter.evidence(town.promoter.lifecycle.active[0]))
    town.restart()
    assert town.decide() == []
    assert str(town.promoter.evidence(town.promoter.lifecycle.active[0])) == before
    town.scored(GUARD, LIVE_IS_WORSE, 20, epoch=1)
    (decision,) = town.promoter.turn()
    town.say(decision)  # it stands on the log, and then the director is killed
    assert isinstance(decision, Decision) and decision.verdict == "rollback"
    town.restart()
    (live,) = town.decide()
    assert isinstance(live, Live) and (live.epoch, live.parent_epoch) == (2, 0)
    assert live.reason == f"{GUARD}: {decision.why}"
    town.restart()
    assert town.decide() == []


def test_a_kill_before_the_guards_first_word_leaves_it_at_work(tmp_path: Path) -> None:
    """It follows from the live record: nothing can come between the two."""
    town = guarded(tmp_path)
    town.restart()
    assert town.decide() == []
    assert [its.line for its in town.promoter.lifecycle.active] == [GUARD]


def test_guards_are_switched_off_by_the_rules(tmp_path: Path) -> None:
    town = guarded(tmp_path, replace(RULES, guard_examples=0))
    assert town.decide() == [] and town.promoter.lifecycle.active == []


def test_where_the_line_cannot_go_back_the_guard_ends_and_says_so(tmp_path: Path) -> None:
    town = guarded(tmp_path, snapshot=False)
    town.scored(GUARD, LIVE_IS_WORSE, 10, epoch=1)
    decision, over = town.decide()
    assert told([decision, over]) == [(GUARD, "rollback", ""), (GUARD, "hold", "")]
    assert isinstance(over, Decision) and over.final
    assert "but main/1 can't go back: no snapshot of epoch 0 is left" in over.why
    assert town.promoter.lifecycle.active == [] and town.decide() == []


def test_a_disk_that_is_full_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    town = guarded(tmp_path)
    town.scored(GUARD, LIVE_IS_WORSE, 10, epoch=1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("training.candidates.promoter.snapshots.adopt", full)
        assert told(town.decide()) == [(GUARD, "rollback", "")]
        assert town.decide() == []
        assert "No space left" in caplog.messages[-1]
    (live,) = town.decide()
    assert isinstance(live, Live) and live.epoch == 2


def test_a_guard_whose_own_scores_are_no_numbers_ends(tmp_path: Path) -> None:
    town = guarded(tmp_path)
    town.scored(GUARD, LIVE_IS_BETTER, 1, nan=True, epoch=1)
    (over,) = town.decide()
    assert isinstance(over, Decision) and over.final
    assert over.why == "the former live line can't take over: 1 of its scores aren't finite"


def test_a_person_may_end_the_guard_or_take_the_line_back_before_it(tmp_path: Path) -> None:
    town = guarded(tmp_path / "a")
    town.say(OperatorRequest(what="rollback", line=GUARD, reason="it is fine"))
    (over,) = town.decide()
    assert isinstance(over, Decision) and (over.verdict, over.to, over.final) == ("hold", "rollback", True)
    assert town.promoter.lifecycle.live.epoch == 1  # type: ignore[union-attr]
    town.say(OperatorRequest(what="rollback", line=GUARD))
    (refused,) = town.decide()
    assert isinstance(refused, Decision) and refused.why.startswith(f"{GUARD} is over")

    town = guarded(tmp_path / "b")
    town.scored(GUARD, LIVE_IS_WORSE, 10, epoch=1)
    town.say(OperatorRequest(what="rollback", line="main/1", reason="it looks odd"))
    (live,) = town.decide()
    assert isinstance(live, Live) and live.reason == "it looks odd"
    assert town.promoter.lifecycle.active == [] and town.decide() == []


def test_a_guard_goes_before_a_candidate_that_would_be_next(tmp_path: Path) -> None:
    town = guarded(tmp_path)
    town.say(Candidate(line="next", registry="r"))
    town.say(Decision(line="next", verdict="promote", to="all", epoch=2))
    town.scored(GUARD, LIVE_IS_WORSE, 10, epoch=1)
    written(tmp_path, 2, 9)
    decision, live = decided(town.decide())
    assert decision.line == GUARD
    assert (live.epoch, live.parent_epoch, live.candidate) == (3, 0, "")  # 2 was promised to another


def after(town: Town, *shown: tuple[int, float, bytes]) -> list[Control]:
    """What live shows once it is live: how many items, how many of them engaged with, what it predicted."""
    town.now_ms += 1_000
    for count, liked, predicted in shown:
        town.show("main/1", count, liked, predicted)
    town.now_ms += 3_000
    town.show("other/0", 1, 1.0)  # event time goes on, so what was shown has settled
    return town.decide()


@pytest.mark.parametrize(
    "shown, why",
    [
        ([(400, 0.1, b"0000")], "viewers give fewer long_view than before"),
        ([(300, 0.5, b"0000"), (100, 0.5, b"")], "25.0% of live's lists went without its ranker"),
        ([(3, 0.5, NAN)], "3 of live's predictions aren't finite"),
    ],
)
def test_what_it_shows_may_take_it_back(
    tmp_path: Path, shown: list[tuple[int, float, bytes]], why: str
) -> None:
    decision, live = decided(after(guarded(tmp_path), *shown))
    assert decision.why.startswith(why) and live.epoch == 2
    assert decision.evidence["shown before"] == 400


def test_a_few_who_ask_without_end_take_nothing_back(tmp_path: Path) -> None:
    """29 users who like nothing, of whose lists half weren't ranked; with the 30th it is known."""
    town = guarded(tmp_path)
    town.now_ms += 1_000
    town.show("main/1", 400, 0.0, b"0000", users=29)
    town.show("main/1", 401, 0.0, b"", users=29)
    assert after(town) == []
    served = town.promoter.collected[GUARD].served
    assert served is not None and (served.users, served.live_users) == (29, 40)
    assert served.examples == 801 and served.degraded > 0.5
    town.show("main/1", 30, 0.0, b"0000", users=30)
    decision, _ = decided(after(town))
    assert "of live's lists went without its ranker" in decision.why


def test_what_it_shows_as_before_speaks_not_against_it(tmp_path: Path) -> None:
    town = guarded(tmp_path)
    assert after(town, (400, 0.45, b"0000"), (10, 0.5, b"")) == []
    town.restart()
    assert town.decide() == []
    served = town.promoter.collected[GUARD].served
    assert served is not None
    assert (served.examples, served.live_examples) == (410, 400)
