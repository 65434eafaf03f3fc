"""Decisions from records alone: no model, no shadow; what candidates said is drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.comparison import Paired
from recsys.blueprint import feature_set
from recsys.cli.study_promotion import Pair, Stream
from recsys.config import Config
from recsys.hashing import key_of
from recsys.log import Append, MemoryLog
from recsys.promotion_config import PromotionConfig
from recsys.records import (
    CONTROL,
    EXAMPLES,
    SCORES,
    STEPS,
    Candidate,
    Control,
    Decision,
    Example,
    Live,
    Scores,
    Step,
    Wish,
    pack,
    topics,
)
from training.candidates.promoter import Promoter
from training.control import ControlReader

BETTER, WORSE, EQUAL = Pair(1.2, 0.3), Pair(0.3, 1.2), Pair(0.7, 0.7)
RULES = PromotionConfig(
    least_examples=1_000,
    canary_examples=50,
    canary_margin=0.2,
    settle_s=1.0,
    auc_margin=0.01,
    engagement_margin=0.2,
)


class Town:
    """A log, a promoter on it, and whoever appends what it decides."""

    def __init__(self, folder: Path, rules: PromotionConfig = RULES) -> None:
        self.log, self.now_ms = MemoryLog(), 1_000
        for topic in topics(1):
            self.log.create(topic)
        self.config = replace(Config(), state=str(folder), promotion=rules)
        self.step = 0
        self.restart()
        self.say(Live(line="main", epoch=0))

    def restart(self) -> None:
        self.promoter = Promoter(
            self.log, self.config, feature_set(self.config), lambda: self.now_ms
        )
        self._control = ControlReader(self.log)

    def say(self, *records: Control) -> None:
        self.log.append(CONTROL, [Append(0, b"", pack(record)) for record in records])

    def scored(self, line: str, pair: Pair, steps: int, nan: bool = False) -> None:
        stream = Stream(pair, key_of("line", line) % 1_000, users=300)
        for _ in range(steps):
            self.step += 1
            self.log.append(
                SCORES, [Append(0, b"", pack(said_of(line, stream.step(), self.step, nan)))]
            )
            self.cut(self.step)

    def cut(self, step: int) -> None:
        record = Step(line="main", epoch=0, step=step, ranges=[], examples=0, lanes=1,
                      time_ms=step, config="")  # fmt: skip
        self.log.append(STEPS, [Append(0, b"", pack(record))])

    def show(self, served_by: str, count: int, liked: float) -> None:
        draw, offset = np.random.default_rng(count), self.log.end(EXAMPLES, 0)
        records = []
        for n in range(count):
            example = Example(
                partition=0, offset=n, index=0, labels=[float(draw.random() < liked), 0.0, 0.0],
                sequence=offset + n + 1, request_id=f"r{n}", user_id=f"{served_by}{n % 40}",
                item_id="i", surface="feed", shown_ms=self.now_ms + n, closed_ms=self.now_ms + n + 10,
                served_by=served_by, predicted=b"0000",
            )  # fmt: skip
            records.append(Append(0, b"", pack(example)))
        self.log.append(EXAMPLES, records)

    def decide(self) -> list[Control]:
        """Turns until nothing more is decided."""
        found: list[Control] = []
        while True:
            for said in self._control.turn():
                self.promoter.fold(said)
            decided = self.promoter.turn()
            if not decided:
                return found
            self.say(*decided)
            found += decided


def said_of(line: str, pairs: Paired, step: int, nan: bool = False) -> Scores:
    candidate = pairs.candidate_N.astype(np.float32)
    if nan:
        candidate[0] = np.nan
    return Scores(
        line=line, against=("main", 0), step=step, time_ms=step,
        users=pairs.users_N.astype(np.int64).tobytes(), live=pairs.live_N.astype(np.float32).tobytes(),
        candidate=candidate.tobytes(), labels=pairs.labels_N.astype(np.uint8).tobytes(),
        segments=np.zeros(len(pairs), np.int64).tobytes(), names=["new viewers"],
        hits=np.full(3, 3, np.uint8).tobytes(), hit_users=np.arange(3).tobytes(),
    )  # fmt: skip


def candidate(line: str) -> Candidate:
    return Candidate(line=line, registry="r")


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def told(found: list[Control]) -> list[tuple[str, str, str]]:
    return [(its.line, its.said, its.to) for its in found if isinstance(its, Decision)]


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
    assert town.promoter.cases["same"].said.startswith("not told apart yet")


def test_one_at_a_time(town: Town) -> None:
    town.say(candidate("first"), candidate("second"))
    town.scored("first", BETTER, 20)
    assert told(town.decide()) == [("first", "promote", "canary")]
    town.scored("second", BETTER, 20)
    assert town.decide() == []
    assert town.promoter.cases["second"].said.startswith("first is at it: one candidate at a time")
    town.say(Wish(what="rollback", line="first", reason="no"))
    assert told(town.decide()) == [("first", "rollback", ""), ("second", "promote", "canary")]


def test_one_that_is_behind_waits_until_it_has_caught_up(town: Town) -> None:
    town.say(candidate("good"))
    town.scored("good", BETTER, 20)
    for step in range(21, 121):
        town.cut(step)
    assert town.decide() == []
    assert town.promoter.cases["good"].said.startswith("100 steps behind: it catches up")
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


def test_people_are_asked_where_the_rules_say_so(tmp_path: Path) -> None:
    town = Town(tmp_path, replace(RULES, manual=True))
    town.say(candidate("good"))
    town.scored("good", BETTER, 20)
    assert town.decide() == [] and town.promoter.cases["good"].said.startswith("waits for approval")
    town.say(Wish(what="approve", line="good"))
    assert told(town.decide()) == [("good", "promote", "canary")]


def canary(town: Town, liked: float) -> list[Control]:
    town.say(candidate("good"))
    town.scored("good", BETTER, 20)
    town.decide()
    town.now_ms += 1
    for served_by, rate in (("main/0", 0.5), ("good/0", liked)):
        town.show(served_by, 400, rate)
    town.now_ms += 3_000
    town.show("main/0", 1, 1.0)  # event time goes on, so what was shown has settled
    return town.decide()


def test_a_canary_that_viewers_like_as_much_is_promoted_to_all(town: Town) -> None:
    (decision,) = canary(town, 0.5)
    assert told([decision]) == [("good", "promote", "all")]
    assert isinstance(decision, Decision) and decision.epoch == 1
    assert decision.evidence["shown"] == 400 and town.decide() == []  # it waits for the snapshot


def test_a_canary_that_viewers_like_less_is_taken_back(town: Town) -> None:
    (decision,) = canary(town, 0.1)
    assert told([decision]) == [("good", "rollback", "")]
    assert isinstance(decision, Decision) and decision.why.startswith(
        "viewers give fewer long_view"
    )


def test_quick_swipes_alone_prove_nothing(town: Town) -> None:
    """What the canary shows is known by its skips at first: it has to settle."""
    town.say(candidate("good"))
    town.scored("good", BETTER, 20)
    town.decide()
    town.now_ms += 1
    town.show("main/0", 400, 0.5)
    town.now_ms += 400
    town.show("good/0", 300, 0.0)
    assert town.decide() == [] and town.promoter.cases["good"].served.result().examples == 0  # type: ignore[union-attr]


def test_a_restart_decides_nothing_twice(town: Town) -> None:
    town.say(candidate("good"), candidate("other"))
    town.scored("good", BETTER, 20)
    town.decide()
    town.say(Wish(what="rollback", line="good", reason="no"))
    assert told(town.decide()) == [("good", "rollback", "")]
    town.scored("other", BETTER, 20)
    assert told(town.decide()) == [("other", "promote", "canary")]
    before = town.promoter.cases["other"].comparison.result()
    town.restart()
    assert town.decide() == []
    assert town.promoter.cases["other"].comparison.result() == before
    assert town.promoter.lifecycle.standings["other"].stage == "canary"


def test_a_wish_that_cannot_be_granted_is_answered(town: Town) -> None:
    town.say(candidate("over"), Decision(line="over", said="hold", final=True, why="worse"))
    for line, why in (
        ("main/0", "nothing was promoted before it"),
        ("over", "over is over, or not known; what is live is main/0"),
        ("main/3", "main/3 is over, or not known"),
        ("", "it says of what"),
    ):
        town.say(Wish(what="rollback", line=line))
        (answer,) = town.decide()
        assert isinstance(answer, Decision) and (answer.said, answer.to) == ("hold", "rollback")
        assert why in answer.why and town.decide() == []
    assert town.promoter.lifecycle.standings["over"].why == "worse"


def test_a_long_good_past_hides_nothing(town: Town) -> None:
    town.say(candidate("good"))
    town.scored("good", BETTER, 100)
    assert told(town.decide()) == [("good", "promote", "canary")]
    town.scored("good", Pair(0.3, 1.6), 40)
    (decision,) = town.decide()
    assert isinstance(decision, Decision) and decision.said == "rollback"
    assert decision.why.startswith("lately its ")
    assert decision.evidence["loss gained"] > 0  # over all that it ever scored it is ahead


def test_what_cannot_be_read_stops_nobody(town: Town) -> None:
    odd = Scores(line="good", against=("main", 0), step=1, time_ms=0, users=b"1234567")
    town.say(candidate("good"))
    town.log.append(SCORES, [Append(0, b"", pack(odd)), Append(0, b"", b"\xc1")])
    town.scored("good", BETTER, 20)
    assert told(town.decide()) == [("good", "promote", "canary")]
