"""The policy that answers a user: the base configuration with the overrides of the user's arms."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from experiments.assignment.arm_line import arm_line_name
from experiments.assignment.assignment import assign
from experiments.assignment.definition import INTERLEAVED, Arm, Experiment, apply_overrides
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import digest
from recsys.events.hashing import Id, digest_of


@dataclass(frozen=True)
class Policy:
    """A resolved policy. ``line`` is the line of weights that answers; empty: the live one. ``rivals``: the
    two policies that draw a list in turns, by their arms' names, the control (whose ``config`` this one has)
    first; empty: this one draws alone."""

    config: PolicyConfig
    digest: str
    arms: dict[str, str] = field(default_factory=dict)  # the arm by experiment
    line: str = ""
    rivals: tuple[tuple[str, "Policy"], ...] = ()


class Policies:
    """Resolves policies of one base and one set of experiments. A new revision is a new object.

    Users of the same arms get the same object: what is made is kept, and there are few combinations.
    """

    def __init__(self, base: PolicyConfig, experiments: Sequence[Experiment] = ()) -> None:
        self._base, self._experiments = base, tuple(experiments)
        self._made: dict[tuple[str | None, ...], Policy] = {}

    def resolve(self, user_id: Id) -> Policy:
        """The policy of a user."""
        arms = [assign(user_id, experiment) for experiment in self._experiments]
        # Of an interleaving all who are in get the same, whichever arm the hash would give them.
        key = tuple(
            None if arm is None else INTERLEAVED if its.interleaves else arm.name
            for its, arm in zip(self._experiments, arms, strict=True)
        )
        policy = self._made.get(key)
        if policy is None:
            policy = self._made[key] = self._make(arms)
        return policy

    def _make(self, arms: Sequence[Arm | None]) -> Policy:
        given = {e.name: arm for e, arm in zip(self._experiments, arms, strict=True) if arm}
        interleaving = next(
            (e for e in self._experiments if e.interleaves and e.name in given), None
        )
        if interleaving is not None:
            return self._interleaved(interleaving, given)
        config = apply_overrides(self._base, list(given.values()))
        line = next((arm_line_name(name, arm.name) for name, arm in given.items() if arm.trains), "")
        return Policy(
            config=config,
            digest=digest_of(f"{digest(config)} {line}") if line else digest(config),
            arms={name: arm.name for name, arm in given.items()},
            line=line,
        )

    def _interleaved(self, experiment: Experiment, given: dict[str, Arm]) -> Policy:
        """The policies of both arms as rivals, each with the overrides of the user's other arms."""
        rivals = []
        for arm in experiment.arms:
            config = apply_overrides(self._base, list((given | {experiment.name: arm}).values()))
            rivals.append((arm.name, Policy(config, digest(config))))
        named = {name: arm.name for name, arm in given.items()} | {experiment.name: INTERLEAVED}
        line = next((arm_line_name(name, arm.name) for name, arm in given.items() if arm.trains), "")
        told = " ".join((INTERLEAVED, *(f"{name} {its.digest}" for name, its in rivals), line))
        return Policy(rivals[0][1].config, digest_of(told), named, line, tuple(rivals))
