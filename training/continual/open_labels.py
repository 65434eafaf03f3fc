"""How a lane learns from labels that are still open, and from examples that stand for others.

An example comes when its view ends, so a label that is 0 may yet become 1; and of examples without any
engagement a share r is kept. Both change the odds of what is *seen*, in a known way, so the loss is taken of
what was seen, and the model's logit z stays that of the final label.

**Open labels.** With p = σ(z) the chance that the label becomes true by the horizon, and F the share of such
labels that are true by now (``arrived``), a 1 is seen with chance pF, as in the delayed feedback model
(Chapelle 2014, "Modeling delayed feedback in display advertising"); F is learned beside
(training/joining/delay.py). The loss's slope in z is taken as

    Fσ(z) − label,

whose mean is 0 at the true p at once, whatever the traffic does meanwhile. (Chapelle's log loss has that
slope times (1 − σ) / (1 − Fσ). Without it the loss is convex: a z that once went far up comes back, which
under the log loss it doesn't, as there a 0 says little against a p near 1.)

The alternatives wait for the corrections: negatives that are outweighed when their positives come (Ktena et
al. 2019, "Addressing delayed feedback for continuous training"; Yang et al. 2021, "Capturing delayed feedback
in conversion rate prediction via elapsed-time sampling") are right in the long run, and until then take a new
item's p for pF. The price is that a correction has nothing left to teach the ranker where F was known; it
teaches F, and retrieval, which learns from positives alone. F is one number for all items: where some get
their labels later than others, theirs are taken for too few, and the sum over all stays right.

Where F isn't known (1), a correction undoes the negative: ℓ(1) − ℓ(0) beside the ℓ(0) from before is ℓ(1).

**Sampling.** Of examples without an engagement r is kept (``kept``), of the others all. For each label, let
those that are 0 beside another label that is 1 weigh r: then whatever else an example has, a 0 counts with
chance r, and the odds of a 1 among what counts are 1/r times the true ones (King and Zeng 2001, "Logistic
regression in rare events data"; He et al. 2014, at Facebook, undo it after training). Both together:

    slope = σ(logit of what is seen) − label,   that logit = z + ln F − softplus(z + ln(1 − F)) − ln r

as pF has the odds F eᶻ / (1 + (1 − F) eᶻ). Served is z.

An example that was left out and gets a label later (``sampled_out``) teaches that 1 alone, with weight one:
its zeros are told by those that were kept. Where it was kept, the negative is undone. Both come to ℓ(1).

Legend: B examples, K labels, L outputs (labels, then watch time).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from recsys.events.records import TrainingExample
from recsys.model.ranker import loss_per_output
from training.steps.example_validation import is_open

Floats = NDArray[np.float32]
_CLOSED = -100.0  # ln(1 − F) where F is 1: e to it is nothing in float32


@dataclass(frozen=True)
class Seen:
    """How the logits of what is seen differ from the model's, and which negatives are undone.

    ``log_arrived_BL`` = ln F, ``log_open_BL`` = ln(1 − F), ``log_kept_BL`` = ln r, ``undone_BL`` 0 or 1; for
    watch time nothing differs.
    """

    log_arrived_BL: Tensor
    log_open_BL: Tensor
    log_kept_BL: Tensor
    undone_BL: Tensor

    def logits(self, logits_BL: Tensor) -> Tensor:
        """Of what is seen, before sampling."""
        return logits_BL + self.log_arrived_BL - softplus(logits_BL + self.log_open_BL)


@dataclass(frozen=True)
class Told:
    """What a lane's labels tell. ``seen`` is None where all of them are final and nothing was left out."""

    weights_BL: Floats  # of each output's loss: 0 where there is nothing to learn
    liked_B: Floats  # 1 where the first label became true with this example
    fresh_B: NDArray[np.bool_]  # first examples, which are judged
    stands_B: Floats  # for how many first examples it stands
    happened_BK: Floats  # an unbiased guess at the final labels, label / F
    seen: Seen | None = None

    def losses(self, logits_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """What to descend, for each output (B, L) and without weights: its slopes are meant, not its values,
        unless ``seen`` is None."""
        seen = self.seen
        if seen is None:
            return loss_per_output(logits_BL, targets_BL)
        with torch.no_grad():
            chance_BL = torch.sigmoid(seen.logits(logits_BL) - seen.log_kept_BL)
            slope_BL = chance_BL * (1.0 - seen.undone_BL) - targets_BL
        return slope_BL * logits_BL


def told(examples: Sequence[TrainingExample], labels_BK: Floats) -> Told:
    """What the labels (0 or 1) of some examples tell."""
    size, labels = labels_BK.shape
    ones = np.ones((size, labels + 1), np.float32)
    if not any([e.correction or is_open(e) for e in examples]):
        return Told(ones, labels_BK[:, 0], np.ones(size, bool), ones[:, 0], labels_BK)
    kept_B1 = np.array([[e.kept] for e in examples], np.float32)
    sampled_out_B1 = np.array([[e.sampled_out] for e in examples])
    again_B1 = np.array([[e.correction] for e in examples]) | sampled_out_B1
    arrived_BK = np.array([e.arrived or [1.0] * labels for e in examples], np.float32)
    previous = [
        e.previous if again else [0.0] * labels for e, again in zip(examples, again_B1, strict=True)
    ]
    new_BK = labels_BK > np.array(previous, np.float32)
    return _told(labels_BK, kept_B1, arrived_BK, again_B1, sampled_out_B1, new_BK)


def told_once(labels_BK: Floats, kept_B: Floats, arrived_BK: Floats) -> Told:
    """What the labels of examples tell of which each is met once: there are no corrections among them, as
    theirs are in the labels already. ``arrived_BK`` is 1 where a label is final."""
    size, labels = labels_BK.shape
    if (kept_B == 1.0).all() and (arrived_BK == 1.0).all():
        ones = np.ones((size, labels + 1), np.float32)
        return Told(ones, labels_BK[:, 0], np.ones(size, bool), ones[:, 0], labels_BK)
    never_B1 = np.zeros((size, 1), np.bool_)
    return _told(labels_BK, kept_B[:, None], arrived_BK, never_B1, never_B1, labels_BK > 0)


def _told(
    labels_BK: Floats,
    kept_B1: Floats,
    arrived_BK: Floats,
    again_B1: NDArray[np.bool_],
    sampled_out_B1: NDArray[np.bool_],
    new_BK: NDArray[np.bool_],
) -> Told:
    negative_B1 = ~labels_BK.any(1, keepdims=True)
    first_BK = np.where((labels_BK > 0) | negative_B1, 1.0, kept_B1)
    weights_BK = np.where(again_B1, new_BK & (arrived_BK > 0), first_BK)
    watch_B1 = np.where(again_B1, 0.0, np.where(negative_B1, 1.0, kept_B1))
    undone_BK = again_B1 & ~sampled_out_B1 & new_BK
    share_BK = np.where(again_B1, 1.0, arrived_BK)
    share_BL = _wider(share_BK, 1.0)
    with np.errstate(divide="ignore"):
        log_open_BL = np.maximum(np.log1p(-share_BL), _CLOSED)
    stands_B1 = np.where(negative_B1, 1.0 / kept_B1, 1.0)
    return Told(
        np.concatenate([weights_BK, watch_B1], 1).astype(np.float32),
        new_BK[:, 0].astype(np.float32),
        ~again_B1[:, 0],
        stands_B1[:, 0].astype(np.float32),
        (labels_BK / share_BK).astype(np.float32),
        Seen(
            torch.from_numpy(np.log(share_BL)),
            torch.from_numpy(log_open_BL),
            torch.from_numpy(_wider(np.log(kept_B1).repeat(labels_BK.shape[1], 1), 0.0)),
            torch.from_numpy(_wider(undone_BK, 0.0)),
        ),
    )


def rehearsing(of: Told, first: int, weight: float) -> Told:
    """As it was told, where examples from ``first`` on are learned again: with a weight, and not judged."""
    weights, liked, fresh = of.weights_BL.copy(), of.liked_B.copy(), of.fresh_B.copy()
    weights[first:] *= weight
    liked[first:] *= weight
    fresh[first:] = False
    return replace(of, weights_BL=weights, liked_B=liked, fresh_B=fresh)


def _wider(of_BK: NDArray[np.generic], watch: float) -> Floats:
    """(B, L) in float32: the last column is watch time's."""
    column = np.full((len(of_BK), 1), watch, np.float32)
    return np.concatenate([of_BK.astype(np.float32), column], 1)
