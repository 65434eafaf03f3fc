"""The director and experiments: wishes are answered once, ramps grow, harm ends; restarts repeat nothing."""

from typing import Any

import msgspec
import pytest

from experiments.assignment.policy import Policies
from experiments.statistics.revision import running
from recsys.events.control_records import REQUEST_MS, Control, ExperimentRequest, Experiments, ExperimentState
from recsys.events.records import CONTROL, pack, unpack
from recsys.log.protocol import Append
from tests.support.training.experiment_log import HOUR_MS, LABELS, ToyTrial
from training.outcomes.experiment_control import READOUT_EVERY_MS, ExperimentController
from training.outcomes.experiment_fold import ExperimentFold

TEXT = """
name: mine
metrics: {primary: [long_view], guardrails: {hide: 0.1}, find: 0.3}
traffic: 1.0
ramp: {steps: [0.2], hours: 2, users: 20}
arms: {control: {share: 0.5}, treatment: {share: 0.5, overrides: {explore: 0.2}}}
"""
PLAIN = "name: plain\nlayer: other\narms: {a: {share: 0.5}, b: {share: 0.5}}\n"


class Runs:
    """What the director does with ``ExperimentController``: fold, ask, append."""

    def __init__(self, toy: ToyTrial, files: dict[str, str] | None) -> None:
        self.toy, self._offset = toy, 0
        self.trials = ExperimentController(toy.log, toy.config, LABELS, files)

    def turn(self) -> list[Experiments]:
        found = []
        self._fold()
        while (said := self.trials.turn(self.toy.now_ms)) is not None:
            self.toy.log.append(CONTROL, [Append(0, b"", pack(said))])
            self.toy.take(said)
            found.append(said)
            self._fold()
            assert len(found) < 5
        return found

    def ask(self, **wish: Any) -> None:
        self.toy.log.append(CONTROL, [Append(0, b"", pack(ExperimentRequest(**wish)))])

    def _fold(self) -> None:
        for record in self.toy.log.read(CONTROL, 0, self._offset):
            self.trials.fold(record.offset, unpack(record.value, Control))  # type: ignore[arg-type]
            self._offset = record.offset + 1


@pytest.fixture
def toy() -> ToyTrial:
    return ToyTrial()


def started(toy: ToyTrial, text: str = TEXT) -> Runs:
    runs = Runs(toy, {"plain.yaml": PLAIN})
    runs.turn()
    runs.ask(what="start", text=text)
    assert len(runs.turn()) == 1
    return runs


def serve(toy: ToyTrial, users: int = 300, lists: int = 2) -> None:
    for _ in range(lists):
        for n in range(users):
            toy.serve(f"u{n}")
    toy.pass_time(0.1)


def test_files_are_told_once_and_wishes_answered_once(toy: ToyTrial) -> None:
    runs = started(toy)
    newest = runs.trials.newest
    assert (newest.revision, newest.answers) == (2, 1) and newest.states["mine"].traffic == 0.2
    again = Runs(toy, {"plain.yaml": PLAIN})
    assert again.turn() == runs.turn() == [] and again.trials.newest == newest
    names = {its.name for its in running(newest, toy.config.policy, LABELS)}
    assert names == {"mine", "plain"}


def test_a_wish_that_cannot_be_granted_is_answered_and_changes_nothing(toy: ToyTrial) -> None:
    runs = started(toy)
    before = runs.trials.newest
    runs.ask(what="start", text=TEXT)
    (said,) = runs.turn()
    assert "a name is used once" in said.refused and said.answers == 3
    assert (said.configs, said.states) == (before.configs, before.states)


def test_a_director_that_was_away_answers_what_was_asked_meanwhile(toy: ToyTrial) -> None:
    started(toy).ask(what="stop", name="mine", reason="enough")
    (said,) = Runs(toy, {"plain.yaml": PLAIN}).turn()
    assert said.states["mine"].state == "stopped" and said.states["mine"].why == "enough"


def test_a_request_that_nobody_waits_for_any_more_changes_nothing(toy: ToyTrial) -> None:
    runs = started(toy)
    runs.ask(what="stop", name="mine", time_ms=toy.now_ms - REQUEST_MS - 1)
    (said,) = runs.turn()
    assert "too late" in said.refused and said.states["mine"].state != "stopped"
    runs.ask(what="stop", name="mine", time_ms=toy.now_ms - REQUEST_MS)
    (said,) = runs.turn()
    assert not said.refused and said.states["mine"].state == "stopped" and runs.turn() == []


def test_it_grows_once_its_hours_are_over_and_enough_users_are_in_it(toy: ToyTrial) -> None:
    runs = started(toy)
    serve(toy)
    assert runs.turn() == []
    toy.pass_time(2)
    (said,) = runs.turn()
    assert said.states["mine"].traffic == 1.0 and said.states["mine"].step == 1


def test_it_does_not_grow_with_too_few(toy: ToyTrial) -> None:
    runs = started(toy)
    serve(toy, users=30)
    toy.pass_time(3)
    assert runs.turn() == []


