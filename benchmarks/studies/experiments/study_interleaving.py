"""`recsys study interleaving`: how many lists two rankers need, apart and in one list (docs/explanation/experiments.md).

The same two rankers in the simulated world, once as arms of an experiment and once interleaved; the same call
(which is better), the same test (two-sided at 5 %, on the logarithm of the ratio of long views, by users),
the same power. What is needed follows from the variance of a pool of users; that it does what it says is
looked at by experiments of so many users, drawn from the pool (about whose own ratio they are centred).

ArmUsers who come again make the difference: apart, each user adds what is their own to one arm, however many
lists of theirs there are; in one list it is taken out. So it is measured by lists of a user. ArmCredits are
shared as the report shares them (``experiments.statistics.interleaving.shares``); what it would take if each item were
its picker's alone is told beside it.
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
from serving.ranking.selection import draw_from
from serving.ranking.team_draft import draft

Floats = NDArray[np.float64]
ALPHA, POWER = 0.05, 0.8
EACH: Final = 5  # lists of a user, on average: of an experiment of a day or two
_SEED: Final = 0
_TEAMS: Final = ("control", "treatment")
_RANKS: Final = 8
_WORSE: Final = 1.0  # the error of the control's model in one pair, where others have 0.7


@dataclass(frozen=True)
class Ranker:
    """A policy, and what its model says (U, I)."""

    policy: PolicyConfig
    said_UI: Floats


@dataclass(frozen=True)
class Pool:
    """ArmUsers with sums of what they did: long views and lists; or long views of treatment and of control.
    ``ratio``: the true one, to which chance adds little."""

    users: ArmUsers
    ratio: float


def pairs(world: ListWorld) -> dict[str, tuple[Ranker, Ranker]]:
    """Control and treatment; the treatment is the better one."""
    base = logging_policy()

    def changed(**overrides: Any) -> PolicyConfig:
        return apply_overrides(base, [Arm("treatment", 1.0, overrides)])

    usual = Ranker(base, world.said_UI)
    return {
        "colder": (usual, Ranker(changed(temperature=0.08), world.said_UI)),
        "less_exploration": (usual, Ranker(changed(explore=0.02), world.said_UI)),
        "better_model": (Ranker(base, world.worse_model(_WORSE)), usual),
    }


def alone(world: ListWorld, ranker: Ranker, users: int, each: int, seed: int) -> Pool:
    """ArmUsers of one arm."""
    views, expected, lists = np.zeros(users), 0.0, _lists_of(users, each, seed)
    for user, request_id, draw, person in _requests(world, lists, seed):
        candidates_C = world.some_candidates(draw)
        ballot = world.ballot(ranker.policy, person, candidates_C, ranker.said_UI)
        drawn = draw_from(ballot, world.ranks, request_id=request_id)
        shown = Shown(person, candidates_C, drawn.positions)
        views[user] += world.watched_R(shown, draw).sum()
        expected += world.worth(shown)
    return Pool(ArmUsers(views, lists.astype(np.float64)), expected / lists.sum())


def together(
    world: ListWorld, control: Ranker, treatment: Ranker, users: int, each: int, seed: int
) -> tuple[Pool, Pool]:
    """ArmUsers whose lists both draw: with what each of the two earned by shares, and by picks."""
    shared_U2, picked_U2, expected_2 = np.zeros((users, 2)), np.zeros((users, 2)), np.zeros(2)
    lists = _lists_of(users, each, seed)
    for user, request_id, draw, person in _requests(world, lists, seed):
        candidates_C = world.some_candidates(draw)
        one, other = (
            world.ballot(its.policy, person, candidates_C, its.said_UI)
            for its in (control, treatment)
        )
        drawn = draft((one, other), world.ranks, _TEAMS, request_id=request_id)
        shown = Shown(person, candidates_C, drawn.positions)
        did_R = world.watched_R(shown, draw)
        liked_R = world.liked_R(shown) * STAYS ** np.arange(len(did_R))
        picked_R2 = np.array([[whose == name for name in _TEAMS] for whose in drawn.teams], float)
        somebodys_R, shares_R = picked_R2.sum(1), np.array(drawn.shares)
        shared_R2 = np.column_stack([somebodys_R - shares_R, shares_R])
        shared_U2[user] += did_R @ shared_R2
        picked_U2[user] += did_R @ picked_R2
        expected_2 += liked_R @ shared_R2
    ratio = float(expected_2[1] / expected_2[0])
    shared, picked = (Pool(ArmUsers(its[:, 1], its[:, 0]), ratio) for its in (shared_U2, picked_U2))
    return shared, picked


def _lists_of(users: int, each: int, seed: int) -> NDArray[np.int64]:
    out: NDArray[np.int64] = 1 + np.random.default_rng(seed).poisson(each - 1, users)
    return out


def _requests(world: ListWorld, lists: NDArray[np.int64], seed: int) -> Any:
    """The same users ask the same, and find the same candidates, whoever ranks for them."""
    people = np.random.default_rng(seed + 1).integers(0, world.users, len(lists))
    for user, count in enumerate(lists):
        for number in range(count):
            draw = np.random.default_rng([seed, user, number])
            yield user, f"{seed} {user} {number}", draw, int(people[user])


def compare(
    world: ListWorld, control: Ranker, treatment: Ranker, users: int, each: int, runs: int
) -> dict[str, Any]:
    """Lists needed apart and together, the power that so many have, and false alarms where the same pair
    earned as much."""
    a, b = (alone(world, its, users, each, _SEED) for its in (control, treatment))
    both, picked = together(world, control, treatment, users, each, _SEED)
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
        "ab_power": _found(lambda: _apart(a, b, apart_n, draw), runs),
        "interleaved_power": _found(lambda: _within(both, both_n, draw), runs),
        "interleaved_false": _found(lambda: abs(_within(equals, both_n, draw)), runs),
    }


def _spread(pool: Pool) -> float:
    """The variance of ψ, a user's part in the error of the ratio's logarithm."""
    return float(influence(pool.users).var())


def _users_needed(difference: float, spread: float) -> float:
    """Of a two-sided test, on all users; ``spread``: the variance of the difference times their number. As
    many at least as the report waits for."""
    quantiles = norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)
    return max(AT_LEAST, float((quantiles / difference) ** 2 * spread))


def _found(statistic: Callable[[], float], runs: int) -> float:
    """How often the treatment is found to be better."""
    bar = float(norm.ppf(1 - ALPHA / 2))
    return float(np.mean([statistic() > bar for _ in range(runs)]))


def _apart(a: Pool, b: Pool, users: float, draw: np.random.Generator) -> float:
    """z of an experiment of two arms with so many users in all."""
    (one, variance), (other, more) = (_some(its, users / 2, draw) for its in (a, b))
    return (other - one) / math.sqrt(variance + more)


def _within(pool: Pool, users: float, draw: np.random.Generator) -> float:
    """z of an interleaving with so many users."""
    difference, variance = _some(pool, users, draw)
    return difference / math.sqrt(variance)


def _some(pool: Pool, users: float, draw: np.random.Generator) -> tuple[float, float]:
    """The logarithm of the ratio of so many users of a pool, and its variance as it is estimated of them.
    What the pool's own ratio is off by chance is taken out."""
    its = pool.users
    at = draw.integers(0, len(its), max(2, round(users)))
    some = ArmUsers(its.numerators_U[at], its.denominators_U[at])
    off = math.log(its.ratio / pool.ratio)
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
    users: Annotated[int, typer.Option(help="ArmUsers of a pool.")] = 1_000,
    each: Annotated[int, typer.Option("--lists", help="Lists of a user, on average.")] = EACH,
    runs: Annotated[int, typer.Option(help="Experiments by which power is looked at.")] = 2_000,
) -> dict[str, Any]:
    """How many lists it takes to find the better of two rankers: apart, and in one list."""
    check_at_least(2, users=users, runs=runs)
    check_at_least(1, lists=each)
    found = measure(users, runs, each)
    for name, its in found["pairs"].items():
        powers = [its[key] for key in ("ab_power", "interleaved_power", "interleaved_false")]
        apart, alike, false = (f"{power:.1%}" for power in powers)
        typer.echo(
            f"{name}: {its['lift']:+.2%} alone, {its['credit']:+.2%} of credit; lists needed "
            f"{its['ab_lists']:,} apart (power {apart}), {its['interleaved_lists']:,} interleaved "
            f"(power {alike}, false alarms {false}): {its['times_fewer']:.1f} times fewer "
            f"({its['times_fewer_by_picks']:.1f} by picks alone)"
        )
    return found
