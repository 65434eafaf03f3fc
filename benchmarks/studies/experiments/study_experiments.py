"""`recsys study experiments`: checks the promises of experiment reports (docs/explanation/experiments.md).

Simulated with the functions behind reports: false alarms of an A/A test with a look after every batch,
coverage of intervals, power at +2 % against the promise of ``power``, uniformity of assignment and
independence of layers, and the delay of the sample-ratio alarm for a leak of one percent.
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
from experiments.assignment.definition import Arm, Experiment
from experiments.assignment.design import SHOWN
from experiments.assignment.policy import assign
from experiments.statistics.effect import Effect, effect, eta_of
from experiments.statistics.outcomes import UserOutcomes
from experiments.statistics.sample_ratio import sample_ratio
from plugins.experiment_power.sequential_power import SequentialPower, covariance

ALPHA: Final = 0.05
AA_USERS, AA_LOOKS, AA_FIND = 2_000, 28, 0.06
LIFT, LIFT_LOOKS = 0.02, 14
_PILOT_USERS: Final = 20_000
DAY_USERS: Final = 1_000_000
LEAK: Final = 0.01
KEPT: Final = 100_000  # users whose outcomes the director keeps
CLEAN_DAYS: Final = 1_000
_MINUTES: Final = 1_440
_LEAK_RUNS: Final = 200
_PILOT_SEED, _LIFT_SEED = 7_000_000, 1_000_000  # other draws than those of the A/A runs
_WORLDS: Final = (
    ("come again", {"again": True}),
    ("come again, with a past (CUPED)", {"again": True, "before": 5.0}),
    ("come once", {"again": False}),
)


def effects_by_look(trial: Trial, find: float, covariates: bool = False) -> list[Effect]:
    """Effect after every batch."""
    eta = eta_of(find, ALPHA)
    looks = range(len(trial.numerators_TU))
    return [effect(trial.at(k, True, covariates), trial.at(k, False, covariates), ALPHA, eta) for k in looks]


def peeked(looks: list[Effect]) -> bool:
    """Whether a fixed-size test at 5 % with as many looks ever finds an effect."""
    return any(abs(np.log1p(look.relative)) > 1.96 * look.error for look in looks)


def measure_aa(runs: int) -> dict[str, Any]:
    """Experiments without an effect, by kind of users."""
    worlds = {}
    for name, world in _WORLDS:
        ever, covered, naive, saved = 0, 0, 0, 0.0
        for seed in range(runs):
            trial = simulate(np.random.default_rng(seed), AA_USERS, AA_LOOKS, **world)
            looks = effects_by_look(trial, AA_FIND, covariates="before" in world)
            ever += any(look.excludes_zero for look in looks)
            covered += sum(look.low <= 0 <= look.high for look in looks)
            naive += peeked(looks)
            saved += looks[-1].saved / runs
        worlds[name] = {
            "ever_significant": ever / runs,
            "coverage_of_a_look": covered / (runs * AA_LOOKS),
            "coverage_at_all_looks": 1 - ever / runs,
            "fixed_size_test_ever_significant": naive / runs,
            "variance_saved": saved,
        }
    return {"runs": runs, "users": AA_USERS, "looks": AA_LOOKS, "worlds": worlds}


def measure_lift(runs: int) -> dict[str, Any]:
    """Experiments with +2 %, with the number of users that ``power`` requires, from a pilot without an
    effect."""
    pilot = simulate(np.random.default_rng(_PILOT_SEED), _PILOT_USERS, LIFT_LOOKS)
    seen = covariance(pilot.numerators_TU.T, pilot.denominators_TU.T)
    looks = SequentialPower(seen, ALPHA, eta_of(LIFT, ALPHA))
    users = looks.users_needed((0.5, 0.5), LIFT, 0.8)
    promised = looks.power((users / 2, users / 2), LIFT)
    detected, held, held_at = np.zeros(LIFT_LOOKS), 0, 0
    for seed in range(runs):
        draw = np.random.default_rng(_LIFT_SEED + seed)
        looks_at_trial = effects_by_look(simulate(draw, users, LIFT_LOOKS, LIFT), LIFT)
        detected += np.maximum.accumulate([look.low > 0 for look in looks_at_trial])
        inside = [look.low <= LIFT <= look.high for look in looks_at_trial]
        held, held_at = held + all(inside), held_at + sum(inside)
    return {
        "runs": runs,
        "users": users,
        "looks": LIFT_LOOKS,
        "promised": [round(float(p), 4) for p in promised],
        "found": [round(float(f) / runs, 4) for f in detected],
        "coverage_at_all_looks": held / runs,
        "coverage_of_a_look": held_at / (runs * LIFT_LOOKS),
    }


def measure_assignment(users: int) -> dict[str, Any]:
    """Arms of users in two experiments of two layers, by ``assign`` itself."""
    first = _four("one", "ranking", (0.4, 0.3, 0.2, 0.1), 0.8)
    second = _four("other", "mixing", (0.25, 0.25, 0.25, 0.25), 0.5)
    places = {arm.name: number for number, arm in enumerate(first.arms)}
    table = np.zeros((5, 5), np.int64)  # arms of both, and none
    for user in range(users):
        a, b = assign(user, first), assign(user, second)
        table[places[a.name] if a else 4, places[b.name] if b else 4] += 1
    return {
        "users": users,
        "uniform_p": [
            float(chisquare(table.sum(axis), _expected(experiment, users)).pvalue)
            for axis, experiment in ((1, first), (0, second))
        ],
        "independent_p": float(chi2_contingency(table).pvalue),
    }


def _four(name: str, layer: str, shares: tuple[float, ...], traffic: float) -> Experiment:
    arms = tuple(Arm(f"arm_{number}", share) for number, share in enumerate(shares))
    return Experiment(name, arms, layer=layer, traffic=traffic)


def _expected(experiment: Experiment, users: int) -> list[float]:
    inside = [users * experiment.traffic * arm.share for arm in experiment.arms]
    return [*inside, users * (1 - experiment.traffic)]


def measure_leak(runs: int) -> dict[str, Any]:
    """Days of a million new users with a look each minute: without a leak, with 1 % of the treatment's users
    moved to the control, and with as many lost from the log. ``through_outcomes``: the first runs of the
    second kind again, counted by the director's code, which keeps outcomes of a sample of users."""
    figures: dict[str, Any] = {"runs": runs, "users_a_day": DAY_USERS, "leak": LEAK}
    for name, shares, leaks in (
        ("none", (0.5, 0.5), CLEAN_DAYS),
        ("moved", (0.5 + LEAK / 2, 0.5 - LEAK / 2), runs),
        ("lost", (1 / (2 - LEAK), (1 - LEAK) / (2 - LEAK)), runs),
    ):
        hours = [_alarm_h(np.random.default_rng(seed), shares) for seed in range(leaks)]
        raised = sorted(hour for hour in hours if hour is not None)
        figures[name] = {
            "raised": len(raised) / leaks,
            "median_hours": raised[len(raised) // 2] if raised else None,
            "latest_hours": raised[-1] if raised else None,
        }
        if name == "moved":
            held = [UserOutcomes(("control", "treatment"), (SHOWN,), most_users=KEPT) for _ in hours[:3]]
            again = [
                _alarm_h(np.random.default_rng(seed), shares, outcomes) for seed, outcomes in enumerate(held)
            ]
            figures["through_outcomes"] = {
                "hours": again,
                "as_counted": again == hours[:3],
                "kept": [outcomes.sampled for outcomes in held],
            }
    return figures


def _alarm_h(
    draw: np.random.Generator, shares: tuple[float, float], outcomes: UserOutcomes | None = None
) -> float | None:
    """Hour of the alarm; None when there was none within the day. ``outcomes``: counts the users."""
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
    users: Annotated[int, typer.Option(help="Assigned users.")] = 10_000_000,
) -> dict[str, Any]:
    """Checks of experiment reports: false alarms, coverage, power, assignment, leaks."""
    check_at_least(1, runs=runs, users=users)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "aa": lambda: measure_aa(runs),
        "lift": lambda: measure_lift(runs),
        "leak": lambda: measure_leak(min(runs, _LEAK_RUNS)),
        "assignment": lambda: measure_assignment(users),
    }
    figures: dict[str, Any] = {"alpha": ALPHA}
    for name, measure in parts.items():
        began_s = time.monotonic()
        figures[name] = measure() | {"seconds": round(time.monotonic() - began_s, 1)}
        typer.echo(f"{name}: {json.dumps(figures[name])}")
    return figures
