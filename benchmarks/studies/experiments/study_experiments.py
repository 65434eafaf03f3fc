"""`recsys study experiments`: whether experiments keep what they promise (docs/explanation/experiments.md).

Simulated, by the functions that reports are made of: how often an A/A test looked at after every batch finds
something, how often intervals hold, whether +2 % is found as often as ``power`` said, whether assignment is
uniform and layers independent, and how soon a leak of one percent raises the sample-ratio alarm.
"""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import numpy as np
import typer
from scipy.stats import chi2_contingency, chisquare

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.experiments.trial_world import Trial, simulate
from experiments.assignment.assignment import assign
from experiments.assignment.definition import Arm, Experiment
from experiments.assignment.metric import SHOWN
from experiments.statistics.effect import Effect, effect, eta_of
from experiments.statistics.outcomes import UserOutcomes
from experiments.statistics.power import SequentialPower, covariance
from experiments.statistics.sample_ratio import sample_ratio

ALPHA: Final = 0.05
AA_USERS, AA_LOOKS, AA_FIND = 2_000, 28, 0.06
LIFT, LIFT_LOOKS = 0.02, 14
_PILOT_USERS: Final = 20_000
DAY_USERS: Final = 1_000_000
LEAK: Final = 0.01
KEPT: Final = 100_000  # users of whom the director keeps what they did
CLEAN_DAYS: Final = 1_000
_MINUTES: Final = 1_440
_LEAK_RUNS: Final = 200
_PILOT_SEED, _LIFT_SEED = 7_000_000, 1_000_000  # other draws than those of the A/A runs
_WORLDS: Final = (
    ("come again", {"again": True}),
    ("come again, with a past (CUPED)", {"again": True, "before": 5.0}),
    ("come once", {"again": False}),
)


def looked_at(trial: Trial, find: float, covariates: bool = False) -> list[Effect]:
    """The effect after every batch."""
    eta = eta_of(find, ALPHA)
    looks = range(len(trial.numerators_TU))
    return [
        effect(trial.at(k, True, covariates), trial.at(k, False, covariates), ALPHA, eta)
        for k in looks
    ]


def peeked(looks: list[Effect]) -> bool:
    """Whether a test of fixed size at 5 %, looked at as often, ever finds something."""
    return any(abs(np.log1p(its.relative)) > 1.96 * its.error for its in looks)


def measure_aa(runs: int) -> dict[str, Any]:
    """Experiments without an effect, by what their users are like."""
    found = {}
    for name, world in _WORLDS:
        ever, covered, naive, saved = 0, 0, 0, 0.0
        for seed in range(runs):
            trial = simulate(np.random.default_rng(seed), AA_USERS, AA_LOOKS, **world)
            looks = looked_at(trial, AA_FIND, covariates="before" in world)
            ever += any(its.excludes_zero for its in looks)
            covered += sum(its.low <= 0 <= its.high for its in looks)
            naive += peeked(looks)
            saved += looks[-1].saved / runs
        found[name] = {
            "ever_significant": ever / runs,
            "coverage_of_a_look": covered / (runs * AA_LOOKS),
            "coverage_at_all_looks": 1 - ever / runs,
            "fixed_size_test_ever_significant": naive / runs,
            "variance_saved": saved,
        }
    return {"runs": runs, "users": AA_USERS, "looks": AA_LOOKS, "worlds": found}


def measure_lift(runs: int) -> dict[str, Any]:
    """+2 %, with the users that ``power`` asks for by a pilot of others without an effect."""
    pilot = simulate(np.random.default_rng(_PILOT_SEED), _PILOT_USERS, LIFT_LOOKS)
    seen = covariance(pilot.numerators_TU.T, pilot.denominators_TU.T)
    looks = SequentialPower(seen, ALPHA, eta_of(LIFT, ALPHA))
    users = looks.users_needed((0.5, 0.5), LIFT, 0.8)
    promised = looks.power((users / 2, users / 2), LIFT)
    found, held, held_at = np.zeros(LIFT_LOOKS), 0, 0
    for seed in range(runs):
        draw = np.random.default_rng(_LIFT_SEED + seed)
        its = looked_at(simulate(draw, users, LIFT_LOOKS, LIFT), LIFT)
        found += np.maximum.accumulate([one.low > 0 for one in its])
        inside = [one.low <= LIFT <= one.high for one in its]
        held, held_at = held + all(inside), held_at + sum(inside)
    return {
        "runs": runs,
        "users": users,
        "looks": LIFT_LOOKS,
        "promised": [round(float(p), 4) for p in promised],
        "found": [round(float(f) / runs, 4) for f in found],
        "coverage_at_all_looks": held / runs,
        "coverage_of_a_look": held_at / (runs * LIFT_LOOKS),
    }


