"""Outcomes of an experiment from a log of events and joined examples, against what was served and done."""

from dataclasses import replace
from typing import Any

import pytest

from experiments.assignment.definition import read_experiment
from experiments.assignment.design import metric_of
from experiments.statistics.readout import BROKEN
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import JoinConfig
from recsys.events.control_records import Experiments, ExperimentState
from recsys.events.event_types import Engagement, encode
from recsys.events.records import EVENTS, EXAMPLES
from recsys.log.protocol import Append
from runtime.reports.experiment_summary import notes_of
from tests.support.training.experiment_log import BEGAN_MS, HOUR_MS, ITEMS, LABELS, ToyTrial, of_clicks
from training.outcomes.experiment_fold import MOST_SURFACES, OTHER_SURFACES, ExperimentFold

TEXT = """
name: mine
metrics: {primary: [long_view], guardrails: {hide: 0.1, watch_s_per_user: 0.5}, find: 0.2}
traffic: 0.8
arms: {control: {share: 0.5}, treatment: {share: 0.5, overrides: {explore: 0.2}}}
"""
MINE = read_experiment(TEXT, "mine.yaml", PolicyConfig(), LABELS)
SAID = Experiments(revision=1, configs={"mine.yaml": TEXT})
LONG, HIDE, WATCH = (metric_of(n, LABELS) for n in ("long_view", "hide", "watch_s_per_user"))


def fold(toy: ToyTrial) -> ExperimentFold:
    its = ExperimentFold(toy.log, toy.config, LABELS, MINE, BEGAN_MS)
    while its.read():
        pass
    return its


@pytest.fixture
def toy() -> ToyTrial:
    return ToyTrial()


def served(toy: ToyTrial, users: int = 60, lists: int = 2) -> None:
    toy.take(SAID)
    for _ in range(lists):
        for n in range(users):
            toy.serve(f"u{n}")


def test_all_that_was_shown_to_each_arm_is_counted_once_its_window_is_over(toy: ToyTrial) -> None:
    served(toy)
    early = fold(toy)
    assert early.waiting > 0
    toy.pass_time(1)
    its = fold(toy)
    inside = sum(its.outcomes.counts())
    assert 35 < inside < 60  # traffic 0.8
    assert its.outcomes.shown(0) + its.outcomes.shown(1) == 2 * ITEMS * inside
    assert its.misassigned == its.outcomes.crossed == its.outcomes.outside == 0
    assert its.surfaces == ["feed"] and its.complete
    assert early.outcomes.shown(0) < its.outcomes.shown(0)


@pytest.mark.parametrize("surfaces", [MOST_SURFACES, MOST_SURFACES + 3])
def test_surfaces_beyond_the_limit_share_one_segment(toy: ToyTrial, surfaces: int) -> None:
    toy.take(SAID)
    for n in range(30 * surfaces):
        toy.serve(f"u{n}", surface=f"s{n % surfaces}")
    toy.pass_time(1)
    its = fold(toy)
    seen = its.readout()
    pooled = surfaces - MOST_SURFACES
    assert len(its.surfaces) == MOST_SURFACES and its.pooled_surfaces == pooled
    segments = [cell for cell in seen.segments if cell.part not in ("new", "returning")]
    assert [cell.part for cell in segments] == its.surfaces + [OTHER_SURFACES] * (pooled > 0)
    users = sum(sum(cell.effect.users) for cell in segments)
    assert users == sum(its.outcomes.counts())  # nobody is missing from the table
    notes = [note for note in notes_of(its, seen) if OTHER_SURFACES in note]
    assert [note.split()[0] for note in notes] == [str(pooled)] * (pooled > 0)


def test_a_fold_that_reads_on_ends_where_one_that_reads_all_does(toy: ToyTrial) -> None:
    its = ExperimentFold(toy.log, toy.config, LABELS, MINE, BEGAN_MS)
    for _ in range(3):
        served(toy, 30, 1)
        its.read(1)
    toy.pass_time(1)
    while its.read():
        pass
    assert its.readout() == fold(toy).readout()


