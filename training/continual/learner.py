"""Learns one lane of one step: rows and dense parameters in, predictions and gradients out. The predictions
are those of the model before it learned the examples. Parameters live in the shards.

Legend: B examples of the lane, K labels, L outputs (labels, then watch time), U unique keys of a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.shard.lanes import RowGradients
from recsys.config.system_config import tables_of
from recsys.events.event_types import FeatureBlock
from recsys.events.hashing import uniforms
from recsys.events.records import TrainingExample
from recsys.features.columns import ITEM, Entity, entity_measure
from recsys.features.families.rates import Rates
from recsys.features.feature_kernels import LOG_COUNT
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import UnknownFeatureSet
from recsys.model.batch import Batch, Jagged, assemble
from recsys.model.choice_model import choice_rows, choice_size, choice_sums, log_odds, reads_ranker
from recsys.model.model import Lookup, Model, joined, lookup_of, with_missing_row
from recsys.model.prediction_metrics import bin_weights, bins_of
from recsys.model.ranker import Ranker, loss_per_output, targets
from recsys.model.retrieval_vectors import retrieval_loss
from training.continual.open_labels import LabelTargets, label_targets
from training.continual.row_usage import examples_per_row

_HIDDEN: Final = 0.25  # part of the examples that are learned without the context of their list
_HIDDEN_SEED: Final = 0x1157
_STANDING: Final = 4  # bytes of an example's number in the choice of its list of candidates
_WHOLE: Final = 16  # examples: rows of a block of a matrix product
_SMALL: Final = 64  # examples of a lane beyond which one pass for several saves little
Keys = NDArray[np.int64]
Floats = NDArray[np.float32]
Rows = Mapping[str, Floats]
Leaves = Mapping[str, torch.Tensor]  # rows to find the gradients of


@dataclass(frozen=True)
class Lane:
    """The examples of one lane as arrays, which need no rows yet."""

    batch: Batch
    lookup: Lookup
    labels_BK: Floats
    watch_ms_B: Floats
    label_targets: LabelTargets
    _: KW_ONLY
    choices: Sequence["LaneChoice"] = ()


@dataclass(frozen=True)
class LaneChoice:
    """A choice in a lane, of the example ``taken``: rows of the choice model (R, 1 + F), itself first, and
    the examples that they are of (R,), where the ranker's log odds are an input."""

    taken: int
    rows_RC: Floats
    places_R: Keys | None = None

    def rows_with(self, odds_B: Floats) -> Floats:
        """The rows, with the ranker's log odds of the lane's examples where they are an input."""
        if self.places_R is None:
            return self.rows_RC
        return np.column_stack([self.rows_RC, odds_B[self.places_R]])


@dataclass(frozen=True)
class Learned:
    """Gradients of one lane, summed over its examples, and its predictions before learning."""

    probabilities_BL: Floats
    gradients: dict[str, RowGradients]
    dense: Floats
    metrics: dict[str, float]


