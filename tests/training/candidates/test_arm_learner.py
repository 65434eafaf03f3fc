"""What the line of an arm makes of a lane's examples."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.assignment.arm_line import ALL, DIVERTED, WEIGHTED
from recsys.events.control_records import ArmLine
from recsys.events.event_types import Stamp
from recsys.model.model import build_model
from tests.support.training.small_feed import FEATURES, block, toy_config
from training.candidates.arm_learner import ArmLearner
from training.continual import learner as learner_module
from training.continual.learner import Learned, Learner
from training.continual.row_usage import examples_per_row, rows_in_examples
from training.steps.step_reader import ServedExample

MODEL = toy_config().model


def example(n: int, arm: str | None = None, label: float = 1.0, **more: Any) -> ServedExample:
    stamp = Stamp(line="main", arms={} if arm is None else {"e": arm})
    return ServedExample(
        partition=0, offset=n, index=0, labels=[label, 0.0], watch_ms=1_000, features=block(n),
        stamp=stamp, predicted=np.array([0.3], np.float32).tobytes(), **more,
    )  # fmt: skip


def learner(trains: str) -> ArmLearner:
    return ArmLearner(build_model(FEATURES, MODEL), ArmLine(experiment="e", arm="b", trains=trains))


def gradients(its: Learner, lane: Any) -> dict[str, Any]:
    return {name: found for name, (_, found, _) in learned(its, lane).gradients.items()}


def learned(its: Learner, lane: Any) -> Learned:
    draw = np.random.default_rng(0)
    rows = {t: draw.normal(size=(len(k), dim(t))).astype(np.float32) for t, k in lane.lookup.keys.items()}
    return its.learn(lane, rows, its.model.read_dense())


def dim(table: str) -> int:
    return MODEL.dim + 1 if table == "features" else MODEL.vector_dim


def test_all_learns_as_a_learner_does() -> None:
    examples = [example(n, "b" if n % 2 else "a") for n in range(8)]
    usual = Learner(build_model(FEATURES, MODEL))
    wanted = gradients(usual, usual.prepare(examples))
    its = learner(ALL)
    for name, found in gradients(its, its.prepare(examples)).items():
        assert (found == wanted[name]).all(), name


def test_who_is_in_no_arm_teaches_a_diverted_line_nothing() -> None:
    its = learner(DIVERTED)
    others = [example(n, arm) for n, arm in enumerate([None, "a", "a", None])]
    found = gradients(its, its.prepare(others))
    assert not found["features"].any()  # what one learns of others' lists is nothing ...
    assert gradients(its, its.prepare([*others, example(9, "b")]))["features"].any()  # ... and its own


def test_lanes_of_a_step_are_weighted_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "_bytes", bool)  # one pass would be allowed on any processor
    its, alone = learner(DIVERTED), learner(DIVERTED)
    arms = [[None] * 16, ["a", "b"] * 8]
    lanes = [its.prepare([example(n, a) for n, a in enumerate(names)]) for names in arms]
    rows = [{t: np.ones((len(k), dim(t)), np.float32) for t, k in lane.lookup.keys.items()} for lane in lanes]
    dense = its.model.read_dense()
    none, half = its.learn_lanes(lanes, rows, dense)
    for one, lane, own in zip((none, half), lanes, rows, strict=True):
        wanted = alone.learn(lane, own, dense)
        assert (one.dense == wanted.dense).all()
        assert (one.gradients["features"].gradients == wanted.gradients["features"].gradients).all()
    assert not none.gradients["features"].gradients.any() and half.gradients["features"].gradients.any()
    assert its.export().keys() == alone.export().keys()
    for name, array in its.export().items():
        assert (array == alone.export()[name]).all(), name


@pytest.mark.parametrize("retrieval", [0.0, 1.0])
def test_rows_that_are_taught_nothing_are_not_touched(retrieval: float) -> None:
    model = build_model(FEATURES, replace(MODEL, retrieval_weight=retrieval))
    its = ArmLearner(model, ArmLine(experiment="e", arm="b", trains=DIVERTED))
    usual = Learner(build_model(FEATURES, replace(MODEL, retrieval_weight=retrieval)))
    own = [example(n, "b", float(n % 2)) for n in range(3)]
    others = [example(n, "a") for n in range(3, 12)]
    lane, alone = its.prepare([*own, *others]), usual.prepare(own)
    found, all_keys = learned(its, lane), lane.lookup.keys
    counts = examples_per_row(lane.lookup)
    for table, (keys, found_UD, counts_U) in found.gradients.items():
        left = dict(zip(keys.tolist(), found_UD, strict=True))
        assert set(alone.lookup.keys[table].tolist()) <= left.keys()  # all that is learned is
        taught = {key for key, row in left.items() if row.any()}
        assert left.keys() == set(alone.lookup.keys[table].tolist()) | taught
        at = {key: n for n, key in enumerate(all_keys[table].tolist())}
        assert counts_U.tolist() == [counts[table][at[key]] for key in keys.tolist()]
    assert len(found.gradients["features"].keys) < len(all_keys["features"])
    # Predicted, and judged, is all.
    assert found.probabilities_BL.shape[0] == 12 and found.metrics["examples"] == 12.0
    nothing = learned(its, its.prepare(others[:1]))
    assert all(not len(rows.keys) for rows in nothing.gradients.values())


@given(some=st.lists(st.booleans(), min_size=6, max_size=6))
def test_rows_of_some_examples_are_those_of_a_lane_of_them(some: list[bool]) -> None:
    usual = Learner(build_model(FEATURES, MODEL))
    examples = [example(n) for n in range(6)]
    lane = usual.prepare(examples)
    found = rows_in_examples(lane.batch, lane.lookup, np.array(some))
    chosen = [e for e, its in zip(examples, some, strict=True) if its]
    keys = usual.prepare(chosen).lookup.keys if chosen else {}
    for table, there_U in found.items():
        assert set(lane.lookup.keys[table][there_U].tolist()) == set(keys.get(table, np.zeros(0)).tolist())


def test_its_own_stand_for_all_once_the_share_is_known() -> None:
    its = learner(DIVERTED)
    for n in range(40):
        lane = its.prepare([example(100 + 4 * n + m, "b" if m == 0 else "a") for m in range(4)])
        gradients(its, lane)
    lane = its.prepare([example(n, "b") for n in range(400)])
    assert its.example_weights(lane).mean() == pytest.approx(4.0, rel=0.05)


def test_weights_are_whole_numbers_whose_mean_they_are() -> None:
    its = learner(WEIGHTED)
    for n in range(300):  # the arm's users do what others don't
        own = n % 2 == 0
        gradients(its, its.prepare([example(7, "b" if own else "a", float(own))]))
    lanes = {label: its.prepare([example(7, label=label, **{}) for _ in range(1)]) for label in (1.0, 0.0)}
    exact = {label: its.weights.weigh(lane.features_BF)[0] for label, lane in lanes.items()}
    assert exact[1.0] > 1.5 > 0.5 > exact[0.0]
    for label in lanes:
        many = its.prepare([_again(example(7, label=label), n) for n in range(3_000)])
        drawn = its.example_weights(many)
        assert (drawn == np.round(drawn)).all()
        assert drawn.mean() == pytest.approx(exact[label], abs=0.05)


def _again(of: ServedExample, n: int) -> ServedExample:
    return ServedExample(**{name: getattr(of, name) for name in of.__struct_fields__} | {"offset": n})


def test_it_goes_on_from_a_snapshot() -> None:
    one, other = learner(WEIGHTED), learner(WEIGHTED)
    for n in range(20):
        gradients(one, one.prepare([example(n, "ab"[n % 2])]))
    other.load({"table/features/keys": np.zeros(1, np.int64)} | one.export())
    lane = one.prepare([example(n) for n in range(20)])
    assert one.example_weights(lane).tolist() == other.example_weights(lane).tolist()


def test_a_correction_weighs_what_its_example_did() -> None:
    its = learner(WEIGHTED)
    for n in range(300):
        own = n % 2 == 0
        gradients(its, its.prepare([example(7, "b" if own else "a", float(own))]))
    counted = its.weights.export()["counted"]
    for n in range(50):
        first = _again(example(7, label=0.0), n)
        later = _again(example(7, label=1.0, correction=True, previous=[0.0, 0.0]), n)
        assert its.example_weights(its.prepare([first])) == its.example_weights(its.prepare([later]))
    gradients(its, its.prepare([example(7, label=1.0, correction=True, previous=[0.0, 0.0])]))
    assert its.weights.export()["counted"].tolist() == counted.tolist()  # shown once, counted once
