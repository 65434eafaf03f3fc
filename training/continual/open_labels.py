"""Learns from labels that may still change, and from examples that represent others.

An example is emitted when its view ends, so a label that is 0 may yet become 1; and of examples without any
engagement a share r is kept. Both change the odds of the *observed* labels in a known way, so the loss is
taken of the observed label, and the model's logit z stays that of the final one.

**Open labels.** With p = σ(z) the chance that the label becomes true by the horizon, and F the share of such
labels that are true by now (``arrived``, training/joining/delay.py), a 1 is observed with chance pF, as in
the delayed feedback model (Chapelle 2014, "Modeling delayed feedback in display advertising"). The loss's
slope in z is taken as

    Fσ(z) − label,

whose mean is 0 at the true p. (Chapelle's log loss has that slope times (1 − σ) / (1 − Fσ). Without it the
loss is convex, and a z that once went far up comes back.) F is one number for all items: items whose labels
come later than average are underestimated, and the sum over all stays right. A correction then teaches F and
retrieval alone. Where F is unknown (1), it undoes the negative: ℓ(1) − ℓ(0) added to the earlier ℓ(0) is
ℓ(1).

**Sampling.** Of examples without an engagement r is kept (``kept``), of the others all. For each label, let
those that are 0 beside another label that is 1 weigh r: then a 0 counts with chance r whatever else an
example has, and the odds of a 1 among what counts are 1/r times the true ones (King and Zeng 2001, "Logistic
regression in rare events data"). Both together:

    slope = σ(observed logit) − label,   observed logit = z + ln F − softplus(z + ln(1 − F)) − ln r

as pF has the odds F eᶻ / (1 + (1 − F) eᶻ). Serving uses z. An example that was sampled out and gets a label
later (``sampled_out``) teaches that 1 alone, with weight one: the kept examples represent its zeros.

Legend: B examples, K labels, L outputs (labels, then watch time).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from recsys.events.records import TrainingExample
from recsys.model.ranker import loss_per_output
from training.steps.step_reader import is_open

Floats = NDArray[np.float32]
_CLOSED = -100.0  # ln(1 − F) for F = 1: its exponential is 0 in float32


@dataclass(frozen=True)
class ObservedLabels:
    """How logits of observed labels differ from the model's, and which negatives are undone (0 or 1): ln F,
    ln(1 − F), ln r. Watch time has no difference."""

    log_arrived_BL: Tensor
    log_open_BL: Tensor
    log_kept_BL: Tensor
    undone_BL: Tensor

    def logits(self, logits_BL: Tensor) -> Tensor:
        """Logits of the observed labels, before sampling."""
        return logits_BL + self.log_arrived_BL - softplus(logits_BL + self.log_open_BL)


@dataclass(frozen=True)
class LabelTargets:
    """Learning targets of a lane. ``observed`` is None if all labels are final and nothing is sampled."""

    weights_BL: Floats  # of each output's loss: 0 where there is nothing to learn
    liked_B: Floats  # 1 where the first label became true with this example
    fresh_B: NDArray[np.bool_]  # first examples, which are evaluated
    represented_B: Floats  # number of first examples that each one represents
    unbiased_BK: Floats  # unbiased estimate of the final labels: label / F
    observed: ObservedLabels | None = None

    def losses(self, logits_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """Unweighted losses to descend (B, L); with ``observed`` their slopes are meant, not their values."""
        observed = self.observed
        if observed is None:
            return loss_per_output(logits_BL, targets_BL)
        with torch.no_grad():
            chance_BL = torch.sigmoid(observed.logits(logits_BL) - observed.log_kept_BL)
            slope_BL = chance_BL * (1.0 - observed.undone_BL) - targets_BL
        return slope_BL * logits_BL


def label_targets(examples: Sequence[TrainingExample], labels_BK: Floats) -> LabelTargets:
    """Learning targets of examples with the labels (0 or 1)."""
    if not any([e.correction or is_open(e) for e in examples]):
        return _final_targets(labels_BK)
    labels = labels_BK.shape[1]
    kept_B1 = np.array([[e.sampling_rate] for e in examples], np.float32)
    sampled_out_B1 = np.array([[e.sampled_out] for e in examples])
    again_B1 = np.array([[e.correction] for e in examples]) | sampled_out_B1
    arrived_BK = np.array([e.arrived or [1.0] * labels for e in examples], np.float32)
    pairs = zip(examples, again_B1, strict=True)
    previous = [e.previous if again else [0.0] * labels for e, again in pairs]
    new_BK = labels_BK > np.array(previous, np.float32)
    return _open_targets(labels_BK, kept_B1, arrived_BK, again_B1, sampled_out_B1, new_BK)


def single_pass_targets(labels_BK: Floats, kept_B: Floats, arrived_BK: Floats) -> LabelTargets:
    """Targets of examples that occur once, with corrections merged. ``arrived_BK``: 1 if a label is final."""
    if (kept_B == 1.0).all() and (arrived_BK == 1.0).all():
        return _final_targets(labels_BK)
    never_B1 = np.zeros((len(labels_BK), 1), np.bool_)
    return _open_targets(labels_BK, kept_B[:, None], arrived_BK, never_B1, never_B1, labels_BK > 0)


def _final_targets(labels_BK: Floats) -> LabelTargets:
    size, labels = labels_BK.shape
    ones = np.ones((size, labels + 1), np.float32)
    return LabelTargets(ones, labels_BK[:, 0], np.ones(size, bool), ones[:, 0], labels_BK)


def _open_targets(
    labels_BK: Floats, kept_B1: Floats, arrived_BK: Floats, again_B1: NDArray[np.bool_],
    sampled_out_B1: NDArray[np.bool_], new_BK: NDArray[np.bool_],
) -> LabelTargets:  # fmt: skip
    negative_B1 = ~labels_BK.any(1, keepdims=True)
    first_BK = np.where((labels_BK > 0) | negative_B1, 1.0, kept_B1)
    weights_BK = np.where(again_B1, new_BK & (arrived_BK > 0), first_BK)
    watch_B1 = np.where(again_B1, 0.0, np.where(negative_B1, 1.0, kept_B1))
    undone_BK = again_B1 & ~sampled_out_B1 & new_BK
    share_BK = np.where(again_B1, 1.0, arrived_BK)
    share_BL = _with_watch(share_BK, 1.0)
    with np.errstate(divide="ignore"):
        log_open_BL = np.maximum(np.log1p(-share_BL), _CLOSED)
    represented_B1 = np.where(negative_B1, 1.0 / kept_B1, 1.0)
    return LabelTargets(
        np.concatenate([weights_BK, watch_B1], 1).astype(np.float32),
        new_BK[:, 0].astype(np.float32),
        ~again_B1[:, 0],
        represented_B1[:, 0].astype(np.float32),
        (labels_BK / share_BK).astype(np.float32),
        ObservedLabels(
            torch.from_numpy(np.log(share_BL)),
            torch.from_numpy(log_open_BL),
            torch.from_numpy(_with_watch(np.log(kept_B1).repeat(labels_BK.shape[1], 1), 0.0)),
            torch.from_numpy(_with_watch(undone_BK, 0.0)),
        ),
    )


def _with_watch(columns_BK: NDArray[np.generic], watch: float) -> Floats:
    """Appends the column of watch time: (B, L) in float32."""
    column = np.full((len(columns_BK), 1), watch, np.float32)
    return np.concatenate([columns_BK.astype(np.float32), column], 1)
