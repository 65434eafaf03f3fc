"""Predictions stay calibrated though labels are open and negatives are sampled: the real joiner and learner
on a stream whose chances are known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from parameter_server.table.table import initial_rows
from recsys.config.system_config import JoinConfig, tables_of
from recsys.events.event_types import Engagement, Event, Impression, ServedItem
from recsys.events.records import Example
from recsys.model.model import build_model
from tests.support.training.small_feed import FEATURES, block, example, toy_config
from training.continual.learner import Learner
from training.continual.open_labels import label_targets
from training.joining.joiner import Joiner

pytestmark = pytest.mark.steady

LABELS = FEATURES.schema.labels
CONFIG = toy_config()
MEAN_S = 100.0  # of the delay
WINDOW_S = MEAN_S / 10
HORIZON_S = 3 * MEAN_S
PER_S = 40.0  # of 9,600 judged ones the mean label is known to 0.02, less than half of what is allowed
ITEMS = 10
Chance = Callable[[int, float], float]


def usual(item: int, at_s: float) -> float:
    return 0.3 + 0.3 * item / ITEMS


@cache
def _block(item: int) -> object:
    return block(item)


@dataclass(frozen=True)
class Stream:
    """Shown items with both labels after an exponential delay, by chances of an item at a time."""

    examples: int
    chance: Chance = usual
    mean_s: float = MEAN_S
    per_s: float = PER_S


Final = tuple[float, bool, bool]  # shown at, labels by the horizon


def happened(stream: Stream) -> tuple[list[Event], list[Final]]:
    draw = np.random.default_rng(5)
    events, final = list[Event](), list[Final]()
    for n in range(stream.examples):
        at_s, item = n / stream.per_s, int(draw.integers(ITEMS))
        where = dict(request_id=f"r{n}", user_id="u")
        events.append(
            Impression(time_ms=int(at_s * 1000), items=[ServedItem(item_id=item)], features=_block(item),
                       shown=True, **where)  # type: ignore[arg-type]
        )  # fmt: skip
        became = []
        for label, share in zip(LABELS, (1.0, 0.5), strict=True):
            delay_s = draw.exponential(stream.mean_s)
            became.append(draw.random() < stream.chance(item, at_s) * share and delay_s < HORIZON_S)
            if became[-1]:
                time_ms = int((at_s + delay_s) * 1000)
                events.append(
                    Engagement(time_ms=time_ms, item_id=item, kind=label, **where)  # type: ignore[arg-type]
                )
        final.append((at_s, became[0], became[1]))
    end_ms = stream.examples / stream.per_s * 1000
    return sorted((e for e in events if e.time_ms < end_ms), key=lambda e: e.time_ms), final


@lru_cache(maxsize=1)  # tests learn from the same examples in several ways
def joined(stream: Stream, negatives: float) -> tuple[list[list[Example]], list[Final], Joiner]:
    """Examples by the event that made them, the final labels, and the joiner."""
    config = JoinConfig(window_s=WINDOW_S, horizon_s=HORIZON_S - WINDOW_S, negatives=negatives)
    joiner, (events, final) = Joiner(0, LABELS, config, shown_by="impression"), happened(stream)
    made = [joiner.feed(offset, event) for offset, event in enumerate(events)]
    return made, final, joiner  # type: ignore[return-value]  # no erased examples


class Trainer:
    """Steps of the real learner on rows and dense parameters that are held here. It predicts, then learns."""

    def __init__(self, rate: float = 0.004) -> None:
        self.model = build_model(FEATURES, replace(CONFIG.model, retrieval_weight=0.0))
        self.learner, self.rate = Learner(self.model), rate
        self.dense = self.model.read_dense()
        self.rows: dict[tuple[str, int], np.ndarray] = {}
        self.sums: list[tuple[float, dict[str, float]]] = []  # by the time of the newest example

    def step(self, examples: list[Example]) -> None:
        lane = self.learner.prepare(examples)
        rows = {
            table.name: np.array([self._row(table, int(key)) for key in lane.lookup.keys[table.name]])
            for table in tables_of(self.model.config)
            if table.name in lane.lookup.keys
        }
        learned = self.learner.learn(lane, rows, self.dense)
        self.dense = self.dense - self.rate * learned.dense[: len(self.dense)]
        for name, (keys, gradients, _) in learned.gradients.items():
            for key, row, gradient in zip(keys, rows[name], gradients, strict=True):
                self.rows[name, int(key)] = row - self.rate * gradient
        self.sums.append((examples[-1].closed_ms / 1000, learned.metrics))

    def calibration(self, final: list[Final], from_s: float, to_s: float) -> list[float]:
        """Of each label: the mean prediction over the mean final label, of examples in a stretch of time."""
        sums = [its for at_s, its in self.sums if from_s <= at_s - WINDOW_S < to_s]
        labels = np.array([its[1:] for its in final if from_s <= its[0] < to_s], float).mean(0)
        examples = sum(its["examples"] for its in sums)
        predicted = [sum(its[f"predicted.{label}"] for its in sums) for label in LABELS]
        return [p / examples / mean for p, mean in zip(predicted, labels, strict=True)]

    def _row(self, table: object, key: int) -> np.ndarray:
        name = table.name  # type: ignore[attr-defined]
        if (name, key) not in self.rows:
            self.rows[name, key] = initial_rows(table, 0, np.array([key]))[0]  # type: ignore[arg-type]
        return self.rows[name, key]


def trained(
    stream: Stream, change: Callable[[Example], Example | None] = lambda e: e, negatives: float = 1.0
) -> Trainer:
    trainer, waiting = Trainer(), list[Example]()
    for made in joined(stream, negatives)[0]:
        waiting += [changed for changed in map(change, made) if changed]
        if len(waiting) >= 1.6 * stream.per_s:
            trainer.step(waiting)
            waiting = []
    return trainer


def judged(stream: Stream, *how: Callable[[Example], Example | None]) -> list[float]:
    """The calibration after the first horizons, in which the delays are learned."""
    until_s = stream.examples / stream.per_s - WINDOW_S
    return trained(stream, *how).calibration(joined(stream, 1.0)[1], 500.0, until_s)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_with_a_window_of_a_tenth_of_the_delay_calibration_holds() -> None:
    assert judged(Stream(30_000)) == pytest.approx([1.0, 1.0], abs=0.05)


@pytest.mark.slow
def test_without_weights_a_tenth_is_predicted() -> None:
    def unweighted(made: Example) -> Example | None:
        return None if made.correction else structs.replace(made, arrived=[])

    assert judged(Stream(30_000), unweighted) == pytest.approx([0.1, 0.1], abs=0.03)


@pytest.mark.slow
def test_a_drift_is_followed_at_once_and_not_when_the_labels_have_come() -> None:
    """Chances double; what was learned from the next 50 s, half of the mean delay, is judged after that."""

    def doubled(item: int, at_s: float) -> float:
        return (0.2 + 0.2 * item / ITEMS) * (1 if at_s < 500 else 2)

    def corrected_alone(made: Example) -> Example:
        return structs.replace(made, arrived=[])

    found = []
    for how in (lambda made: made, corrected_alone):
        stream = Stream(53_000, doubled, per_s=2 * PER_S)  # what 50 s tell must be much
        found.append(trained(stream, how).calibration(joined(stream, 1.0)[1], 550.0, 640.0)[0])
    assert found[0] > 0.9 > 0.85 > found[1]


@pytest.mark.slow
def test_a_tenth_of_the_negatives_gives_the_same_predictions() -> None:
    rare = Stream(30_000, lambda item, at_s: 0.05 + 0.1 * item / ITEMS, mean_s=1.0)
    trainer = trained(rare, negatives=0.1)
    _, final, joiner = joined(rare, 0.1)
    left = joiner.counts["sampled_out"] / (joiner.counts["sampled_out"] + joiner.counts["examples"])
    assert 0.7 < left < 0.9
    assert trainer.calibration(final, 150.0, 740.0) == pytest.approx([1.0, 1.0], abs=0.05)
    uncorrected = trained(rare, lambda made: structs.replace(made, sampling_rate=1.0), negatives=0.1)
    assert min(uncorrected.calibration(final, 150.0, 740.0)) > 3


# --- slopes ---


def slopes(made: Example, logit: float) -> list[float]:
    """The weighted slope of each output at a logit."""
    labels = np.array([made.labels], np.float32)
    its = label_targets([made], labels)
    logits = torch.full((1, 3), logit, requires_grad=True)
    targets = torch.cat([torch.from_numpy(labels), torch.zeros(1, 1)], 1)
    (its.losses(logits, targets) * torch.from_numpy(its.weights_BL)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return logits.grad[0].tolist()  # type: ignore[no-any-return]


@settings(max_examples=60, deadline=None)
@given(
    p=st.floats(0.01, 0.99), arrived=st.floats(0.02, 1.0), kept=st.floats(0.01, 1.0), other=st.floats(0, 0.9)
)
def test_slopes_are_0_at_the_true_chance(p: float, arrived: float, kept: float, other: float) -> None:
    """The mean over all that can be seen, another label being true with any chance: each with the chance
    that it is seen and kept."""
    logit = float(np.log(p / (1 - p)))
    total = 0.0
    for label in (0.0, 1.0):
        for beside in (0.0, 1.0):
            seen = p * arrived if label else 1 - p * arrived
            seen *= other if beside else 1 - other
            seen *= 1.0 if label or beside else kept
            made = example(0, labels=[label, beside], arrived=[arrived, 1.0], sampling_rate=kept)
            total += seen * slopes(made, logit)[0]
    assert total == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(logit=st.floats(-5, 5), kept=st.floats(0.01, 1.0))
def test_what_is_corrected_comes_to_the_final_label_whether_it_was_kept_or_not(
    logit: float, kept: float
) -> None:
    """An example without engagement is kept or not; then its first label becomes true."""
    final = example(0, labels=[1.0, 0.0], sampling_rate=kept)
    negative = example(0, labels=[0.0, 0.0], sampling_rate=kept)
    now = dict(labels=[1.0, 0.0], previous=[0.0, 0.0], sampling_rate=kept)
    was_kept = np.add(slopes(negative, logit), slopes(example(0, correction=True, **now), logit))
    was_not = slopes(example(0, sampled_out=True, **now), logit)
    mean = kept * np.array(was_kept) + (1 - kept) * np.array(was_not)
    np.testing.assert_allclose(mean[:2], slopes(final, logit)[:2], atol=1e-4)


def test_what_was_foreseen_is_not_learned_again_but_liked() -> None:
    made = example(0, labels=[1.0, 1.0], previous=[0.0, 0.0], correction=True, arrived=[0.0, 1.0])
    its = label_targets([made], np.ones((1, 2), np.float32))
    assert its.weights_BL.tolist() == [[0.0, 1.0, 0.0]] and its.liked_B.tolist() == [1.0]
    assert not its.fresh_B.any()


def test_labels_that_are_final_are_learned_as_ever() -> None:
    """Bit for bit, beside others that are not."""
    made = [example(n) for n in range(6)]
    labels = np.array([e.labels for e in made], np.float32)
    plain = label_targets(made, labels)
    assert plain.observed is None and (plain.weights_BL == 1).all() and plain.fresh_B.all()
    for one in made:
        marked = structs.replace(one, arrived=[1.0, 1.0])
        np.testing.assert_allclose(slopes(one, 0.3), slopes(marked, 0.3), rtol=1e-6)


def test_sums_of_predictions_stand_for_those_that_were_sampled_out() -> None:
    learner = Learner(build_model(FEATURES, CONFIG.model))
    made = [
        example(0, labels=[0.0, 0.0], sampling_rate=0.25),
        example(1, labels=[1.0, 0.0], sampling_rate=0.25, arrived=[0.5, 1.0]),
        example(2, labels=[1.0, 0.0], previous=[0.0, 0.0], sampled_out=True, sampling_rate=0.25),
    ]
    lane = learner.prepare(made)
    rows = {t.name: initial_rows(t, 0, lane.lookup.keys[t.name]) for t in tables_of(CONFIG.model)}
    learned = learner.learn(lane, rows, learner.model.read_dense())
    p = learned.probabilities_BL[:, 0]
    assert learned.metrics["examples"] == 5.0 and learned.metrics["happened.long_view"] == 2.0
    assert learned.metrics["predicted.long_view"] == pytest.approx(4 * p[0] + p[1], rel=1e-5)
    expected = -4 * np.log(1 - p[0]) - np.log(0.5 * p[1])
    assert learned.metrics["loss.long_view"] == pytest.approx(expected, rel=1e-4)
