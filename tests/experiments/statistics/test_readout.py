"""What is read off an experiment: metrics, guardrails, arms together, and the verdict with its reasons."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.assignment.definition import Arm, Experiment, read_experiment
from experiments.assignment.design import Metrics
from experiments.statistics.effect import Effect
from experiments.statistics.outcomes import DAY_MS, NOBODY, UserOutcomes
from experiments.statistics.readout import (
    BETTER,
    BROKEN,
    GUARDRAIL,
    HARM,
    MIXED,
    OPEN,
    SAFE,
    WORSE,
    MetricEffect,
    Readout,
    in_words,
    outcomes_for,
    readout,
)
from recsys.config.policy_config import PolicyConfig
from recsys.config.yaml_with_lines import YamlError

LABELS = ("long_view", "hide")
TWO = Experiment(
    "e",
    (Arm("control", 0.5), Arm("treatment", 0.5)),
    hypothesis="more is more",
    metrics=Metrics(("long_view",), {"hide": 0.3, "shown_per_user": 0.2}, find=0.1),
)


def filled(
    experiment: Experiment, rates: list[tuple[float, float]], users: int = 3_000, **more: Any
) -> UserOutcomes:
    """Users whose share of long views and hides is that of their arm. ``only``: users of each arm that are
    kept; ``fades``: the treatment's effect is of the first day alone."""
    its, draw = outcomes_for(experiment, LABELS, 10**6), np.random.default_rng(0)
    base = rates[0][0]
    for arm, (long, hide) in enumerate(rates):
        count = more.get("only", {}).get(arm, users)
        keys = np.arange(count) * len(rates) + arm
        none = np.full(count, NOBODY)
        old = np.arange(count) % 2 == 0
        before = np.column_stack([np.zeros(count), draw.binomial(5, base, count), np.full(count, 5)])
        its.add(keys[old], none[old], np.zeros(int(old.sum()), np.int64), before[old])
        its.expose(keys, np.full(count, arm), np.full(count, 1), np.arange(count) % 2)
        for day in range(3):
            share = base if more.get("fades") and day else long
            shown = 1.0 + draw.poisson(4, count)
            values = np.column_stack(
                [draw.binomial(shown.astype(int), hide), draw.binomial(shown.astype(int), share), shown]
            )
            its.add(keys, np.full(count, arm), np.full(count, 1 + day * DAY_MS), values)
    return its


def read(experiment: Experiment, outcomes: UserOutcomes, **more: Any) -> Readout:
    return readout(experiment, outcomes, LABELS, until_ms=3 * DAY_MS + 2, segments=("feed", "search"), **more)


def said(its: Readout) -> dict[str, str]:
    return {line.metric: line.finding for line in its.lines}


def test_arms_that_are_alike_are_open_and_safe() -> None:
    its = read(TWO, filled(TWO, [(0.4, 0.1), (0.4, 0.1)]))
    assert its.verdict == OPEN and its.hypothesis == "more is more"
    assert said(its) == {"long_view": OPEN, "hide": SAFE, "shown_per_user": SAFE}
    assert [arm.users for arm in its.arms] == [3_000, 3_000] and its.users == 6_000
    assert not its.sample_ratio.alarm


def test_a_better_arm_is_told_with_its_interval() -> None:
    its = read(TWO, filled(TWO, [(0.4, 0.1), (0.46, 0.1)]))
    line = its.lines[0]
    assert its.verdict == BETTER and line.finding == BETTER and line.p < 0.05
    assert line.effect.low < 0.15 < line.effect.high and "long_view of treatment" in its.why[0]


def test_a_worse_arm_is_told() -> None:
    assert read(TWO, filled(TWO, [(0.46, 0.1), (0.4, 0.1)])).verdict == WORSE


def test_better_and_worse_in_one_arm_are_mixed() -> None:
    both = replace(TWO, metrics=Metrics(("long_view", "hide"), find=0.1))
    its = read(both, filled(both, [(0.4, 0.1), (0.46, 0.2)]))
    assert said(its) == {"long_view": BETTER, "hide": WORSE} and its.verdict == MIXED
    assert "hide of treatment" in its.why[0] and "long_view of treatment" in its.why[1]


def test_an_arm_that_is_better_is_chosen_whole_and_what_is_worse_is_named() -> None:
    arms = (Arm("control", 0.4), Arm("good", 0.3), Arm("other", 0.3))
    both = replace(TWO, arms=arms, metrics=Metrics(("long_view", "hide"), find=0.1))
    only = {"only": {0: 4_000, 1: 3_000, 2: 3_000}}
    its = read(both, filled(both, [(0.4, 0.1), (0.46, 0.1), (0.4, 0.2)], **only))
    assert its.verdict == BETTER and "long_view of good" in its.why[0]
    assert any("hide of other" in why and why.endswith(WORSE) for why in its.why)
    its = read(both, filled(both, [(0.4, 0.1), (0.46, 0.2), (0.4, 0.2)], **only))
    assert its.verdict == MIXED and sum(why.endswith(WORSE) for why in its.why) == 2


def test_more_hides_are_worse_and_end_it_whatever_else_is_better() -> None:
    its = read(TWO, filled(TWO, [(0.4, 0.1), (0.46, 0.2)]))
    assert said(its)["hide"] == HARM and its.verdict == HARM and "hide" in its.why[0]
    fewer = read(TWO, filled(TWO, [(0.4, 0.2), (0.4, 0.1)]))
    assert said(fewer)["hide"] == SAFE


