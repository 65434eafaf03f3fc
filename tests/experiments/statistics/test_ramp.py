"""How an experiment begins, grows and ends, and what a revision says of who is given arms."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from experiments.assignment.definition import Arm, Experiment, read_experiment
from experiments.assignment.design import Metrics, Ramp, time_ms_of
from experiments.statistics.readout import BETTER, BROKEN, HARM, OPEN, WORSE
from experiments.statistics.revision import apply_request, begin, move, parse_each, running, stop, with_files
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config
from recsys.config.yaml_with_lines import YamlError
from recsys.events.control_records import ExperimentRequest, Experiments, ExperimentState
from tests.support.paths import ROOT

HOUR_MS = 3_600_000
GROWS = Experiment(
    "e",
    (Arm("a", 0.5), Arm("b", 0.5)),
    traffic=0.5,
    metrics=Metrics(("long_view",)),
    ramp=Ramp((0.01, 0.1), hours=2, users=50),
    start=1_000,
    stop=100 * HOUR_MS,
)
TEXT = """
name: mine
layer: mixing
traffic: 0.4
metrics: {primary: [long_view], guardrails: {hide: 0.1}}
ramp: {steps: [0.1], hours: 1}
arms:
  control: {share: 0.5}
  treatment: {share: 0.5, overrides: {diversity: 0.2}}
