"""Decisions from records alone: no model, no shadow; what candidates said is drawn."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.studies.promotion.simulated_pairs import Pair, Stream
from recsys.events.control_records import REQUEST_MS, Candidate, Control, Decision, Live, OperatorRequest
from recsys.events.records import SCORES, Scores, pack
from recsys.log.protocol import Append
from tests.support.training.promotion_harness import BETTER, EQUAL, RULES, WORSE, Town, said_of, told


def candidate(line: str) -> Candidate:
    return Candidate(line=line, registry="r")


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def test_a_better_one_goes_to_a_canary_and_a_worse_one_is_given_up(town: Town) -> None:
    town.say(candidate("good"), candidate("bad"), candidate("same"))
    for line, pair in (("bad", WORSE), ("same", EQUAL), ("good", BETTER)):
        town.scored(line, pair, 30)
    found = town.decide()
    assert told(found) == [("good", "promote", "canary"), ("bad", "hold", "")]
    promoted, held = found
    assert isinstance(promoted, Decision) and promoted.share == RULES.canary_share
    assert promoted.evidence["loss at least"] > 0 and promoted.evidence["examples"] == 30 * 128
    assert isinstance(held, Decision) and held.final and "worse" in held.why
    assert town.opinion("same").startswith("no significant difference yet")


def test_one_at_a_time(town: Town) -> None:
    town.say(candidate("first"), candidate("second"))
    town.scored("first", BETTER, 20)
    assert told(town.decide()) == [("first", "promote", "canary")]
    town.scored("second", BETTER, 20)
    assert town.decide() == []
    assert town.opinion("second").startswith("first is the canary or goes live: one candidate at a time")
    town.say(OperatorRequest(what="rollback", line="first", reason="no"))
    assert told(town.decide()) == [("first", "rollback", ""), ("second", "promote", "canary")]


def test_one_that_is_behind_waits_until_it_has_caught_up(town: Town) -> None:
    town.say(candidate("good"))
    town.scored("good", BETTER, 20)
    for step in range(21, 121):
        town.cut(step)
    assert town.decide() == []
    assert town.opinion("good").startswith("100 steps behind: it catches up")
    town.step = 120
    town.scored("good", BETTER, 1)
    assert told(town.decide()) == [("good", "promote", "canary")]


def test_no_number_and_a_refusal_end_it_at_once(town: Town) -> None:
    town.say(candidate("nan"), candidate("refused"))
    town.scored("nan", BETTER, 1, nan=True)
    refusal = Scores(line="refused", against=("main", 0), step=-1, time_ms=0, refused="corrupt")
    town.log.append(SCORES, [Append(0, b"", pack(refusal))])
    found = town.decide()
    assert told(found) == [("nan", "hold", ""), ("refused", "hold", "")]
    assert [its.why for its in found] == ["1 of its scores aren't finite", "corrupt"]  # type: ignore[union-attr]


def float32(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


@pytest.mark.parametrize(
    "bad",
    [
        {"segments": np.zeros(5, np.int64).tobytes()},
        {"segments": b"", "names": ["new viewers"]},
        {"weights": float32(1.0)},
        {"weights": float32(np.nan, *[1.0] * 127)},
        {"weights": float32(np.inf, *[1.0] * 127)},
        {"weights": float32(-1.0, *[1.0] * 127)},
        {"labels": np.full(128, 3, np.uint8).tobytes()},
        {"hit_users": np.arange(2).tobytes()},
        {"figures": {"live_picks": 0.1, "picks": 0.1, "pickers": math.nan}},
        {"figures": {"live_picks": 0.1, "picks": 0.1, "pickers": math.inf}},
        {"live": b"123"},
    ],
)
def test_what_makes_no_sense_is_counted_and_stops_nobody(town: Town, bad: dict[str, Any]) -> None:
    """Of a record that is refused nothing counts, and the next one does."""
    town.say(candidate("good"))
    town.decide()
    case = town.promoter.collected["good"]
    before = str((case.compared, case.recent_result, case.scores, case.figures, case.step))
    said = said_of("good", Stream(BETTER, 1, users=300).step(), 1)
    town.log.append(SCORES, [Append(0, b"", pack(msgspec.structs.replace(said, **bad)))])
    assert town.decide() == [] and town.promoter.unread == 1
    now = (case.compared, case.recent_result, case.scores, case.figures, case.step)
    assert str(now) == before
    town.scored("good", BETTER, 20)
    assert told(town.decide()) == [("good", "promote", "canary")] and town.promoter.unread == 1


def test_people_are_asked_where_the_rules_say_so(tmp_path: Path) -> None:
    town = Town(tmp_path, replace(RULES, manual=True))
    town.say(candidate("good"))
    town.scored("good", BETTER, 20)
    assert town.decide() == [] and town.opinion("good").startswith("waits for approval")
    town.say(OperatorRequest(what="approve", line="good"))
    assert told(town.decide()) == [("good", "promote", "canary")]


def canary(town: Town, liked: float, predicted: bytes = b"0000") -> list[Control]:
    town.say(candidate("good"))
    town.scored("good", BETTER, 20)
    town.decide()
    town.now_ms += 1
    for served_by, rate, said in (("main/0", 0.5, b"0000"), ("good/0", liked, predicted)):
        town.show(served_by, 400, rate, said)
    town.now_ms += 3_000
    town.show("main/0", 1, 1.0)  # event time goes on, so what was shown has settled
    return town.decide()


def test_a_canary_that_viewers_like_as_much_is_promoted_to_all(town: Town) -> None:
    (decision,) = canary(town, 0.5)
    assert told([decision]) == [("good", "promote", "all")]
    assert isinstance(decision, Decision) and decision.epoch == 1
    assert decision.evidence["shown"] == 400 and town.decide() == []  # it waits for the snapshot


@pytest.mark.parametrize("predicted", [b"", float32(0.3, math.nan)])
def test_a_canary_that_ranks_nothing_is_taken_back(town: Town, predicted: bytes) -> None:
    """Whether no ranker answered in time, or what it said was no number."""
    (decision,) = canary(town, 0.5, predicted)
    assert told([decision]) == [("good", "rollback", "")]
    assert decision.why.startswith("100.0% of its lists went without its ranker")  # type: ignore[union-attr]


def test_a_canary_that_viewers_like_less_is_taken_back(town: Town) -> None:
    (decision,) = canary(town, 0.1)
    assert told([decision]) == [("good", "rollback", "")]
    assert isinstance(decision, Decision) and decision.why.startswith("viewers give fewer long_view")


@pytest.mark.parametrize(
    ("rate", "told_of", "why"), [(0.1, "promote", ""), (0.9, "rollback", "viewers give more long_view")]
)
def test_of_a_label_with_a_weight_below_0_fewer_are_better(
    town: Town, rate: float, told_of: str, why: str
) -> None:
    policy = replace(town.config.policy, weights={"long_view": -1.0})
    town.config = replace(town.config, policy=policy)
    town.restart()
    (decision,) = canary(town, rate)
    assert isinstance(decision, Decision) and decision.verdict == told_of
    assert decision.why.startswith(why)


def test_quick_swipes_alone_prove_nothing(town: Town) -> None:
    """What the canary shows is known by its skips at first: it has to settle."""
    town.say(candidate("good"))
    town.scored("good", BETTER, 20)
    town.decide()
    town.now_ms += 1
    town.show("main/0", 400, 0.5)
    town.now_ms += 400
    town.show("good/0", 300, 0.0)
    assert town.decide() == [] and town.promoter.collected["good"].served.examples == 0  # type: ignore[union-attr]


def test_a_restart_decides_nothing_twice(town: Town) -> None:
    town.say(candidate("good"), candidate("other"))
    town.scored("good", BETTER, 20)
    town.decide()
    town.say(OperatorRequest(what="rollback", line="good", reason="no"))
    assert told(town.decide()) == [("good", "rollback", "")]
    town.scored("other", BETTER, 20)
    assert told(town.decide()) == [("other", "promote", "canary")]
    before = town.promoter.collected["other"].comparison.result()
    town.restart()
    assert town.decide() == []
    assert town.promoter.collected["other"].comparison.result() == before
    assert town.promoter.lifecycle.candidates["other"].stage == "canary"


def test_a_wish_that_cannot_be_granted_is_answered(town: Town) -> None:
    town.say(candidate("over"), Decision(line="over", verdict="hold", final=True, why="worse"))
    for line, why in (
        ("main/0", "main/0 can't go back: only a promotion can be taken back"),
        ("over", "over is over, or not known; what is live is main/0"),
        ("main/3", "main/3 is over, or not known"),
        ("", "it names no line"),
    ):
        town.say(OperatorRequest(what="rollback", line=line))
        (answer,) = town.decide()
        assert isinstance(answer, Decision) and (answer.verdict, answer.to) == ("hold", "rollback")
        assert why in answer.why and town.decide() == []
    assert town.promoter.lifecycle.candidates["over"].why == "worse"


def test_what_was_rolled_back_to_goes_no_further_back(town: Town) -> None:
    """Not even to the promotion before: the way ends with the newest one."""
    for epoch, name in ((1, "first"), (2, "second")):
        town.say(candidate(name), Live(line="main", epoch=epoch, parent_epoch=epoch - 1, candidate=name))
    town.say(Live(line="main", epoch=3, parent_epoch=1, reason="it was slow"))
    town.say(OperatorRequest(what="rollback", line="main/3"))
    (answer,) = town.decide()
    assert isinstance(answer, Decision) and answer.why == (
        "main/3 can't go back: only a promotion can be taken back, and it began with: it was slow"
    )


def test_a_request_that_nobody_waits_for_any_more_is_refused(town: Town) -> None:
    town.say(candidate("good"))
    for age_ms, outcome in ((REQUEST_MS + 1, ("hold", "rollback")), (REQUEST_MS, ("rollback", ""))):
        asked_ms = town.now_ms - age_ms
        town.say(OperatorRequest(what="rollback", line="good", time_ms=asked_ms))
        (answer,) = town.decide()
        assert isinstance(answer, Decision) and (answer.verdict, answer.to) == outcome
        assert ("too late" in answer.why) == (age_ms > REQUEST_MS) and town.decide() == []


def test_a_long_good_past_hides_nothing(town: Town) -> None:
    town.say(candidate("good"))
    town.scored("good", BETTER, 100)
    assert told(town.decide()) == [("good", "promote", "canary")]
    town.scored("good", Pair(0.3, 1.6), 40)
    (decision,) = town.decide()
    assert isinstance(decision, Decision) and decision.verdict == "rollback"
    assert decision.why.startswith("lately its ")
    assert decision.evidence["loss gained"] > 0  # over all that it ever scored it is ahead


def test_what_cannot_be_read_stops_nobody(town: Town) -> None:
    odd = Scores(line="good", against=("main", 0), step=1, time_ms=0, users=b"1234567")
    town.say(candidate("good"))
    town.log.append(SCORES, [Append(0, b"", pack(odd)), Append(0, b"", b"\xc1")])
    town.scored("good", BETTER, 20)
    assert told(town.decide()) == [("good", "promote", "canary")]
