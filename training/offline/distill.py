"""Distils a teacher's probabilities into a line that also learns the labels.

The target of each output is the label, mixed by ``share`` with the teacher's probability (Hinton, Vinyals and
Dean 2015, at temperature 1, since a student must be as calibrated as its teacher). The teacher predicts
before it learns, so its probabilities are no echo of the label.

Legend: B examples of a lane, L outputs.
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.model.model import Model
from recsys.model.ranker import loss_per_output
from training.continual.learner import Floats, Lane, Learner

SHARE: Final = 0.5  # of the teacher in the target


@dataclass(frozen=True)
class TaughtLane(Lane):
    """A lane with its teacher's probabilities (B, L); NaN without a prediction."""

    taught_BL: Floats


def with_teacher(lane: Lane, taught_BL: Floats) -> TaughtLane:
    """Adds a teacher's probabilities to a lane. Raises ValueError if the shapes differ."""
    expected = (lane.labels_BK.shape[0], lane.labels_BK.shape[1] + 1)
    if taught_BL.shape != expected:
        raise ValueError(f"the teacher's probabilities are {taught_BL.shape}, expected {expected}")
    columns = {field.name: getattr(lane, field.name) for field in fields(Lane)}
    return TaughtLane(**columns, taught_BL=taught_BL)


class Distiller(Learner):
    """Learns ``TaughtLane``s; other lanes, and examples without a prediction, as any learner does. Where
    labels are open or sampled, the teacher's part of the target is the probability of the final label, as is
    the model's (training/continual/open_labels.py)."""

    def __init__(self, model: Model, share: float = SHARE) -> None:
        """``share``: the teacher's in the target, 0 to 1. Raises ValueError for another."""
        super().__init__(model)
        self.share = checked_share(share)

    def _training_losses(self, lane: Lane, logits_BL: Tensor, losses_BL: Tensor) -> Tensor:
        if not isinstance(lane, TaughtLane):
            return losses_BL
        is_taught_BL = np.isfinite(lane.taught_BL)
        share_BL = torch.from_numpy(np.where(is_taught_BL, np.float32(self.share), np.float32(0)))
        target_BL = torch.from_numpy(np.where(is_taught_BL, lane.taught_BL, np.float32(0)))
        distillation_BL = loss_per_output(logits_BL, target_BL)
        return (1 - share_BL) * losses_BL + share_BL * distillation_BL


def checked_share(share: float) -> float:
    """Returns a teacher's share in the target. Raises ValueError outside of 0 to 1."""
    if not 0 <= share <= 1:
        raise ValueError(
            f"the teacher's share is {share}, expected 0 (labels alone) to 1 (the teacher alone)"
        )
    return share
