"""Assignment of users to arms by a hash, and the policy of a user: the base configuration with the arms'
overrides. Layers are independent of each other, and so are the experiments' draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

from experiments.assignment.arm_line import arm_line_name
from experiments.assignment.definition import INTERLEAVED, Arm, Experiment, apply_overrides
from recsys.config.checks import check
from recsys.config.policy_config import MAX_LIST_LENGTH, PolicyConfig
from recsys.config.system_config import digest
from recsys.events.hashing import Id, digest_of, uniform

Surfaces = Mapping[str, dict[str, Any]]
_NO_SURFACES: Final[Surfaces] = {}
LENGTH: Final = 10  # items of a list by default
_SEED: Final = 0  # changing it reassigns every user of every experiment


def assign(user_id: Id, experiment: Experiment) -> Arm | None:
    """Arm of a user, the same on every server; None if not in the experiment. The layer decides whether a
    user is in, the experiment (and its salt) which arm: the next experiment mixes the same users anew."""
    position = uniform(_SEED, "layer", experiment.layer, user_id)
    if not experiment.offset <= position < experiment.offset + experiment.traffic:
        return None
    draw = uniform(_SEED, "arm", experiment.name, experiment.salt, user_id)
    for arm in experiment.arms:
        if draw < arm.share:
            return arm
        draw -= arm.share
    return experiment.arms[-1]  # the shares add up to 1 except for rounding


@dataclass(frozen=True)
class Policy:
    """A resolved policy. ``line``: line of weights that answers; empty: the live one. ``rivals``: the two
    policies of an interleaved list by arm name, the control (whose ``config`` this one has) first; else
    empty."""

    config: PolicyConfig
    digest: str
    arms: dict[str, str] = field(default_factory=dict)  # arm by experiment
    line: str = ""
    rivals: tuple[tuple[str, "Policy"], ...] = ()


class Policies:
    """Resolves policies of one base and one set of experiments; a new revision is a new object. Users of the
    same arms get the same cached policy. ``surfaces``: overrides of the base by surface, which those of arms
    follow; ``bases`` are the policies that they make. ``lengths``: ``n`` of surfaces, the number of items
    where the request names none. Raises ValueError for an invalid override, also of an arm on a surface."""

    def __init__(
        self, base: PolicyConfig, experiments: Sequence[Experiment] = (), surfaces: Surfaces = _NO_SURFACES
    ) -> None:
        self._experiments, self.bases = tuple(experiments), {"": base}
        self.lengths = dict[str, int]()
        for name, changes in surfaces.items():
            if not name:
                raise ValueError("surfaces has the name '', expected a request's, e.g. feed")
            overrides = dict(changes)
            n = self.lengths[name] = overrides.pop("n", LENGTH)
            valid = type(n) is int and 1 <= n <= MAX_LIST_LENGTH
            check(valid, f"surfaces.{name}.n", n, f"1 to {MAX_LIST_LENGTH} items")
            self.bases[name] = _changed(base, Arm("surface", 1.0, overrides), f"surfaces.{name}")
        for surface, experiment in product(self.bases, experiments):
            for arm in experiment.arms:
                where = f"{experiment.name}: arm {arm.name} on the surface {surface!r}"
                _changed(self.bases[surface], arm, where)
        self._cache: dict[tuple[str | None, ...], Policy] = {}

    def resolve(self, user_id: Id, surface: str = "") -> Policy:
        surface = surface if surface in self.bases else ""
        arms = [assign(user_id, experiment) for experiment in self._experiments]
        # All users of an interleaving get the same policy, whichever arm the hash gives them.
        chosen = (
            None if arm is None else INTERLEAVED if experiment.interleaves else arm.name
            for experiment, arm in zip(self._experiments, arms, strict=True)
        )
        key = (surface, *chosen)
        policy = self._cache.get(key)
        if policy is None:
            policy = self._cache[key] = self._resolve(self.bases[surface], arms)
        return policy

    def _resolve(self, base: PolicyConfig, arms: Sequence[Arm | None]) -> Policy:
        pairs = [(e, arm) for e, arm in zip(self._experiments, arms, strict=True) if arm]
        arm_of = {experiment.name: arm for experiment, arm in pairs}
        names = {name: arm.name for name, arm in arm_of.items()}
        lines = (arm_line_name(name, arm.name) for name, arm in arm_of.items() if arm.trains)
        line = next(lines, "")
        interleaving = next((experiment for experiment, _ in pairs if experiment.interleaves), None)
        if interleaving is None:
            config = apply_overrides(base, list(arm_of.values()))
            key = digest_of(f"{digest(config)} {line}") if line else digest(config)
            return Policy(config, key, names, line)
        rivals = []
        for arm in interleaving.arms:  # each with the overrides of the user's other arms
            others = arm_of | {interleaving.name: arm}
            config = apply_overrides(base, list(others.values()))
            rivals.append((arm.name, Policy(config, digest(config))))
        names |= {interleaving.name: INTERLEAVED}
        texts = (INTERLEAVED, *(f"{name} {rival.digest}" for name, rival in rivals), line)
        key = digest_of(" ".join(texts))
        return Policy(rivals[0][1].config, key, names, line, tuple(rivals))


def _changed(base: PolicyConfig, arm: Arm, where: str) -> PolicyConfig:
    try:
        return apply_overrides(base, [arm], "policy")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