"""
PLAIN = "name: plain\narms: {a: {share: 0.5}, b: {share: 0.5, overrides: {explore: 0.2}}}\n"
LABELS = ("long_view", "hide")
POLICY, CONFIG = PolicyConfig(), Config()


def seen(verdict: str = OPEN, users: int = 100, counted: float = 1.0) -> Any:
    return SimpleNamespace(verdict=verdict, users=users, why=("because",), counted=counted)


def test_it_waits_for_its_start_then_grows_by_the_hours_and_ends() -> None:
    its = begin(GROWS, 0)
    assert (its.state, its.traffic, its.by_request) == ("waiting", 0.0, True)
    assert move(GROWS, its, 999, seen()) is its
    its = move(GROWS, its, 1_000, None)
    assert (its.state, its.traffic, its.started_ms) == ("running", 0.01, 1_000)
    at = 1_000
    for traffic in (0.1, 0.5):
        assert move(GROWS, its, at + 2 * HOUR_MS - 1, seen()) is its
        at += 2 * HOUR_MS
        its = move(GROWS, its, at, seen())
        assert (its.traffic, its.since_ms, its.started_ms) == (traffic, at, 1_000)
    assert move(GROWS, its, at + 9 * HOUR_MS, seen()) is its
    its = move(GROWS, its, 100 * HOUR_MS, seen())
    assert (its.state, its.traffic, its.why) == ("stopped", 0.0, "its time is over")
    assert move(GROWS, its, 200 * HOUR_MS, seen()) is its


@pytest.mark.parametrize("look", [None, seen(users=49)])
def test_it_does_not_grow_unseen_or_with_too_few(look: Any) -> None:
    its = begin(GROWS, 1_000)
    assert move(GROWS, its, 50 * HOUR_MS, look) is its


def test_users_who_are_in_it_count_though_a_share_of_them_is_counted() -> None:
    its = begin(GROWS, 1_000)
    assert move(GROWS, its, 50 * HOUR_MS, seen(users=12, counted=0.25)) is its
    assert move(GROWS, its, 50 * HOUR_MS, seen(users=13, counted=0.25)).traffic == 0.1


@pytest.mark.parametrize("verdict", [BROKEN, HARM])
def test_it_stops_by_itself_where_it_is_broken_or_does_harm(verdict: str) -> None:
    its = move(GROWS, begin(GROWS, 1_000), 2_000, seen(verdict))
    assert its.state == "stopped" and its.traffic == 0 and its.why == f"{verdict}: because"


@pytest.mark.parametrize("verdict", [OPEN, BETTER, WORSE])
def test_people_decide_on_what_is_no_guardrail(verdict: str) -> None:
    its = begin(GROWS, 1_000)
    assert move(GROWS, its, 2_000, seen(verdict)) is its


def test_at_once_leaves_the_ramp_out() -> None:
    its = begin(GROWS, 1_000, at_once=True)
    assert its.traffic == 0.5 and move(GROWS, its, 90 * HOUR_MS, seen()) is its


def test_whoever_was_in_stays_in_as_it_grows() -> None:
    from experiments.assignment.policy import assign

    users = [f"u{n}" for n in range(3_000)]
    told = revision_of({"m.yaml": TEXT}, {"mine": ExperimentState(traffic=0.1)})
    (small,) = running(told, POLICY, LABELS)
    (large,) = running(revision_of(told.configs, {"mine": ExperimentState(traffic=0.4)}), POLICY, LABELS)
    inside = [user for user in users if assign(user, small)]
    assert 200 < len(inside) < 400
    assert all(assign(user, small) == assign(user, large) for user in inside)


def test_a_revision_without_stands_is_as_ever() -> None:
    old = msgspec.msgpack.encode(
        {"type": "experiments", "revision": 3, "configs": {"p.yaml": PLAIN}, "time_ms": 5}
    )
    said = msgspec.msgpack.decode(old, type=Experiments)
    assert said.states == {} and said.answers == -1
    assert [its.traffic for its in running(said, POLICY, LABELS)] == [1.0]


def revision_of(configs: dict | None = None, states: dict | None = None) -> Experiments:
    return Experiments(revision=0, configs=configs or {}, states=states or {})


def start(text: str = TEXT, **more: Any) -> ExperimentRequest:
    return ExperimentRequest(what="start", text=text, **more)


def test_a_wish_starts_and_another_stops() -> None:
    plain = revision_of({"plain.yaml": PLAIN})
    told = apply_request(plain, start(), CONFIG, LABELS, 7)
    assert told.states["mine"] == ExperimentState(traffic=0.1, since_ms=7, started_ms=7, by_request=True)
    assert [its.name for its in running(told, POLICY, LABELS)] == ["mine", "plain"]
    for name in ("mine", "plain"):
        told = apply_request(told, ExperimentRequest(what="stop", name=name, reason="r"), CONFIG, LABELS, 9)
        assert told.states[name].why == "r"
    assert running(told, POLICY, LABELS) == () and len(told.configs) == 2


def test_who_is_stopped_is_in_nobodys_way() -> None:
    told = apply_request(revision_of(), start(PLAIN), CONFIG, LABELS, 7)
    other = PLAIN.replace("plain", "next")
    with pytest.raises(YamlError, match="shares users"):
        apply_request(told, start(other), CONFIG, LABELS, 8)
    stopped = apply_request(told, ExperimentRequest(what="stop", name="plain"), CONFIG, LABELS, 8)
    again = apply_request(stopped, start(other), CONFIG, LABELS, 9)
    assert [its.name for its in running(again, POLICY, LABELS)] == ["next"]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (start(PLAIN), "a name is used once"),
        (start(TEXT.replace("[long_view]", "[likes]"), name="f.yaml"), r"f\.yaml:5: metric is"),
        (start(TEXT + "stop: 2020-01-01\n"), "its time is over"),
        (start("name: x"), "'arms' is required"),
        (ExperimentRequest(what="stop", name="nobody"), "no experiment 'nobody'; there are plain"),
        (ExperimentRequest(what="pause", name="plain"), "expected 'start' or 'stop'"),
    ],
)
def test_wishes_that_cannot_be_granted_say_why(wish: ExperimentRequest, says: str) -> None:
    now_ms = time_ms_of("2026-11-30")
    with pytest.raises(ValueError, match=says):
        apply_request(revision_of({"plain.yaml": PLAIN}), wish, CONFIG, LABELS, now_ms)


def test_an_arm_that_doesnt_fit_a_surface_isnt_started_and_no_file_brings_it() -> None:
    config = Config(surfaces={"home": {"fixed": {0: "v7"}}})
    text = PLAIN.replace("explore: 0.2", "fixed.1: v7")
    told = apply_request(revision_of(), start(text), CONFIG, LABELS, 7)
    for refused in (
        lambda: apply_request(revision_of(), start(text), config, LABELS, 7),
        lambda: with_files(revision_of(), {"plain.yaml": text}, config, LABELS, 7),
    ):
        with pytest.raises(ValueError, match="plain: arm b on the surface 'home': "):
            refused()
    its = apply_request(told, ExperimentRequest(what="stop", name="plain"), config, LABELS, 8)
    assert with_files(its, {}, config, LABELS, 9) == its


def test_who_is_stopped_cannot_be_stopped_again() -> None:
    its = stop(ExperimentState(traffic=0.3), 5, "enough")
    told = revision_of({"plain.yaml": PLAIN}, {"plain": its})
    with pytest.raises(ValueError, match="stopped already: enough"):
        apply_request(told, ExperimentRequest(what="stop", name="plain"), CONFIG, LABELS, 6)


def test_files_come_and_go_and_what_was_started_stays() -> None:
    told = apply_request(revision_of(), start(), CONFIG, LABELS, 7)
    with_plain = with_files(told, {"plain.yaml": PLAIN}, CONFIG, LABELS, 8)
    assert set(with_plain.configs) == {"plain.yaml", "mine.yaml"}
    assert set(with_plain.states) == {"mine"}
    assert with_files(with_plain, {}, CONFIG, LABELS, 9) == told
    ramped = with_files(revision_of(), {"m.yaml": TEXT}, CONFIG, LABELS, 9)
    assert ramped.states["mine"] == ExperimentState(traffic=0.1, since_ms=9, started_ms=9)
    without = with_files(ramped, {}, CONFIG, LABELS, 10)
    with pytest.raises(ValueError, match="a name is used once"):
        apply_request(without, start(), CONFIG, LABELS, 11)
    assert with_files(ramped, {"m.yaml": TEXT}, CONFIG, LABELS, 99) == ramped


def test_a_changed_file_gives_a_running_experiment_its_traffic() -> None:
    ramped = with_files(revision_of(), {"m.yaml": TEXT}, CONFIG, LABELS, 9)
    grown = {"mine": ExperimentState(traffic=0.4, step=1, since_ms=20, started_ms=9)}
    less = TEXT.replace("traffic: 0.4", "traffic: 0.3\noffset: 0.65")
    changed = with_files(revision_of(ramped.configs, grown), {"m.yaml": less}, CONFIG, LABELS, 30)
    (its,) = running(changed, POLICY, LABELS)
    assert (its.traffic, its.offset) == (0.3, 0.65)
    without_ramp = TEXT.replace("ramp: {steps: [0.1], hours: 1}\n", "")
    changed = with_files(ramped, {"m.yaml": without_ramp}, CONFIG, LABELS, 30)
    assert changed.states["mine"] == ExperimentState(traffic=0.4, since_ms=9, started_ms=9)
    longer = TEXT.replace("[0.1]", "[0.1, 0.2]")  # whose ramp is over stays in whole
    changed = with_files(revision_of(ramped.configs, grown), {"m.yaml": longer}, CONFIG, LABELS, 30)
    assert (changed.states["mine"].traffic, changed.states["mine"].step) == (0.4, 2)
    stopped = revision_of(ramped.configs, {"mine": ExperimentState(state="stopped")})
    assert with_files(stopped, {"m.yaml": less}, CONFIG, LABELS, 30).states == stopped.states


def test_changed_arms_end_an_experiment_of_a_file_once_it_has_begun() -> None:
    """Its users have seen other arms: what both did would be added up as if they were one."""
    for text, old, new in ((TEXT, "0.2}}", "0.3}}"), (PLAIN, "0.2}}", "0.3}}"), (TEXT, "treatment", "other")):
        begun = with_files(revision_of(), {"m.yaml": text}, CONFIG, LABELS, 9)
        changed = with_files(begun, {"m.yaml": text.replace(old, new)}, CONFIG, LABELS, 30)
        (state,) = changed.states.values()
        assert (state.state, state.traffic, state.since_ms) == ("stopped", 0.0, 30)
        assert state.why == "broken: its arms have changed since it began: give it another name"
        assert with_files(changed, changed.configs, CONFIG, LABELS, 40) == changed
    later = TEXT + "start: 2026-11-30\n"
    waits = with_files(revision_of(), {"m.yaml": later}, CONFIG, LABELS, 9)
    other = {"m.yaml": later.replace("treatment", "other")}
    assert with_files(waits, other, CONFIG, LABELS, 30).states == waits.states
    assert with_files(waits, {}, CONFIG, LABELS, 30).states == {}  # no user has seen it


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[0.1]", "[0.3, 0.2]", r"f\.yaml:6: steps is \[0\.3, 0\.2\]"),
        ("[0.1]", "[0.5]", r"f\.yaml:6: ramp is \[0\.5\], expected steps below the traffic, 0\.4"),
        ("hours: 1", "hours: 0", r"f\.yaml:6: hours is 0"),
        ("hide: 0.1", "hide: 1.5", r"f\.yaml:5: guardrails\.hide is 1\.5"),
        (
            "metrics: {primary: [long_view], guardrails: {hide: 0.1}}",
            "metric: longview",
            r"f\.yaml:5: metric is 'longview'",
        ),
        ("hide: 0.1", "hid: 0.1", r"f\.yaml:5: metric is 'hid'"),
        ("primary", "main", r"f\.yaml:5: unknown key 'main'"),
        ("layer: mixing", "metric: long_view", r"f\.yaml:3: metric and metrics are both there"),
        ("layer: mixing", "start: soon", r"f\.yaml:3: start: time is 'soon'"),
        ("layer: mixing", "unit: session", r"f\.yaml:3: unit is 'session'"),
    ],
)
def test_a_mistake_is_told_with_its_line(old: str, new: str, says: str) -> None:
    with pytest.raises(YamlError, match=says):
        read_experiment(TEXT.replace(old, new), "f.yaml", POLICY, LABELS)


@pytest.mark.parametrize(
    ("line", "at"), [("metrics: {guardrails: {hide: 0.1}}", 5), ("metrics: {find: 0.1}", 5), ("", 1)]
)
def test_a_metric_that_stands_for_none_is_checked_too(line: str, at: int) -> None:
    """A schema may have no long_view, which is what decides where nothing else is named."""
    text = TEXT.replace("metrics: {primary: [long_view], guardrails: {hide: 0.1}}", line)
    with pytest.raises(YamlError, match=rf"f\.yaml:{at}: metric is 'long_view'"):
        read_experiment(text, "f.yaml", POLICY, ("hide",))
    assert read_experiment(text, "f.yaml", POLICY, ("hide",), judged=False).name == "mine"


def test_arms_are_given_and_taken_by_texts_that_cannot_be_judged() -> None:
    """A revision of before names were checked: replicas and past answers go on by it, `stop` ends it, and
    what is stopped is in nobody's way, whatever it says."""
    typo = PLAIN + "metric: longview\n"
    old = revision_of(
        {"plain.yaml": typo, "gone.yaml": "name: gone\narms: 7\n"},
        {"plain": ExperimentState(traffic=0.3), "gone": ExperimentState(state="stopped")},
    )
    assert [its.traffic for its in running(old, POLICY, LABELS)] == [0.3]
    found, unread = parse_each(old, POLICY, LABELS)
    assert found == [] and set(unread) == {"plain", "gone"}
    assert parse_each(old, POLICY, LABELS, stopped=False)[1].keys() == {"plain"}
    told = apply_request(old, ExperimentRequest(what="stop", name="plain"), CONFIG, LABELS, 9)
    assert told.states["plain"].state == "stopped" and running(told, POLICY, LABELS) == ()
    assert "mine" in apply_request(told, start(), CONFIG, LABELS, 10).states
    assert with_files(told, {}, CONFIG, LABELS, 11).states == told.states