def test_a_loss_that_is_tolerated_is_no_harm() -> None:
    lenient = replace(TWO, metrics=replace(TWO.metrics, guardrails={"hide": 0.9}))
    its = read(lenient, filled(lenient, [(0.4, 0.1), (0.4, 0.13)]))
    assert its.lines[1].effect.low > 0 and its.lines[1].finding == SAFE and its.verdict == OPEN


def test_nothing_is_believed_of_arms_with_the_wrong_number_of_users() -> None:
    its = read(TWO, filled(TWO, [(0.4, 0.1), (0.5, 0.1)], only={1: 2_400}))
    assert its.sample_ratio.alarm and its.verdict == BROKEN and "expected 2,700" in its.why[0]


def test_nor_of_users_in_another_arm_than_theirs() -> None:
    outcomes = filled(TWO, [(0.4, 0.1), (0.5, 0.1)])
    assert read(TWO, outcomes, misassigned=3).verdict == BROKEN
    outcomes.expose(np.array([0]), np.array([1]), np.array([5]), np.array([0]))
    assert "more than one arm" in read(TWO, outcomes).why[0]
    assert read(TWO, outcomes, ratio_before=1e-9).sample_ratio.alarm  # an alarm stays


def test_more_arms_and_metrics_make_wider_intervals_and_greater_p_values() -> None:
    four = replace(TWO, arms=tuple(Arm(f"a{n}", 0.25) for n in range(4)))
    one = read(TWO, filled(TWO, [(0.4, 0.1), (0.43, 0.1)])).lines[0]
    of_three = read(four, filled(four, [(0.4, 0.1), (0.43, 0.1), (0.4, 0.1), (0.4, 0.1)])).lines[0]
    assert of_three.arm == "a1"
    assert of_three.effect.high - of_three.effect.low > 1.07 * (one.effect.high - one.effect.low)
    assert of_three.p > of_three.effect.p


def test_an_effect_of_novelty_shows_by_day() -> None:
    its = read(TWO, filled(TWO, [(0.4, 0.1), (0.5, 0.1)], fades=True))
    first, second, third = its.days
    assert first.part == "day 0" and first.effect.low > 0
    assert second.effect.low < 0 < second.effect.high and third.part == "day 2"


def test_days_and_segments_may_be_left_out_and_change_nothing_else() -> None:
    outcomes = filled(TWO, [(0.4, 0.1), (0.5, 0.1)])
    its, short = read(TWO, outcomes), read(TWO, outcomes, parts=False)
    assert its.days and its.segments and short == replace(its, days=(), segments=())


def test_segments_are_surfaces_and_who_is_new() -> None:
    its = read(TWO, filled(TWO, [(0.4, 0.1), (0.5, 0.1)]))
    assert [cell.part for cell in its.segments] == ["new", "returning", "feed", "search"]
    assert all(cell.effect.users == (1_500, 1_500) for cell in its.segments)


def test_a_metric_that_the_labels_lack_is_refused() -> None:
    with pytest.raises(ValueError, match="metric is 'long_view'"):
        outcomes_for(TWO, ("click",), 10)


def test_a_guardrail_is_told_with_what_is_tolerated() -> None:
    line = MetricEffect("likes", GUARDRAIL, "b", Effect(), 1.0, "open", tolerated=0.02)
    assert "tolerated 2%" in in_words(line)
    assert "tolerated" not in in_words(replace(line, role="primary"))


def test_fewer_of_a_label_that_the_app_calls_negative_are_better() -> None:
    labels = ("long_view", "refund")
    text = """
name: refunds
metrics: {primary: [refund], guardrails: {refund_per_user: 0.05}, find: 0.1}
arms: {control: {share: 0.5}, treatment: {share: 0.5}}
"""
    app = PolicyConfig(weights={"long_view": 1.0, "refund": -1.0})
    experiment = read_experiment(text, "f.yaml", app, labels)
    for rates, finding, verdict in (((0.1, 0.2), HARM, HARM), ((0.2, 0.1), SAFE, BETTER)):
        outcomes = outcomes_for(experiment, labels, 10**6)
        draw, users = np.random.default_rng(0), np.arange(6_000)
        arms = users % 2
        outcomes.expose(users, arms, np.full(6_000, 1), arms)
        values = np.column_stack([draw.binomial(5, np.array(rates)[arms]), np.full(6_000, 5)])
        outcomes.add(users, arms, np.full(6_000, 1), values)
        its = readout(experiment, outcomes, labels, until_ms=3 * DAY_MS)
        assert said(its)["refund_per_user"] == finding and its.verdict == verdict
    with pytest.raises(YamlError, match=r"f\.yaml:3: unknown key 'unwanted'"):
        read_experiment(text.replace("metrics", "unwanted: []\nmetrics"), "f.yaml", app, labels)


def test_a_label_that_the_app_calls_negative_earns_no_credit() -> None:
    text = "name: duel\nkind: interleaving\nmetric: refund\narms: {a: , b: }\n"
    labels, plain = ("long_view", "refund"), PolicyConfig()
    assert read_experiment(text, "f.yaml", plain, labels).credited == {"refund": 1.0}
    app = PolicyConfig(weights={"refund": -1.0})
    with pytest.raises(YamlError, match="credit is for 'refund', expected labels: long_view"):
        read_experiment(text, "f.yaml", app, labels)
    assert read_experiment(text, "f.yaml", app, labels, judged=False).interleaves  # of before