class Learner:
    """Computes lanes with a model whose dense parameters are set from outside."""

    reads: type[TrainingExample] = TrainingExample  # the type that examples are decoded as

    def __init__(
        self, model: Model, jagged: Callable[[Jagged], Jagged] | None = None, device: str = "cpu"
    ) -> None:
        """``jagged`` may replace a batch's jagged tensor (training/continual/jagged.py). ``device`` of the
        network and a lane's rows. Raises ValueError for "cuda" without a CUDA device."""
        self.model = model.to(checked_device(device))
        self._device = device
        self.features: FeatureSet = model.features
        self._jagged = jagged
        # By number of lanes and examples of each; None where bits differ from those of single lanes.
        self._joint_models: dict[tuple[int, int], Model | None] = {}

    def export(self) -> dict[str, NDArray[Any]]:
        """Arrays for a snapshot of the line, in addition to its rows."""
        return {}

    def prepare(self, examples: Sequence[TrainingExample]) -> Lane:
        """Arrays of a lane's examples. Raises UnknownFeatureSet."""
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
        lane = self.lane_of(batch, labels, watch_ms, label_targets(examples, labels))
        find = self._choices_of_lists if reads_ranker(self.features) else self._choices
        return replace(lane, choices=find(examples, lane))

    def _choices(self, examples: Sequence[TrainingExample], lane: Lane) -> list[LaneChoice]:
        """Choices whose rows are in the example of the taken item."""
        pairs = [(at, choice_rows(e.choice, self.features)) for at, e in enumerate(examples) if e.choice]
        return [LaneChoice(at, rows) for at, rows in pairs if rows is not None]

    def _choices_of_lists(self, examples: Sequence[TrainingExample], lane: Lane) -> list[LaneChoice]:
        """Choices whose rows are the examples of a list of candidates, as far as they are in this lane."""
        lists = dict[tuple[int, int], list[int]]()
        for at, example in enumerate(examples):
            if len(example.choice) == _STANDING:
                lists.setdefault((example.partition, example.offset), []).append(at)
        out = []
        for places in lists.values():
            taken = [at for at in places if lane.label_targets.liked_B[at]]
            others = [at for at in places if at not in taken]
            for at in taken if others else ():
                of = np.array([at, *others], np.int64)
                logs = np.frombuffer(b"".join(examples[place].choice for place in of), np.float32)
                if np.isfinite(logs).all():
                    rows = np.column_stack([logs, lane.batch.dense_BF[of]])
                    out.append(LaneChoice(at, rows, of))
        return out

    def lane_of(self, batch: Batch, labels_BK: Floats, watch_ms_B: Floats, targets: LabelTargets) -> Lane:
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

    def learn(self, lane: Lane, rows: Rows, dense: Floats) -> Learned:
        """Predicts, and returns the gradients. ``rows[table]`` belong to ``lane.lookup.keys``."""
        return self._learn(self.model, [lane], [rows], dense)[0]

    def learn_lanes(self, lanes: Sequence[Lane], rows: Sequence[Rows], dense: Floats) -> list[Learned]:
        """``learn`` for each lane. Small ones of one size are computed in one pass, if that gives the same
        bits: it depends on the processor, and on the sizes of the model."""
        number, sizes = len(lanes), {len(lane.batch) for lane in lanes}
        size = max(sizes, default=0)
        small = number > 1 and len(sizes) == 1 and size % _WHOLE == 0 and size <= _SMALL
        if self.may_join_lanes and small:
            if (number, size) not in self._joint_models:
                self._joint_models[number, size] = self._verified_joint_model(number, size)
            if model := self._joint_models[number, size]:
                return self._learn(model, lanes, rows, dense)
        return [self.learn(lane, own, dense) for lane, own in zip(lanes, rows, strict=True)]

    def _verified_joint_model(self, number: int, size: int) -> Model | None:
        """A model that computes ``number`` lanes of ``size`` examples in one pass; None if a bit differs from
        each lane's own pass on this machine. The lanes compared are random, and the same in every process:
        those of a step may have gradients of 0 where others would differ."""
        model, draw = self.model.by_lane(number), np.random.default_rng(0)
        lanes, rows = zip(*[self._random_lane(size, draw) for _ in range(number)], strict=True)
        dense = draw.random(model.dense_size(), np.float32) - np.float32(0.5)
        together = [_bytes(one) for one in self._learn(model, lanes, rows, dense)]
        pairs = zip(lanes, rows, strict=True)
        alone = [_bytes(*self._learn(self.model, [lane], [own], dense)) for lane, own in pairs]
        return model if together == alone else None

    def _random_lane(self, size: int, draw: np.random.Generator) -> tuple[Lane, Rows]:
        own, history = self.features, (size, self.features.history_length)
        shapes = (size, own.user_columns), (size, own.item_columns), (*history, own.history_keys)
        user, items, entries = (draw.integers(1, 4 * size, shape) for shape in shapes)
        outcomes = draw.random((*history, own.outcomes), np.float32)
        dense = draw.random((size, self.model.ranker.shape.dense), np.float32)
        labels = draw.random((size, len(own.schema.labels)), np.float32).round()
        batch = assemble(own, user, items, entries, outcomes, dense)
        lane = self.lane_of(batch, labels, 9_000 * labels[:, 0], label_targets((), labels))
        dims = {table.name: table.dim for table in tables_of(self.model.config)}
        sizes = {t: (len(keys), dims[t]) for t, keys in lane.lookup.keys.items()}
        return lane, {t: draw.random(shape, np.float32) for t, shape in sizes.items()}

    @property
    def may_join_lanes(self) -> bool:
        """Whether several lanes may be computed in one pass: not where a subclass does more in ``learn``."""
        is_plain = type(self).learn is Learner.learn and type(self.model.ranker) is Ranker
        return self._device == "cpu" and is_plain

    def _learn(
        self, model: Model, lanes: Sequence[Lane], rows: Sequence[Rows], dense: Floats
    ) -> list[Learned]:
        """Learns lanes of one size with ``model``, whose parameters are ``by_lane`` if they are several."""
        model.write_dense(dense)
        for parameter in model.dense_parameters:
            parameter.grad = None
        device = self._device
        leaves = [
            {t: with_missing_row(own[t]).to(device).requires_grad_() for t in lane.lookup.keys}
            for lane, own in zip(lanes, rows, strict=True)
        ]
        pairs = [*zip(lanes, leaves, strict=True)]
        inputs = [model.ranker_inputs(n.batch, n.lookup, own["features"]) for n, own in pairs]
        logits_BL = model.ranker(*joined(inputs))
        total, judged, size = torch.zeros(()), [], len(lanes[0].batch)
        # Lane by lane: torch computes the last elements of an array by other instructions.
        for lane, own_BL in zip(lanes, torch.split(logits_BL.cpu(), size), strict=True):
            watch_ms = torch.from_numpy(lane.watch_ms_B)
            targets_BL = targets(torch.from_numpy(lane.labels_BK), watch_ms)
            losses_BL = lane.label_targets.losses(own_BL, targets_BL)
            losses = self._training_losses(lane, own_BL, losses_BL)
            total = total + (losses * self._output_weights(lane)).sum()
            eval_losses = self._eval_losses(lane, losses_BL, own_BL, targets_BL)
            judged.append((eval_losses, torch.sigmoid(own_BL.detach()).numpy()))
        if size > 1 and self._learns_retrieval:
            total = total + model.config.retrieval_weight * self._retrieval(model, pairs)
        total.backward()  # type: ignore[no-untyped-call]
        out, of_dense = [], model.dense_gradient().reshape(len(lanes), -1)
        for (lane, own), (eval_losses, probabilities), own_dense in zip(pairs, judged, of_dense, strict=True):
            metrics = self._metrics(lane, eval_losses, probabilities)
            counts, gradients = examples_per_row(lane.lookup), {}
            for name, keys in lane.lookup.keys.items():
                gradients[name] = RowGradients(keys, _gradient(own[name]), counts[name])
                metrics[f"moved.{name}"] = float(gradients[name].gradients.any(1).sum())
            own_dense = self._with_choices(lane, dense, own_dense, probabilities[:, 0])
            out.append(Learned(probabilities, gradients, own_dense, metrics))
        return out

    def _with_choices(self, lane: Lane, dense: Floats, gradient: Floats, probabilities_B: Floats) -> Floats:
        """A dense gradient with the sums of the choice model, whose parameters are the last."""
        first, odds_B = len(gradient) - choice_size(self.features), log_odds(probabilities_B)
        liked = lane.label_targets.liked_B[[choice.taken for choice in lane.choices]]
        rows = [choice.rows_with(odds_B) for choice in lane.choices]
        sums = choice_sums(dense[first:], rows, liked, self.features)
        return np.concatenate([gradient[:first], sums])

    def predict(self, lane: Lane, rows: Mapping[str, Floats], dense: Floats) -> Floats:
        """The probabilities (B, L) alone, with the arguments of ``learn``."""
        self.model.write_dense(dense)
        with torch.no_grad():
            features = with_missing_row(rows["features"]).to(self._device)
            logits_BL = self.model.rank(lane.batch, lane.lookup, features)
            out: Floats = torch.sigmoid(logits_BL).cpu().numpy()
        return out

    def _training_losses(self, lane: Lane, logits_BL: torch.Tensor, losses_BL: torch.Tensor) -> torch.Tensor:
        """The losses to descend, unweighted by output; subclasses may change them."""
        return losses_BL

    def _output_weights(self, lane: Lane) -> torch.Tensor:
        """The first label counts fully, the others and watch time by the side weight."""
        side = self.model.config.side_weight
        weights = torch.full((lane.labels_BK.shape[1] + 1,), side)
        weights[0] = 1.0
        return weights * torch.from_numpy(lane.label_targets.weights_BL)

    def _retrieval(self, model: Model, pairs: Sequence[tuple[Lane, Leaves]]) -> torch.Tensor:
        inputs = [model.user_inputs(n.batch, n.lookup, o["users"], o["items"]) for n, o in pairs]
        items, *others = joined([self._items(model, *pair) for pair in pairs])
        ids, liked, log_q = (column.to(self._device) for column in others)
        sharpness, users = model.user_side.sharpness, model.user_side(*joined(inputs))
        return retrieval_loss(users, items, ids, liked, sharpness, log_q).cpu()

    def _items(self, model: Model, lane: Lane, leaves: Leaves) -> tuple[torch.Tensor, ...]:
        """Vectors of a lane's items, their ids, whether they were liked, and how often they are shown."""
        batch, liked = lane.batch, torch.from_numpy(lane.label_targets.liked_B)
        vectors = model.item_vectors(batch, lane.lookup, leaves["items"])
        return vectors, torch.from_numpy(batch.item_B), liked, self._log_frequencies(batch)

    def _log_frequencies(self, batch: Batch) -> torch.Tensor:
        """Logarithms of how often each item is shown (B,), as counted when it was; zeros without a count."""
        slowest_h, item = self.features.declared.half_lives_h[-1], Entity(ITEM, False, "", ITEM)
        place = self.features.places.get((Rates.name, entity_measure(item), "shown", slowest_h))
        if place is None:
            return torch.zeros(len(batch))
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


