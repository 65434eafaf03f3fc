"""`recsys study counterfactual`: checks coverage and bias of off-policy estimates.

In the simulated world the value of a policy is known by running it. Logs of one policy are drawn repeatedly,
each of other people; the functions behind `recsys counterfactual` estimate other policies from each log. The
study counts how often intervals contain the true value, and measures bias and width.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.experiments.list_world import STAYS, ListWorld, Shown
from experiments.assignment.definition import Arm, apply_overrides
from plugins.off_policy.estimates import (
    PolicyValue,
    Support,
    WeightedLists,
    diagnose_support,
    estimates,
)
from plugins.off_policy.propensities import NO_CHANCE, probabilities_along
from recsys.config.policy_config import PolicyConfig
from serving.ranking.selection import sample_slate

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
_TRUTH_LISTS: Final = 100  # of each person, to compute a policy's true value


def policies() -> dict[str, PolicyConfig]:
    """The target policies by name."""
    base = logging_policy()
    return {
        name: apply_overrides(base, [Arm(name, 1.0, overrides)])
        for name, overrides in TARGETS.items()
    }


def logging_policy() -> PolicyConfig:
    return apply_overrides(PolicyConfig(quota=0.0), [Arm("logged", 1.0, LOGGED)])


def true_value(world: ListWorld, policy: PolicyConfig, lists: int) -> tuple[float, float]:
    """Long views of a list when the policy runs, with the standard error."""
    draw = np.random.default_rng(_WORLD_SEED)
    worths = np.zeros((world.users, lists))
    for user in range(world.users):
        for number in range(lists):
            shown, _ = one_list(world, policy, user, draw, f"true {user} {number}")
            worths[user, number] = world.worth(shown)
    return float(worths.mean()), float(worths.std(1).mean() / np.sqrt(worths.size))


def one_list(
    world: ListWorld, policy: PolicyConfig, user: int, draw: np.random.Generator, request_id: str
) -> tuple[Shown, Floats]:
    """A list for a user, with its propensities."""
    candidates_C = world.some_candidates(draw)
    drawn = sample_slate(
        world.ballot(policy, user, candidates_C), world.ranks, request_id=request_id
    )
    return Shown(user, candidates_C, drawn.positions), drawn.propensities


def logged(
    world: ListWorld, targets: Mapping[str, PolicyConfig], seed: int, users: int
) -> dict[str, WeightedLists]:
    """A log of the logging policy, weighed for each target. Its users are drawn from the world's; each draw
    counts as a user of its own."""
    draw, policy = np.random.default_rng(seed), logging_policy()
    user_of_list = np.repeat(np.arange(users), 1 + draw.poisson(EACH - 1, users))
    people = draw.integers(0, world.users, users)
    shape = (len(user_of_list), world.ranks)
    rewards, propensities = np.zeros(shape), np.zeros(shape)
    arrays = {name: np.zeros((4, *shape)) for name in targets}
    reach_R = STAYS ** np.arange(world.ranks)
    for row, user in enumerate(user_of_list):
        shown, propensities[row] = one_list(world, policy, int(people[user]), draw, f"{seed} {row}")
        rewards[row] = world.watched_R(shown, draw)
        logged_chances = _along(world, policy, shown)
        said_C = world.predicted_UI[shown.user, shown.candidates_C]
        at = (np.arange(world.ranks), shown.positions_R)
        for name, target in targets.items():
            target_chances = _along(world, target, shown)
            arrays[name][:, row] = (
                target_chances[at] / propensities[row],
                said_C[shown.positions_R] * reach_R,
                target_chances @ said_C * reach_R,
                np.where(logged_chances < NO_CHANCE, target_chances, 0.0).sum(1),
            )
    return {
        name: WeightedLists(ratios, rewards, expected_rewards, expected, gap, user_of_list)
        for name, (ratios, expected_rewards, expected, gap) in arrays.items()
    }


def _along(world: ListWorld, policy: PolicyConfig, shown: Shown) -> Floats:
    ballot = world.ballot(policy, shown.user, shown.candidates_C)
    return probabilities_along(ballot, shown.positions_R, world.ranks)[0]


def measure(runs: int, users: int = USERS, world: ListWorld | None = None) -> dict[str, Any]:
    """Coverage, bias, width and effective sample size of each estimator, by policy."""
    world = world or ListWorld(_WORLD_SEED)
    targets = policies()
    truths = {name: true_value(world, policy, _TRUTH_LISTS) for name, policy in targets.items()}
    base = true_value(world, logging_policy(), _TRUTH_LISTS)[0]
    results: dict[str, list[tuple[Support, tuple[PolicyValue, ...]]]] = {
        name: [] for name in targets
    }
    for run in range(runs):
        for name, lists in logged(world, targets, _RUN_SEED + run, users).items():
            results[name].append((diagnose_support(lists), estimates(lists)))
    return {
        "runs": runs,
        "users": users,
        "lists": users * EACH,
        "ranks": world.ranks,
        "candidates": world.candidates,
        "logged": LOGGED | {"true": base},
        "targets": {
            name: {"overrides": TARGETS[name], "true": truths[name][0],
                   "true_error": truths[name][1], **_summary(results[name], truths[name][0], base)}
            for name in targets
        },
    }  # fmt: skip


def _summary(
    results: list[tuple[Support, tuple[PolicyValue, ...]]], truth: float, base: float
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "ess": float(np.mean([target_support.ess for target_support, _ in results])),
        "unsupported": float(
            np.mean([target_support.unsupported for target_support, _ in results])
        ),
        "refused": float(
            np.mean([bool(target_support.problems()) for target_support, _ in results])
        ),
    }
    names = [estimate.name for estimate in results[0][1]]
    for place, name in enumerate(names):
        target_support = [run_estimates[place] for _, run_estimates in results]
        values = np.array([estimate.value for estimate in target_support])
        out[name] = {
            "coverage": float(
                np.mean([estimate.low <= truth <= estimate.high for estimate in target_support])
            ),
            "lift_coverage": float(
                np.mean(
                    [
                        estimate.lift_low <= truth - base <= estimate.lift_high
                        for estimate in target_support
                    ]
                )
            ),
            "bias": float(values.mean() - truth),
            "bias_error": float(values.std() / np.sqrt(len(values))),
            "spread": float(values.std()),
            "width": float(np.mean([estimate.high - estimate.low for estimate in target_support])),
            "lift_width": float(
                np.mean([estimate.lift_high - estimate.lift_low for estimate in target_support])
            ),
            "worth_lists": float(np.median([estimate.worth_lists for estimate in target_support])),
        }
    return out


@study_command
def counterfactual(
    runs: Annotated[int, typer.Option(help="Logs, each of other users.")] = 400,
    users: Annotated[int, typer.Option(help="Users of a log.")] = USERS,
) -> dict[str, Any]:
    """Coverage, bias and width of estimates of other policies, against their true values."""
    check_at_least(2, runs=runs, users=users)
    figures = {"alpha": 0.05, **measure(runs, users)}
    for name, target in figures["targets"].items():
        typer.echo(
            f"{name}: true {target['true']:.4f}, ess {target['ess']:.0f}, "
            f"refused {target['refused']:.1%}"
        )
        for estimator in ("ips", "snips", "dr", "sndr"):
            values = target[estimator]
            typer.echo(
                f"  {estimator:<6} coverage {values['coverage']:.1%}, bias {values['bias']:+.4f}, width "
                f"{values['width']:.4f}; of the lift {values['lift_coverage']:.1%}, width "
                f"{values['lift_width']:.4f}; worth {values['worth_lists']:.0f} lists"
            )
    return figures
