"""Learns one lane of one step: rows and dense parameters in, predictions and gradients out. The predictions
are those of the model before it learned the examples. Parameters live in the shards.

Legend: B examples of the lane, K labels, L outputs (labels, then watch time), U unique keys of a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.shard.lanes import RowGradients
from recsys.events.event_types import FeatureBlock
from recsys.events.hashing import uniforms
from recsys.events.records import TrainingExample
from recsys.features.feature_kernels import LOG_COUNT
from recsys.features.feature_set import FeatureSet, UnknownFeatureSet
from recsys.model.batch import Batch, Jagged, assemble
from recsys.model.model import Lookup, Model, lookup_of, with_missing_row
from recsys.model.prediction_metrics import bin_weights, bins_of
from recsys.model.ranker import loss_per_output, targets
from recsys.model.retrieval_vectors import retrieval_loss
from training.continual.open_labels import LabelTargets, label_targets, with_rehearsed
from training.continual.row_usage import examples_per_row

_HIDDEN: Final = 0.25  # part of the examples that are learned without the context of their list
_HIDDEN_SEED: Final = 0x1157
Keys = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Lane:
    """The examples of one lane as arrays, which need no rows yet."""

    batch: Batch
    lookup: Lookup
    labels_BK: Floats
    watch_ms_B: Floats
    label_targets: LabelTargets


@dataclass(frozen=True)
class Learned:
    """Gradients of one lane, summed over its examples, and its predictions before learning."""

    probabilities_BL: Floats
    gradients: dict[str, RowGradients]
    dense: Floats
    metrics: dict[str, float]


class Learner:
    """Computes lanes with a model whose dense parameters are set from outside."""

    def __init__(
        self, model: Model, jagged: Callable[[Jagged], Jagged] | None = None, device: str = "cpu"
    ) -> None:
        """``jagged`` may replace a batch's jagged tensor (training/continual/jagged.py). ``device`` of the
        network and a lane's rows. Raises ValueError for "cuda" without a CUDA device."""
        self.model = model.to(checked_device(device))
        self._device = device
        self.features: FeatureSet = model.features
        self._jagged = jagged

    def prepare(
        self,
        examples: Sequence[TrainingExample],
        rehearsed: Sequence[TrainingExample] = (),
        weight: float = 1.0,
    ) -> Lane:
        """Arrays of a lane's examples, and of rehearsed ones with a weight. Raises UnknownFeatureSet."""
        first, examples = len(examples), [*examples, *rehearsed]
        blocks = [_features(e, self.features.digest) for e in examples]
        # Column by column over all blocks: array by array takes five times as long.
        batch = batch_of(
            self.features,
            len(blocks),
            self.model.ranker.shape.dense,
            lambda name: bytearray().join([getattr(block, name) for block in blocks]),
        )
        labels = np.array([e.labels for e in examples], np.float32)
        watch_ms = np.array([e.watch_ms for e in examples], np.float32)
        targets = label_targets(examples, labels)
        if rehearsed:
            targets = with_rehearsed(targets, first, weight)
        return self.lane_of(batch, labels, watch_ms, targets)

    def lane_of(
        self, batch: Batch, labels_BK: Floats, watch_ms_B: Floats, targets: LabelTargets
    ) -> Lane:
        """A lane of examples that are arrays already."""
        if self._jagged:
            batch = replace(batch, sparse=self._jagged(batch.sparse))
        return Lane(batch, self._lookup(batch), labels_BK, watch_ms_B, targets)

    def _lookup(self, batch: Batch) -> Lookup:
        """The rows that a batch learns: without retrieval none of users' and items' vectors."""
        lookup = lookup_of(batch)
        if self._learns_retrieval:
            return lookup
        return replace(lookup, keys={"features": lookup.keys["features"]})

    @property
    def _learns_retrieval(self) -> bool:
        return bool(self.features.history_length and self.model.config.retrieval_weight)

    def learn(self, lane: Lane, rows: Mapping[str, Floats], dense: Floats) -> Learned:
        """Predicts, and returns the gradients. ``rows[table]`` belong to ``lane.lookup.keys``."""
        self.model.write_dense(dense)
        for parameter in self.model.dense_parameters:
            parameter.grad = None
        own = {name: with_missing_row(rows[name]) for name in lane.lookup.keys}
        leaves = {name: values.to(self._device).requires_grad_() for name, values in own.items()}
        logits_BL = self.model.rank(lane.batch, lane.lookup, leaves["features"]).cpu()
        targets_BL = targets(torch.from_numpy(lane.labels_BK), torch.from_numpy(lane.watch_ms_B))
        losses_BL = lane.label_targets.losses(logits_BL, targets_BL)
        losses = self._training_losses(lane, logits_BL, losses_BL)
        total = (losses * self._output_weights(lane)).sum()
        if len(lane.batch) > 1 and self._learns_retrieval:
            total = total + self.model.config.retrieval_weight * self._retrieval(lane, leaves)
        total.backward()  # type: ignore[no-untyped-call]
        probabilities = torch.sigmoid(logits_BL.detach()).numpy()
        counts = examples_per_row(lane.lookup)
        gradients = {
            name: RowGradients(keys, _gradient(leaves[name]), counts[name])
            for name, keys in lane.lookup.keys.items()
        }
        eval_losses = self._eval_losses(lane, losses_BL, logits_BL, targets_BL)
        metrics = self._metrics(lane, eval_losses, probabilities)
        for name, rows_of in gradients.items():
            metrics[f"moved.{name}"] = float(rows_of.gradients.any(1).sum())
        return Learned(probabilities, gradients, self.model.dense_gradient(), metrics)

    def predict(self, lane: Lane, rows: Mapping[str, Floats], dense: Floats) -> Floats:
        """The probabilities (B, L) alone, with the arguments of ``learn``."""
        self.model.write_dense(dense)
        with torch.no_grad():
            features = with_missing_row(rows["features"]).to(self._device)
            logits_BL = self.model.rank(lane.batch, lane.lookup, features)
            out: Floats = torch.sigmoid(logits_BL).cpu().numpy()
        return out

    def _training_losses(
        self, lane: Lane, logits_BL: torch.Tensor, losses_BL: torch.Tensor
    ) -> torch.Tensor:
        """The losses to descend, unweighted by output; subclasses may change them."""
        return losses_BL

    def _output_weights(self, lane: Lane) -> torch.Tensor:
        """The first label counts fully, the others and watch time by the side weight."""
        side = self.model.config.side_weight
        weights = torch.full((lane.labels_BK.shape[1] + 1,), side)
        weights[0] = 1.0
        return weights * torch.from_numpy(lane.label_targets.weights_BL)

    def _retrieval(self, lane: Lane, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
        users = self.model.user_vectors(lane.batch, lane.lookup, leaves["users"], leaves["items"])
        items = self.model.item_vectors(lane.batch, lane.lookup, leaves["items"])
        liked = torch.from_numpy(lane.label_targets.liked_B).to(self._device)
        ids = torch.from_numpy(lane.batch.item_B).to(self._device)
        sharpness, log_q = self.model.user_side.sharpness, self._log_frequencies(lane.batch)
        return retrieval_loss(users, items, ids, liked, sharpness, log_q.to(self._device)).cpu()

    def _log_frequencies(self, batch: Batch) -> torch.Tensor:
        """Logarithms of how often each item is shown (B,), as counted when it was; zeros without a count."""
        column = f"item/shown.{self.features.speeds[-1]}"
        if column not in self.features.dense_names:
            return torch.zeros(len(batch))
        place = self.features.dense_names.index(column)
        return torch.from_numpy(float(LOG_COUNT) * batch.dense_BF[:, place])

    def _eval_losses(
        self, lane: Lane, losses_BL: torch.Tensor, logits_BL: torch.Tensor, targets_BL: torch.Tensor
    ) -> Floats:
        """Losses of the observed labels without sampling; the learned losses if all labels are final."""
        observed = lane.label_targets.observed
        if observed is not None:
            losses_BL = loss_per_output(observed.logits(logits_BL), targets_BL)
        out: Floats = losses_BL.detach().numpy()
        return out

    def _metrics(self, lane: Lane, losses_BL: Floats, probabilities_BL: Floats) -> dict[str, float]:
        """Prequential sums over the lane's first-time examples, and those they represent; for the first label
        also the number, and the number of positives, in each bin of its probability."""
        lane_targets, fresh = lane.label_targets, lane.label_targets.fresh_B
        weights = lane_targets.represented_B[fresh]
        out = {"examples": float(weights.sum())}
        columns = losses_BL, probabilities_BL, lane_targets.unbiased_BK
        # Labels in rows: the sums are those of single columns, bit for bit.
        sums = [(np.ascontiguousarray(c[fresh].T) * weights).sum(1).tolist() for c in columns]
        names = ("loss", "predicted", "happened")
        for k, label in enumerate(self.features.schema.labels):
            out |= {f"{name}.{label}": own[k] for name, own in zip(names, sums, strict=True)}
        first, bins = self.features.schema.labels[0], bins_of(probabilities_BL[fresh, 0])
        happened = lane_targets.unbiased_BK[fresh, 0] * weights
        out |= {f"bin.{first}.{n}": count for n, count in bin_weights(bins, weights).items()}
        out |= {f"bin1.{first}.{n}": count for n, count in bin_weights(bins, happened).items()}
        return out


def batch_of(
    features: FeatureSet, size: int, dense_width: int, packed: Callable[[str], Any]
) -> Batch:
    """A batch of ``size`` examples. ``packed``: writable bytes of a column of all feature blocks."""

    def column(name: str, kind: type[np.generic], *shape: int) -> NDArray[Any]:
        return np.frombuffer(packed(name), kind).reshape(size, *shape)

    length, dense = features.history_length, column("dense", np.float32, dense_width)
    user = column("user_keys", np.int64, features.user_columns)
    items = column("item_keys", np.int64, features.item_columns)
    if features.compared:
        _hide_lists(dense, len(features.compared), user[:, 0] ^ items[:, 0])
    return assemble(
        features,
        user,
        items,
        column("history", np.int64, length, features.history_keys),
        column("outcomes", np.float32, length, features.outcomes),
        dense,
    )


def _hide_lists(dense_BF: Floats, compared: int, keys_B: Keys) -> None:
    """Clears how items compare within their list in a hashed part of the examples, in place: candidates are
    first ranked without it."""
    hidden_B = uniforms(_HIDDEN_SEED, keys_B, 1)[:, 0] < _HIDDEN
    dense_BF[hidden_B, -2 * compared :] = 0.0


def _features(example: TrainingExample, digest: str) -> FeatureBlock:
    block = example.features
    if block is None:
        raise ValueError("an example has no features; it can't be learned from before a backfill")
    if block.feature_set != digest:
        raise UnknownFeatureSet(
            f"feature set is {block.feature_set!r}, expected {digest!r}: "
            "the model must be trained on, and serve, the set that was logged"
        )
    return block


def checked_device(device: str) -> str:
    """Returns ``trainer.device`` if it is available, else raises ValueError."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "trainer.device is 'cuda', and torch sees no CUDA device here: set it to cpu, or see that the "
            "machine has one, with its driver, and that torch was built for CUDA (torch.version.cuda is "
            f"{torch.version.cuda})"
        )
    return device


def _gradient(leaf: torch.Tensor) -> Floats:
    """The gradient without the padding row of zeros."""
    if leaf.grad is None:
        return np.zeros((leaf.shape[0] - 1, leaf.shape[1]), np.float32)
    out: Floats = leaf.grad[:-1].cpu().numpy()
    return out