def _bytes(learned: Learned) -> list[bytes]:
    gradients = [rows.gradients for rows in learned.gradients.values()]
    return [array.tobytes() for array in (learned.probabilities_BL, learned.dense, *gradients)]


def batch_of(features: FeatureSet, size: int, dense_width: int, packed: Callable[[str], Any]) -> Batch:
    """A batch of ``size`` examples. ``packed``: writable bytes of a column of all feature blocks."""

    def column(name: str, kind: type[np.generic], *shape: int) -> NDArray[Any]:
        return np.frombuffer(packed(name), kind).reshape(size, *shape)

    length, dense = features.history_length, column("dense", np.float32, dense_width)
    user = column("user_keys", np.int64, features.user_columns)
    items = column("item_keys", np.int64, features.item_columns)
    if features.list_columns:
        _hide_lists(dense, features.list_columns, user[:, 0] ^ items[:, 0])
    return assemble(
        features, user, items, column("history", np.int64, length, features.history_keys),
        column("outcomes", np.float32, length, features.outcomes), dense,
    )  # fmt: skip


def _hide_lists(dense_BF: Floats, columns: int, keys_B: Keys) -> None:
    """Clears the columns of lists in a hashed part of the examples, in place: candidates are first ranked
    without them."""
    hidden_B = uniforms(_HIDDEN_SEED, keys_B, 1)[:, 0] < _HIDDEN
    dense_BF[hidden_B, -columns:] = 0.0


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
