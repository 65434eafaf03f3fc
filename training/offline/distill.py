"""A line that learns from another's probabilities beside the labels: an average becomes one line.

The target of each output is what happened, and by ``share`` what the teacher says (Hinton, Vinyals and Dean
2015, at temperature 1, since a student must be as calibrated as its teacher). The teacher tells before it
learns, so its probabilities are no echo of the label. A teacher may be one line, or the average of several
(training/merging/merge_variants.py). A student is a line like any other, of a model that may be smaller.

Legend: B examples of a lane, L outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.config.system_config import Config
from recsys.model.batch import Jagged
from recsys.model.model import Model
from recsys.model.ranker import loss_per_output
from training.continual.learner import Floats, Lane, Learner

SHARE: Final = 0.5  # of the teacher in the target


@dataclass(frozen=True)
class Taught(Lane):
    """A lane with what the teacher says of its examples, (B, L) probabilities; NaN where it says nothing."""

    taught_BL: Floats


def taught(lane: Lane, taught_BL: Floats) -> Taught:
    """A lane with its teacher's probabilities. Raises ValueError where they are of other examples."""
    expected = (lane.labels_BK.shape[0], lane.labels_BK.shape[1] + 1)
    if taught_BL.shape != expected:
        raise ValueError(f"the teacher's probabilities are {taught_BL.shape}, expected {expected}")
    its = {field.name: getattr(lane, field.name) for field in fields(Lane)}
    return Taught(**its, taught_BL=taught_BL)


class Distiller(Learner):
    """Learns lanes of a ``Taught`` kind; others as any learner does, and so examples that no teacher knows.

    Where labels are open or sampled, the teacher's part of the target is taken as it stands: it says the
    chance of the final label, which is what the model's logit is of (training/continual/open_labels.py).
    """

    def __init__(
        self,
        model: Model,
        jagged: Callable[[Jagged], Jagged] | None = None,
        device: str = "cpu",
        share: float = SHARE,
    ) -> None:
        """``share``: the teacher's in the target, 0 to 1. Raises ValueError for another."""
        super().__init__(model, jagged, device)
        self.share = checked_share(share)

    def _descended(self, lane: Lane, logits_BL: Tensor, losses_BL: Tensor) -> Tensor:
        if not isinstance(lane, Taught):
            return losses_BL
        says_BL = np.isfinite(lane.taught_BL)
        share_BL = torch.from_numpy(np.where(says_BL, np.float32(self.share), np.float32(0)))
        wanted_BL = torch.from_numpy(np.where(says_BL, lane.taught_BL, np.float32(0)))
        said_BL = loss_per_output(logits_BL, wanted_BL)
        return (1 - share_BL) * losses_BL + share_BL * said_BL


def checked_share(share: float) -> float:
    """A share of a teacher in the target. Raises ValueError where it is none."""
    if not 0 <= share <= 1:
        raise ValueError(
            f"the teacher's share is {share}, expected 0 (labels alone) to 1 (the teacher alone)"
        )
    return share


def student_of(config: Config) -> Config:
    """The configuration of a line that answers for its teacher: half as wide, its rows published as int8."""
    model = config.model
    small = replace(
        model, dim=max(4, model.dim // 2), hidden=tuple(max(16, h // 2) for h in model.hidden)
    )
    return replace(
        config,
        model=small,
        parameter_server=replace(config.parameter_server, delta_format="int8"),
    )