def measure_assignment(users: int) -> dict[str, Any]:
    """The arms of so many users in two experiments of two layers, by ``assign`` itself."""
    one = _four("one", "ranking", (0.4, 0.3, 0.2, 0.1), 0.8)
    other = _four("other", "mixing", (0.25, 0.25, 0.25, 0.25), 0.5)
    places = {arm.name: number for number, arm in enumerate(one.arms)}
    table = np.zeros((5, 5), np.int64)  # arms of either, and nobody's
    for user in range(users):
        a, b = assign(user, one), assign(user, other)
        table[places[a.name] if a else 4, places[b.name] if b else 4] += 1
    return {
        "users": users,
        "uniform_p": [
            float(chisquare(table.sum(axis), _expected(its, users)).pvalue)
            for axis, its in ((1, one), (0, other))
        ],
        "independent_p": float(chi2_contingency(table).pvalue),
    }


def _four(name: str, layer: str, shares: tuple[float, ...], traffic: float) -> Experiment:
    arms = tuple(Arm(f"arm_{number}", share) for number, share in enumerate(shares))
    return Experiment(name, arms, layer=layer, traffic=traffic)


def _expected(its: Experiment, users: int) -> list[float]:
    inside = [users * its.traffic * arm.share for arm in its.arms]
    return [*inside, users * (1 - its.traffic)]


def measure_leak(runs: int) -> dict[str, Any]:
    """Days of a million new users, looked at each minute: without a leak, with 1 % of the treatment's users
    moved to the control, and with as many lost from the log. ``through_outcomes``: the first of the second
    kind again, counted by what the director counts with, which keeps of a share of them what they did."""
    found: dict[str, Any] = {"runs": runs, "users_a_day": DAY_USERS, "leak": LEAK}
    for name, shares, leaks in (
        ("none", (0.5, 0.5), CLEAN_DAYS),
        ("moved", (0.5 + LEAK / 2, 0.5 - LEAK / 2), runs),
        ("lost", (1 / (2 - LEAK), (1 - LEAK) / (2 - LEAK)), runs),
    ):
        hours = [_alarm_h(np.random.default_rng(seed), shares) for seed in range(leaks)]
        raised = sorted(its for its in hours if its is not None)
        found[name] = {
            "raised": len(raised) / leaks,
            "median_hours": raised[len(raised) // 2] if raised else None,
            "latest_hours": raised[-1] if raised else None,
        }
        if name == "moved":
            held = [
                UserOutcomes(("control", "treatment"), (SHOWN,), most_users=KEPT) for _ in hours[:3]
            ]
            again = [
                _alarm_h(np.random.default_rng(seed), shares, its) for seed, its in enumerate(held)
            ]
            found["through_outcomes"] = {
                "hours": again,
                "as_counted": again == hours[:3],
                "kept": [its.sampled for its in held],
            }
    return found


def _alarm_h(
    draw: np.random.Generator, shares: tuple[float, float], outcomes: UserOutcomes | None = None
) -> float | None:
    """When the alarm was raised; None where it wasn't within the day. ``outcomes``: what counts the users."""
    minutes = draw.multinomial(DAY_USERS // _MINUTES, shares, size=_MINUTES)
    for minute, counts in enumerate(minutes.cumsum(0).tolist()):
        if outcomes is not None:
            of_minute = minutes[minute]
            users = draw.integers(-(2**63), 2**63 - 1, of_minute.sum())
            none = np.zeros(len(users), np.int64)
            outcomes.expose(users, np.repeat(np.arange(2), of_minute), none, none)
            counts = outcomes.counts()
        if sample_ratio(counts, (0.5, 0.5)).alarm:
            return round((minute + 1) / 60, 2)
    return None


@study_command
def experiments(
    runs: Annotated[int, typer.Option(help="Simulated experiments of each kind.")] = 1_000,
    users: Annotated[int, typer.Option(help="ArmUsers who are assigned.")] = 10_000_000,
) -> dict[str, Any]:
    """Whether experiments keep what they promise: false alarms, coverage, power, assignment, leaks."""
    check_at_least(1, runs=runs, users=users)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "aa": lambda: measure_aa(runs),
        "lift": lambda: measure_lift(runs),
        "leak": lambda: measure_leak(min(runs, _LEAK_RUNS)),
        "assignment": lambda: measure_assignment(users),
    }
    found: dict[str, Any] = {"alpha": ALPHA}
    for name, measure in parts.items():
        began_s = time.monotonic()
        found[name] = measure() | {"seconds": round(time.monotonic() - began_s, 1)}
        typer.echo(f"{name}: {json.dumps(found[name])}")
    return found
