"""`recsys study counterfactual`: whether estimates of another policy hold what they promise.

In the simulated world the value of a policy is known by running it. Logs of one policy are drawn over and
over, each of other people; from each, by the functions that `recsys counterfactual` is made of, other
policies are judged: how often intervals hold their value, how far off estimates are, how wide they are.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.experiments.list_world import STAYS, ListWorld, Shown
from experiments.assignment.definition import Arm, apply_overrides
from experiments.statistics.off_policy import (
    PolicyValue,
    Support,
    WeightedLists,
    estimates,
    support,
)
from recsys.config.policy_config import PolicyConfig
from serving.ranking.selection import draw_from
from serving.ranking.slate_propensities import chances_along
from serving.reconstruction.counterfactual_propensities import NO_CHANCE

Floats = NDArray[np.float64]
LOGGED: Final[dict[str, Any]] = {"temperature": 0.1, "explore": 0.1}
TARGETS: Final[dict[str, dict[str, Any]]] = {
    "colder": {"temperature": 0.08},
    "warmer": {"temperature": 0.15},
    "less_exploration": {"explore": 0.02},
    "diversity": {"diversity": 0.1},
}
USERS: Final = 200  # of a log
EACH: Final = 2  # lists of a user, on average
_WORLD_SEED, _RUN_SEED = 0, 1_000_000
_TRUTH_LISTS: Final = 100  # of each person, by which a policy's value is known


def policies() -> dict[str, PolicyConfig]:
    """The policies that are judged, by name."""
    base = logging_policy()
    return {name: apply_overrides(base, [Arm(name, 1.0, its)]) for name, its in TARGETS.items()}


def logging_policy() -> PolicyConfig:
    return apply_overrides(PolicyConfig(quota=0.0), [Arm("logged", 1.0, LOGGED)])


def true_value(world: ListWorld, policy: PolicyConfig, lists: int) -> tuple[float, float]:
    """The long views of a list when the policy runs, and the standard error of that."""
    draw = np.random.default_rng(_WORLD_SEED)
    found = np.zeros((world.users, lists))
    for user in range(world.users):
        for number in range(lists):
            shown, _ = one_list(world, policy, user, draw, f"true {user} {number}")
            found[user, number] = world.worth(shown)
    return float(found.mean()), float(found.std(1).mean() / np.sqrt(found.size))


def one_list(
    world: ListWorld, policy: PolicyConfig, user: int, draw: np.random.Generator, request_id: str
) -> tuple[Shown, Floats]:
    """A list for somebody, with its propensities."""
    candidates_C = world.some_candidates(draw)
    drawn = draw_from(world.ballot(policy, user, candidates_C), world.ranks, request_id=request_id)
    return Shown(user, candidates_C, drawn.positions), drawn.propensities


def logged(
    world: ListWorld, targets: Mapping[str, PolicyConfig], seed: int, users: int
) -> dict[str, WeightedLists]:
    """A log of the logging policy as each target would weigh it. Its users are drawn from the world's, each
    draw a user of their own."""
    draw, policy = np.random.default_rng(seed), logging_policy()
    whose = np.repeat(np.arange(users), 1 + draw.poisson(EACH - 1, users))
    people = draw.integers(0, world.users, users)
    shape = (len(whose), world.ranks)
    rewards, propensities = np.zeros(shape), np.zeros(shape)
    arrays = {name: np.zeros((4, *shape)) for name in targets}
    reach_R = STAYS ** np.arange(world.ranks)
    for row, user in enumerate(whose):
        shown, propensities[row] = one_list(world, policy, int(people[user]), draw, f"{seed} {row}")
        rewards[row] = world.watched_R(shown, draw)
        mine = _along(world, policy, shown)
        said_C = world.said_UI[shown.user, shown.candidates_C]
        at = (np.arange(world.ranks), shown.positions_R)
        for name, target in targets.items():
            theirs = _along(world, target, shown)
            arrays[name][:, row] = (
                theirs[at] / propensities[row],
                said_C[shown.positions_R] * reach_R,
                theirs @ said_C * reach_R,
                np.where(mine < NO_CHANCE, theirs, 0.0).sum(1),
            )
    return {
        name: WeightedLists(ratios, rewards, said, expected, gap, whose)
        for name, (ratios, said, expected, gap) in arrays.items()
    }


def _along(world: ListWorld, policy: PolicyConfig, shown: Shown) -> Floats:
    ballot = world.ballot(policy, shown.user, shown.candidates_C)
    return chances_along(ballot, shown.positions_R, world.ranks)[0]


def measure(runs: int, users: int = USERS, world: ListWorld | None = None) -> dict[str, Any]:
    """Coverage, bias, width and effective sample size of each estimator, by policy."""
    world = world or ListWorld(_WORLD_SEED)
    targets = policies()
    truths = {name: true_value(world, its, _TRUTH_LISTS) for name, its in targets.items()}
    base = true_value(world, logging_policy(), _TRUTH_LISTS)[0]
    found: dict[str, list[tuple[Support, tuple[PolicyValue, ...]]]] = {name: [] for name in targets}
    for run in range(runs):
        for name, lists in logged(world, targets, _RUN_SEED + run, users).items():
            found[name].append((support(lists), estimates(lists)))
    return {
        "runs": runs,
        "users": users,
        "lists": users * EACH,
        "ranks": world.ranks,
        "candidates": world.candidates,
        "logged": LOGGED | {"true": base},
        "targets": {
            name: {"overrides": TARGETS[name], "true": truths[name][0],
                   "true_error": truths[name][1], **_summary(found[name], truths[name][0], base)}
            for name in targets
        },
    }  # fmt: skip


def _summary(
    found: list[tuple[Support, tuple[PolicyValue, ...]]], truth: float, base: float
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "ess": float(np.mean([its.ess for its, _ in found])),
        "unsupported": float(np.mean([its.unsupported for its, _ in found])),
        "refused": float(np.mean([bool(its.problems()) for its, _ in found])),
    }
    names = [one.name for one in found[0][1]]
    for place, name in enumerate(names):
        its = [told[place] for _, told in found]
        values = np.array([one.value for one in its])
        out[name] = {
            "coverage": float(np.mean([one.low <= truth <= one.high for one in its])),
            "lift_coverage": float(
                np.mean([one.lift_low <= truth - base <= one.lift_high for one in its])
            ),
            "bias": float(values.mean() - truth),
            "bias_error": float(values.std() / np.sqrt(len(values))),
            "spread": float(values.std()),
            "width": float(np.mean([one.high - one.low for one in its])),
            "lift_width": float(np.mean([one.lift_high - one.lift_low for one in its])),
            "worth_lists": float(np.median([one.worth_lists for one in its])),
        }
    return out


@study_command
def counterfactual(
    runs: Annotated[int, typer.Option(help="Logs, each of other users.")] = 400,
    users: Annotated[int, typer.Option(help="ArmUsers of a log.")] = USERS,
) -> dict[str, Any]:
    """Coverage, bias and width of estimates of other policies, whose value is known by running them."""
    check_at_least(2, runs=runs, users=users)
    found = {"alpha": 0.05, **measure(runs, users)}
    for name, its in found["targets"].items():
        typer.echo(
            f"{name}: true {its['true']:.4f}, ess {its['ess']:.0f}, refused {its['refused']:.1%}"
        )
        for estimator in ("ips", "snips", "dr", "sndr"):
            one = its[estimator]
            typer.echo(
                f"  {estimator:<6} coverage {one['coverage']:.1%}, bias {one['bias']:+.4f}, width "
                f"{one['width']:.4f}; of the lift {one['lift_coverage']:.1%}, width {one['lift_width']:.4f}; "
                f"worth {one['worth_lists']:.0f} lists"
            )
    return found
