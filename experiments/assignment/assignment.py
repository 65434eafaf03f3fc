"""Who is in which arm: a hash, no state. Layers are independent, and so are the experiments' draws."""

from typing import Final

from experiments.assignment.definition import Arm, Experiment
from recsys.events.hashing import Id, uniform

_SEED: Final = 0  # changing it draws every user of every experiment anew


def assign(user_id: Id, experiment: Experiment) -> Arm | None:
    """Same user, same arm, on every server; None for who isn't in the experiment.

    The layer decides who is in, the experiment (and its salt) who is where: a user's place in one layer
    says nothing about another, and the next experiment on the same users mixes them anew.
    """
    place = uniform(_SEED, "layer", experiment.layer, user_id)
    if not experiment.offset <= place < experiment.offset + experiment.traffic:
        return None
    draw = uniform(_SEED, "arm", experiment.name, experiment.salt, user_id)
    for arm in experiment.arms:
        if draw < arm.share:
            return arm
        draw -= arm.share
    return experiment.arms[-1]  # the shares' sum is 1 but for rounding