def test_no_wish_overwrites_the_file_of_another() -> None:
    told = revision_of({"mine.yaml": PLAIN})
    with pytest.raises(ValueError, match=r"'mine\.yaml' is held by the experiment 'plain'"):
        apply_request(told, start(), CONFIG, LABELS, 7)


def test_a_name_stands_in_one_file_also_once_it_is_stopped() -> None:
    told = revision_of(states={"plain": ExperimentState(state="stopped")})
    with pytest.raises(ValueError, match="'plain' is there twice"):
        with_files(told, {"a.yaml": PLAIN, "b.yaml": PLAIN}, CONFIG, LABELS, 7)


def test_times_are_read_as_people_write_them() -> None:
    text = TEXT + "start: 2026-11-30T08:00:00+01:00\nstop: 2026-12-01\n"
    its = read_experiment(text, "f.yaml", POLICY, LABELS)
    assert its.start == 1_796_022_000_000 and its.stop == its.start + 17 * HOUR_MS
    assert its.primary == ("long_view",) and replace(its, metrics=Metrics()).primary == ("long_view",)
    assert time_ms_of("2026-11-30T07:00Z") == time_ms_of(1_796_022_000_000) == its.start
    with pytest.raises(ValueError, match="time is -1"):
        time_ms_of(-1)


def test_the_example_of_the_page_is_read() -> None:
    page = (ROOT / "docs" / "explanation" / "experiments.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    its = read_experiment(text, "page", POLICY, (*LABELS, "like"))
    assert its.primary == ("long_view", "shown_per_user") and its.ramp.steps == (0.01, 0.1)