def test_small_turns_lose_nothing_that_was_shown(toy: ToyTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are many events for each example, and as many records of both are read in a turn."""
    served(toy, 60, 1)
    toy.pass_time(1)
    served(toy, 60, 1)
    toy.pass_time(1)
    whole = fold(toy)
    monkeypatch.setattr("training.outcomes.experiment_fold._READ", 10)
    its = ExperimentFold(toy.log, toy.config, LABELS, MINE, BEGAN_MS)
    assert its.read(1) > 0 and its.waiting == 0
    while its.read(1):
        pass
    seen = replace(its.readout(), sample_ratio=whole.readout().sample_ratio)  # of all looks so far
    assert its.outcomes.outside == 0 and seen == whole.readout()
    assert whole.outcomes.shown(0) > 0


def test_what_is_shown_waits_for_exposures_that_come_while_it_is_read(toy: ToyTrial) -> None:
    """An example may be read whose list was served after the events were."""
    its = ExperimentFold(toy.log, toy.config, LABELS, MINE, BEGAN_MS)
    poll, late = its._poll, []

    def and_then_serve(topic: str) -> Any:
        if topic == EXAMPLES and not late:
            served(toy, 60, 1)
            late.append(toy.pass_time(1))
        return poll(topic)

    its._poll = and_then_serve  # type: ignore[method-assign]
    while its.read():
        pass
    assert late and its.outcomes.outside == 0 and its.readout() == fold(toy).readout()


def test_labels_and_watch_time_are_those_of_the_log(toy: ToyTrial) -> None:
    toy.liked = {"control": (1.0, 0.0), "treatment": (0.0, 1.0)}
    served(toy)
    toy.pass_time(1)
    its = fold(toy).outcomes
    assert (its.users(LONG, 0).ratio, its.users(LONG, 1).ratio) == (1.0, 0.0)
    assert (its.users(HIDE, 0).ratio, its.users(HIDE, 1).ratio) == (0.0, 1.0)
    assert its.users(WATCH, 0).ratio == its.users(WATCH, 1).ratio == 2 * ITEMS * 2.0


def test_what_comes_later_is_corrected(toy: ToyTrial) -> None:
    toy.liked = {"control": (0.0, 0.0), "treatment": (0.0, 0.0)}
    toy.take(SAID)
    requests = [(f"u{n}", toy.serve(f"u{n}")) for n in range(20)]
    toy.pass_time(0.2)
    for user, request in requests:
        toy.engage(user, request, 0, "long_view")
    toy.pass_time(0.2)
    its = fold(toy).outcomes
    assert its.users(LONG, 0).ratio == pytest.approx(1 / ITEMS)
    assert its.shown(0) == ITEMS * its.counts()[0]


def test_what_was_before_the_arm_is_a_covariate(toy: ToyTrial) -> None:
    for n in range(40):
        toy.serve(f"u{n}")
    served(toy, 40, 1)
    toy.pass_time(1)
    its = fold(toy).outcomes
    covariates_UK = its.users(LONG, 0).covariates_UK
    assert (covariates_UK[:, 1] == ITEMS).all() and (covariates_UK[:, 2] == 1).all()
    assert 0 < covariates_UK[:, 0].mean() < ITEMS and len(its) == sum(its.counts())


def test_a_list_that_was_made_of_a_click_was_shown_to_nobody(toy: ToyTrial) -> None:
    served(toy, 40, 1)
    toy.pass_time(1)
    before = fold(toy).readout()
    toy.log.append(EXAMPLES, of_clicks(toy.log))
    read = fold(toy)
    assert read.outcomes.outside == 0 and read.readout() == before


def test_the_exposed_count_who_looked_at_nothing(toy: ToyTrial) -> None:
    toy.take(SAID)
    for n in range(40):
        toy.serve(f"u{n}", watch=False)
    toy.pass_time(1)
    its = fold(toy).outcomes
    assert sum(its.counts()) > 20 and its.shown(0) == its.shown(1) == 0


def test_an_arm_that_the_hash_does_not_give_breaks_it(toy: ToyTrial) -> None:
    served(toy, 40, 1)
    arms = {f"u{n}": toy.arm(f"u{n}") for n in range(40)}
    one = next(user for user, arm in arms.items() if arm == "control")
    toy.serve(one, {"mine": "treatment"})
    toy.serve("never_in", {"mine": "control"})
    its = fold(toy)
    expected = 1 + (toy.arm("never_in") != "control")
    assert its.misassigned == expected
    seen = its.readout()
    assert seen.verdict == BROKEN and seen.crossed == 1 and seen.misassigned == expected


def test_an_arm_that_was_renamed_breaks_it_and_is_no_past(toy: ToyTrial) -> None:
    """As a covariate, what only its users have done before would look like an effect."""
    served(toy, 40, 2)
    renamed = TEXT.replace("treatment", "bolder")
    toy.take(Experiments(revision=2, configs={"mine.yaml": renamed}))
    for n in range(40):
        toy.serve(f"u{n}")
    toy.pass_time(1)
    experiment = read_experiment(renamed, "mine.yaml", PolicyConfig(), LABELS)
    renewed = ExperimentFold(toy.log, toy.config, LABELS, experiment, BEGAN_MS)
    while renewed.read():
        pass
    users = renewed.outcomes.counts()[1]
    assert renewed.misassigned == users > 10 and renewed.readout().verdict == BROKEN
    assert renewed.outcomes.outside == 2 * ITEMS * users
    assert not renewed.outcomes.users(LONG, 1).covariates_UK.any()


def test_a_ramp_that_grows_moves_nobody(toy: ToyTrial) -> None:
    for traffic in (0.1, 0.4, 0.8):
        toy.take(
            Experiments(revision=1, configs=SAID.configs, states={"mine": ExperimentState(traffic=traffic)})
        )
        for n in range(60):
            toy.serve(f"u{n}")
    toy.pass_time(1)
    its = fold(toy)
    assert its.misassigned == its.outcomes.crossed == 0 and sum(its.outcomes.counts()) > 35


def test_what_is_shown_after_it_stopped_counts_for_no_arm(toy: ToyTrial) -> None:
    served(toy, 40, 1)
    toy.take(Experiments(revision=2, states={}, configs={}))
    for n in range(40):
        toy.serve(f"u{n}")
    toy.pass_time(1)
    its = fold(toy).outcomes
    assert its.shown(0) + its.shown(1) == ITEMS * sum(its.counts())
    assert its.outside == ITEMS * sum(its.counts())


@pytest.mark.parametrize("late", [False, True])
def test_negatives_that_are_left_out_are_stood_for(late: bool) -> None:
    """With a half of the negatives kept, rates are those of all that was shown, within what chance gives;
    ``late``: the long views come after the examples, as corrections or as what was left out."""
    toy = ToyTrial(JoinConfig(negatives=0.5))
    toy.liked = {"control": (0.0, 0.0), "treatment": (0.0, 0.0)} if late else {}
    toy.take(SAID)
    requests = [(f"u{n % 200}", toy.serve(f"u{n % 200}")) for n in range(1_000)]
    if late:
        toy.pass_time(0.1)
        for user, request in requests:
            toy.engage(user, request, 1, "long_view")
    toy.pass_time(0.5)
    its = fold(toy).outcomes
    lists = 5 * sum(its.counts())
    shown = its.shown(0) + its.shown(1)
    assert shown == pytest.approx(ITEMS * lists, rel=0.06)
    watched_s = sum(its.users(WATCH, arm).numerators_U.sum() for arm in (0, 1))
    assert watched_s == pytest.approx(2.0 * ITEMS * lists, rel=0.04)
    long = sum(its.users(LONG, arm).numerators_U.sum() for arm in (0, 1))
    expected = lists if late else 0.4 * ITEMS * lists
    assert long == pytest.approx(expected, rel=1e-9 if late else 0.06)


def test_what_cannot_be_read_is_counted_and_passed_over(toy: ToyTrial) -> None:
    served(toy, 40, 1)
    for topic in (EVENTS, EXAMPLES):
        toy.log.append(topic, [Append(0, b"", b"\xff"), Append(1, b"", b"")])
    served(toy, 40, 1)
    toy.pass_time(1)
    its = fold(toy)
    assert its.unreadable == 2 and its.outcomes.shown(0) == 2 * ITEMS * its.outcomes.counts()[0]


def test_a_log_that_has_lost_its_beginning_says_so(toy: ToyTrial) -> None:
    served(toy, 40, 2)
    toy.pass_time(1)
    toy.log.trim(EVENTS, 0, 40)
    toy.log.trim(EXAMPLES, 0, 40)
    its = fold(toy)
    assert not its.complete and sum(its.outcomes.counts()) > 0
    waits = ExperimentFold(toy.log, toy.config, LABELS, MINE, 0)
    assert waits.complete  # what hasn't begun has lost nothing


def test_retention_that_overtakes_a_fold_is_told(toy: ToyTrial) -> None:
    its = ExperimentFold(toy.log, toy.config, LABELS, MINE, BEGAN_MS)
    served(toy, 40, 2)
    toy.log.trim(EVENTS, 0, 50)
    assert its.complete and its.read() and not its.complete


def test_a_past_that_is_imported_while_it_runs_hides_nobody(toy: ToyTrial) -> None:
    """Feedback of 40 days ago, sent in one go: who was exposed before it is still found."""
    toy.pass_time(24)
    began_ms = toy.now_ms
    served(toy, 200, 1)
    past = began_ms - 40 * 24 * HOUR_MS
    likes = [
        Engagement(time_ms=past + n, request_id="", user_id="u1", item_id="v1", kind="like")
        for n in range(4_000)
    ]
    toy.log.append(EVENTS, [Append(n % 2, b"", encode(its)) for n, its in enumerate(likes)])
    for n in range(200, 400):
        toy.serve(f"u{n}")
    its = ExperimentFold(toy.log, toy.config, LABELS, MINE, began_ms)
    while its.read():
        pass
    assert sum(its.outcomes.counts()) == sum(toy.arm(f"u{n}") is not None for n in range(400))
    assert its.complete


def test_times_before_it_began_are_left_where_they_are(toy: ToyTrial) -> None:
    """Only a week before is read."""
    served(toy, 20, 1)
    toy.pass_time(24 * 9)
    later: Any = ExperimentFold(toy.log, toy.config, LABELS, MINE, BEGAN_MS + 10 * 24 * HOUR_MS)
    while later.read():
        pass
    assert len(later.outcomes) == 0