def test_it_grows_by_all_who_are_in_it_where_a_few_are_kept(
    toy: ToyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.outcomes.experiment_control._MOST_USERS", 10)
    runs = started(toy)
    serve(toy)
    toy.pass_time(2)
    (said,) = runs.turn()
    assert said.states["mine"].traffic == 1.0


@pytest.mark.parametrize("harm", [True, False])
def test_a_guardrail_stops_it_and_only_harm_does(toy: ToyTrial, harm: bool) -> None:
    runs = started(toy, TEXT.replace("[0.2]", "[]"))
    toy.liked = {"treatment": (0.4, 0.3 if harm else 0.1)}
    serve(toy, users=800)
    toy.pass_time(0.1)
    assert runs.turn() == []  # there are more events than are read at once
    toy.now_ms += READOUT_EVERY_MS
    said = runs.turn()
    assert len(said) == int(harm)
    if harm:
        stand = said[0].states["mine"]
        assert stand.state == "stopped" and "hide of treatment" in stand.why
        assert Policies(toy.config.policy, running(said[0], toy.config.policy, LABELS)).resolve(
            "u1"
        ).arms.keys() == {"plain"}
        toy.pass_time(1)
        assert runs.turn() == []


def test_arms_that_are_given_wrongly_stop_it(toy: ToyTrial, caplog: Any) -> None:
    runs = started(toy)
    serve(toy, 20)
    wrong = {"control": "treatment", "treatment": "control", None: "control"}
    toy.serve("u1", {"mine": wrong[toy.arm("u1")]})
    toy.now_ms += READOUT_EVERY_MS
    (said,) = runs.turn()
    assert said.states["mine"].why.startswith("broken: ")
    assert (runs.trials.stopped_for("broken"), runs.trials.stopped_for("harm")) == (1, 0)
    (warned,) = [its for its in caplog.records if its.levelname == "WARNING"]
    assert warned.getMessage().startswith("experiment mine is stopped: broken: ")


def test_what_has_no_place_where_it_stands_is_left_alone(toy: ToyTrial) -> None:
    """As every file was before: nobody looks at it, nothing stops it."""
    runs = Runs(toy, {"plain.yaml": PLAIN})
    assert len(runs.turn()) == 1
    toy.serve("u1", {"plain": "a"})
    toy.serve("u1", {"plain": "b"})
    toy.pass_time(5)
    assert runs.turn() == [] and runs.trials.newest.states == {}


def test_a_file_with_a_start_waits_for_it(toy: ToyTrial) -> None:
    at_ms = toy.now_ms + 2 * HOUR_MS
    runs = Runs(toy, {"f.yaml": f"{TEXT}start: {at_ms}\nstop: {at_ms + 9 * HOUR_MS}\n"})
    (said,) = runs.turn()
    assert said.states["mine"].state == "waiting" and toy.arm("u1") is None
    toy.now_ms = at_ms
    (said,) = runs.turn()
    assert said.states["mine"].traffic == 0.2
    toy.now_ms = at_ms + 9 * HOUR_MS
    (said,) = runs.turn()
    assert said.states["mine"].why == "its time is over"


def test_files_that_no_longer_fit_leave_what_runs_as_it_is(toy: ToyTrial, caplog: Any) -> None:
    started(toy)
    runs = Runs(toy, {"plain.yaml": PLAIN, "next.yaml": TEXT.replace("mine", "twin")})
    assert runs.turn() == [] and "conflict with" in caplog.text
    with pytest.raises(ValueError, match=r"bad\.yaml:2"):
        Runs(toy, {"bad.yaml": "name: x\nnonsense: 1\n"})


BROKEN_TEXT = PLAIN.replace("plain", "typo").replace("other", "third") + "metric: longview\n"


def test_one_that_cannot_be_read_is_stopped_and_the_others_go_on(toy: ToyTrial) -> None:
    """As it was told by code that read it: the director goes on, and says why."""
    runs = started(toy)
    newest = runs.trials.newest
    bad = msgspec.structs.replace(
        newest,
        revision=newest.revision + 1,
        configs={**newest.configs, "typo.yaml": BROKEN_TEXT},
        states={**newest.states, "typo": ExperimentState(traffic=1.0, by_request=True)},
    )
    toy.log.append(CONTROL, [Append(0, b"", pack(bad))])
    serve(toy)
    toy.pass_time(2)
    said = runs.turn()[-1]
    assert said.states["typo"].state == "stopped"
    assert "broken: can't be read: typo.yaml:4: metric is 'longview'" in said.states["typo"].why
    assert said.states["mine"].traffic == 1.0  # its ramp went on
    toy.pass_time(1)
    runs.ask(what="start", text=PLAIN.replace("plain", "next").replace("other", "fourth"))
    (said,) = runs.turn()
    assert said.refused == "" and said.states["next"].state == "running"


def test_one_that_cannot_be_judged_is_stopped(toy: ToyTrial, monkeypatch: Any) -> None:
    runs = started(toy)

    def read(*_: Any) -> int:
        raise ValueError("sums don't fit")

    monkeypatch.setattr(ExperimentFold, "read", read)
    (said,) = runs.turn()
    assert said.states["mine"].why == "broken: can't be judged: sums don't fit"
    assert runs.turn() == []


def test_an_operator_waits_by_the_machines_time(toy: ToyTrial) -> None:
    """At a thousand times its pace, event time goes on by hours while somebody waits."""
    runs = started(toy)
    asked_ms = 1_700_000_000_000
    runs.ask(what="stop", name="mine", time_ms=asked_ms)
    runs._fold()
    late = runs.trials.turn(toy.now_ms, asked_ms + REQUEST_MS + 1)
    assert late is not None and "too late" in late.refused
    answer = runs.trials.turn(toy.now_ms + 1000 * REQUEST_MS, asked_ms + 1_000)
    assert answer is not None and answer.states["mine"].state == "stopped"
