"""`recsys study interleaving`: lists needed to compare two rankers, apart and interleaved
(docs/explanation/experiments.md).

The same two rankers in the simulated world, once as arms of an experiment and once interleaved, with the same
test (two-sided at 5 %, on the logarithm of the ratio of long views, by users) and the same power. The
required number follows from the variance of a pool of users; simulated experiments of that size, drawn from
the pool and centred at its own ratio, verify the power.

Users who come again make the difference: apart, each user's own level adds noise to one arm, however many
lists they have; interleaved, it cancels. So the result depends on lists per user. Credits are shared as in
the report (``experiments.statistics.interleaving.shares``); the figure for credits by picks alone is given
beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.experiments.list_world import STAYS, ListWorld, Shown
from benchmarks.studies.experiments.study_counterfactual import logging_policy
from experiments.assignment.definition import Arm, apply_overrides
from experiments.statistics.effect import AT_LEAST, ArmUsers, influence
from recsys.config.policy_config import PolicyConfig
from serving.ranking.selection import sample_slate
from serving.ranking.team_draft import draft_slate

Floats = NDArray[np.float64]
ALPHA, POWER = 0.05, 0.8
EACH: Final = 5  # lists of a user on average, in a day or two
_SEED: Final = 0
_TEAMS: Final = ("control", "treatment")
_RANKS: Final = 8
_WORSE: Final = 1.0  # the error of the control's model in one pair, where others have 0.7


@dataclass(frozen=True)
class Ranker:
    """A policy with the predictions (U, I) of its model."""

    policy: PolicyConfig
    predicted_UI: Floats


@dataclass(frozen=True)
class Pool:
    """Users with sums of their outcomes: long views and lists; or long views of treatment and of control.
    ``ratio``: the true one, nearly without noise."""

    users: ArmUsers
    ratio: float


def pairs(world: ListWorld) -> dict[str, tuple[Ranker, Ranker]]:
    """Control and treatment; the treatment is the better one."""
    base = logging_policy()

    def changed(**overrides: Any) -> PolicyConfig:
        return apply_overrides(base, [Arm("treatment", 1.0, overrides)])

    usual = Ranker(base, world.predicted_UI)
    return {
        "colder": (usual, Ranker(changed(temperature=0.08), world.predicted_UI)),
        "less_exploration": (usual, Ranker(changed(explore=0.02), world.predicted_UI)),
        "better_model": (Ranker(base, world.worse_model(_WORSE)), usual),
    }


def single_arm_pool(world: ListWorld, ranker: Ranker, users: int, each: int, seed: int) -> Pool:
    """Pool of users of one arm."""
    views, expected, lists = np.zeros(users), 0.0, _lists_of(users, each, seed)
    for user, request_id, draw, person in _requests(world, lists, seed):
        candidates_C = world.some_candidates(draw)
        ballot = world.ballot(ranker.policy, person, candidates_C, ranker.predicted_UI)
        drawn = sample_slate(ballot, world.ranks, request_id=request_id)
        shown = Shown(person, candidates_C, drawn.positions)
        views[user] += world.watched_R(shown, draw).sum()
        expected += world.worth(shown)
    return Pool(ArmUsers(views, lists.astype(np.float64)), expected / lists.sum())


def interleaved_pools(
    world: ListWorld, control: Ranker, treatment: Ranker, users: int, each: int, seed: int
) -> tuple[Pool, Pool]:
    """Pools of users with interleaved lists: credits by shares, and by picks."""
    shared_U2, picked_U2, expected_2 = np.zeros((users, 2)), np.zeros((users, 2)), np.zeros(2)
    lists = _lists_of(users, each, seed)
    for user, request_id, draw, person in _requests(world, lists, seed):
        candidates_C = world.some_candidates(draw)
        control_ballot, treatment_ballot = (
            world.ballot(ranker.policy, person, candidates_C, ranker.predicted_UI)
            for ranker in (control, treatment)
        )
        drawn = draft_slate(
            (control_ballot, treatment_ballot), world.ranks, _TEAMS, request_id=request_id
        )
        shown = Shown(person, candidates_C, drawn.positions)
        did_R = world.watched_R(shown, draw)
        liked_R = world.liked_R(shown) * STAYS ** np.arange(len(did_R))
        picked_R2 = np.array([[team == name for name in _TEAMS] for team in drawn.teams], float)
        somebodys_R, shares_R = picked_R2.sum(1), np.array(drawn.shares)
        shared_R2 = np.column_stack([somebodys_R - shares_R, shares_R])
        shared_U2[user] += did_R @ shared_R2
        picked_U2[user] += did_R @ picked_R2
        expected_2 += liked_R @ shared_R2
    ratio = float(expected_2[1] / expected_2[0])
    shared, picked = (
        Pool(ArmUsers(credit_U2[:, 1], credit_U2[:, 0]), ratio)
        for credit_U2 in (shared_U2, picked_U2)
    )
    return shared, picked


def _lists_of(users: int, each: int, seed: int) -> NDArray[np.int64]:
    out: NDArray[np.int64] = 1 + np.random.default_rng(seed).poisson(each - 1, users)
    return out


def _requests(world: ListWorld, lists: NDArray[np.int64], seed: int) -> Any:
    """Requests and candidates of the users, the same for every ranker."""
    people = np.random.default_rng(seed + 1).integers(0, world.users, len(lists))
    for user, count in enumerate(lists):
        for number in range(count):
            draw = np.random.default_rng([seed, user, number])
            yield user, f"{seed} {user} {number}", draw, int(people[user])


def compare(
    world: ListWorld, control: Ranker, treatment: Ranker, users: int, each: int, runs: int
) -> dict[str, Any]:
    """Lists needed apart and interleaved, the power at that size, and false alarms of the pair without a
    difference."""
    a, b = (single_arm_pool(world, ranker, users, each, _SEED) for ranker in (control, treatment))
    both, picked = interleaved_pools(world, control, treatment, users, each, _SEED)
    apart_n = _users_needed(math.log(b.ratio / a.ratio), 2 * (_spread(a) + _spread(b)))
    both_n = _users_needed(math.log(both.ratio), _spread(both))
    equals = Pool(both.users, 1.0)
    picked_n = _users_needed(math.log(both.ratio), _spread(picked))
    draw = np.random.default_rng(_SEED)
    return {
        "lift": b.ratio / a.ratio - 1,
        "credit": both.ratio - 1,
        "ab_lists": round(apart_n * each),
        "interleaved_lists": round(both_n * each),
        "times_fewer": apart_n / both_n,
        "times_fewer_by_picks": apart_n / picked_n,
        "ab_power": _detection_rate(lambda: _z_of_experiment(a, b, apart_n, draw), runs),
        "interleaved_power": _detection_rate(lambda: _z_of_interleaving(both, both_n, draw), runs),
        "interleaved_false": _detection_rate(
            lambda: abs(_z_of_interleaving(equals, both_n, draw)), runs
        ),
    }


def _spread(pool: Pool) -> float:
    """Variance of ψ, a user's contribution to the error of the ratio's logarithm."""
    return float(influence(pool.users).var())


def _users_needed(difference: float, spread: float) -> float:
    """Users of a two-sided test in all; ``spread``: variance of the difference times the number of users. At
    least the minimum of the report."""
    quantiles = norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)
    return max(AT_LEAST, float((quantiles / difference) ** 2 * spread))


def _detection_rate(statistic: Callable[[], float], runs: int) -> float:
    """Fraction of runs in which the treatment is found to be better."""
    bar = float(norm.ppf(1 - ALPHA / 2))
    return float(np.mean([statistic() > bar for _ in range(runs)]))


def _z_of_experiment(a: Pool, b: Pool, users: float, draw: np.random.Generator) -> float:
    """z of an experiment of two arms with that many users in all."""
    (log_a, variance), (log_b, more) = (_sample_log_ratio(pool, users / 2, draw) for pool in (a, b))
    return (log_b - log_a) / math.sqrt(variance + more)


def _z_of_interleaving(pool: Pool, users: float, draw: np.random.Generator) -> float:
    """z of an interleaving with that many users."""
    difference, variance = _sample_log_ratio(pool, users, draw)
    return difference / math.sqrt(variance)


def _sample_log_ratio(pool: Pool, users: float, draw: np.random.Generator) -> tuple[float, float]:
    """Logarithm of the ratio of users drawn from a pool, and its estimated variance. The pool's own deviation
    from the true ratio is removed."""
    pool_users = pool.users
    at = draw.integers(0, len(pool_users), max(2, round(users)))
    some = ArmUsers(pool_users.numerators_U[at], pool_users.denominators_U[at])
    off = math.log(pool_users.ratio / pool.ratio)
    return math.log(some.ratio) - off, float(influence(some).var()) / len(some)


def measure(
    users: int, runs: int, each: int = EACH, world: ListWorld | None = None
) -> dict[str, Any]:
    """All pairs of rankers."""
    world = world or ListWorld(ranks=_RANKS)
    return {
        "users": users,
        "lists_of_a_user": each,
        "runs": runs,
        "ranks": world.ranks,
        "candidates": world.candidates,
        "alpha": ALPHA,
        "power": POWER,
        "pairs": {
            name: compare(world, *pair, users, each, runs) for name, pair in pairs(world).items()
        },
    }


@study_command
def interleaving(
    users: Annotated[int, typer.Option(help="Users of a pool.")] = 1_000,
    each: Annotated[int, typer.Option("--lists", help="Lists of a user, on average.")] = EACH,
    runs: Annotated[int, typer.Option(help="Simulated experiments to verify power.")] = 2_000,
) -> dict[str, Any]:
    """Number of lists needed to find the better of two rankers: apart, and interleaved."""
    check_at_least(2, users=users, runs=runs)
    check_at_least(1, lists=each)
    figures = measure(users, runs, each)
    for name, pair in figures["pairs"].items():
        powers = [pair[key] for key in ("ab_power", "interleaved_power", "interleaved_false")]
        apart, alike, false = (f"{power:.1%}" for power in powers)
        typer.echo(
            f"{name}: {pair['lift']:+.2%} alone, {pair['credit']:+.2%} of credit; lists needed "
            f"{pair['ab_lists']:,} apart (power {apart}), {pair['interleaved_lists']:,} interleaved "
            f"(power {alike}, false alarms {false}): {pair['times_fewer']:.1f} times fewer "
            f"({pair['times_fewer_by_picks']:.1f} by picks alone)"
        )
    return figures
