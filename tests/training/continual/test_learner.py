from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from parameter_server.table.table import initial_rows
from recsys.config.system_config import tables_of
from recsys.events.event_types import FeatureBlock
from recsys.features.request_features import UnknownFeatureSet
from recsys.model.choice_model import choice_size, choice_sums, log_odds
from recsys.model.model import build_model
from tests.support.training.learner_cases import CONFIG, learned, learner, rows_of
from tests.support.training.small_feed import FEATURES, example
from tests.support.training.small_feed import block as feature_block
from training.continual.jagged import keyed_jagged
from training.continual.learner import Learner


def test_it_predicts_with_the_parameters_from_before() -> None:
    its = learner()
    lane = its.prepare([example(n) for n in range(6)])
    first = learned(its, lane)
    assert first.probabilities_BL.shape == (6, 3)
    assert (first.probabilities_BL > 0).all() and (first.probabilities_BL < 1).all()
    assert (learned(its, lane).probabilities_BL == first.probabilities_BL).all()


def test_a_lane_learns_the_sum_of_its_examples() -> None:
    """Without the retrieval loss, whose negatives are the lane's other items."""
    config = replace(CONFIG.model, retrieval_weight=0.0)
    its = Learner(build_model(FEATURES, config))
    examples = [example(n) for n in range(5)]
    whole = learned(its, its.prepare(examples))
    parts = [learned(its, its.prepare([e])) for e in examples]
    np.testing.assert_allclose(whole.dense, sum(p.dense for p in parts), atol=1e-5)
    total: dict[int, np.ndarray] = {}
    for part in parts:
        for key, gradient in zip(*part.gradients["features"][:2], strict=True):
            total[int(key)] = total.get(int(key), 0) + gradient
    for key, gradient in zip(*whole.gradients["features"][:2], strict=True):
        np.testing.assert_allclose(gradient, total[int(key)], atol=1e-5)
    assert set(whole.gradients) == {"features"}  # no rows for what nothing is learned of


def test_descending_the_gradients_lowers_the_loss() -> None:
    its = learner()
    lane = its.prepare([example(n) for n in range(16)])
    rows, dense = rows_of(lane), its.model.read_dense()
    losses = []
    for _ in range(30):
        out = its.learn(lane, rows, dense)
        losses.append(out.metrics["loss.long_view"])
        dense = dense - 0.02 * out.dense[: len(dense)]
        rows = {name: rows[name] - 0.02 * g for name, (_, g, _) in out.gradients.items()}
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("initial", "moves"), [(0.0, False), (0.05, True)])
def test_vectors_without_content_learn_from_rows_off_zero(initial: float, moves: bool) -> None:
    config = replace(CONFIG.model, vector_initial=initial)
    its = Learner(build_model(FEATURES, config))
    lane = its.prepare([example(n) for n in range(16)])
    history = lane.batch.history_BTH.copy()
    history[..., 1:] = 0
    groups = np.zeros_like(lane.batch.item_groups_BG)
    batch = replace(lane.batch, item_groups_BG=groups, history_BTH=history)
    lane = replace(lane, batch=batch)
    rows = {table.name: initial_rows(table, 0, lane.lookup.keys[table.name]) for table in tables_of(config)}
    out = its.learn(lane, rows, its.model.read_dense())
    users = out.gradients["users"].gradients
    assert bool(users.any()) == moves and bool(out.metrics["moved.users"]) == moves
    assert bool(out.gradients["items"].gradients[:, :-1].any()) == moves


def test_negatives_weigh_by_how_often_their_items_are_shown() -> None:
    its = learner()
    lane = its.prepare([example(n) for n in range(16)])
    dense = lane.batch.dense_BF.copy()
    dense[:, FEATURES.dense_names.index("item/shown.slow")] += np.linspace(0, 2, 16)
    counted = replace(lane, batch=replace(lane.batch, dense_BF=dense))
    same = {name: g.gradients for name, g in learned(its, lane).gradients.items()}
    other = {name: g.gradients for name, g in learned(its, counted).gradients.items()}
    assert not np.allclose(same["items"], other["items"], atol=1e-3)


def test_a_correction_learns_only_the_labels_that_became_true() -> None:
    its = learner()
    correction = example(1, labels=[1.0, 1.0], previous=[1.0, 0.0], correction=True)
    lane = its.prepare([example(0), correction])
    assert lane.label_targets.weights_BL.tolist() == [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]
    assert learned(its, lane).metrics["examples"] == 1.0
    nothing = its.prepare([example(1, labels=[1.0, 0.0], previous=[1.0, 0.0], correction=True)])
    assert not learned(its, nothing).dense.any()


def test_metrics_are_sums_over_first_time_examples() -> None:
    its = learner()
    examples = [example(n) for n in range(6)]
    metrics = learned(its, its.prepare(examples)).metrics
    assert metrics["happened.long_view"] == sum(e.labels[0] for e in examples)
    alone = [learned(its, its.prepare([e])).metrics["loss.like"] for e in examples]
    assert metrics["loss.like"] == pytest.approx(sum(alone), rel=1e-4)


def test_a_keyed_jagged_tensor_gives_the_same_gradients_bit_for_bit() -> None:
    pytest.importorskip("torchrec")
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    plain, jagged = learner(), learner(jagged=keyed_jagged)
    examples = [example(n) for n in range(9)]
    lane = jagged.prepare(examples)
    assert isinstance(lane.batch.sparse, KeyedJaggedTensor)
    a, b = learned(plain, plain.prepare(examples)), learned(jagged, lane)
    assert a.dense.tobytes() == b.dense.tobytes() and a.metrics == b.metrics
    for name, (keys, gradients, _) in a.gradients.items():
        assert keys.tobytes() == b.gradients[name][0].tobytes()
        assert gradients.tobytes() == b.gradients[name][1].tobytes()


def test_a_laptop_without_torchrec_keeps_the_batch_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.continual.jagged.installed", lambda: False)
    sparse = learner().prepare([example(0)]).batch.sparse
    assert keyed_jagged(sparse) is sparse


def test_features_of_another_set_are_refused() -> None:
    its = learner()
    with pytest.raises(UnknownFeatureSet, match="'other'"):
        its.prepare([example(0, features=FeatureBlock(feature_set="other"))])
    with pytest.raises(ValueError, match="no features"):
        its.prepare([example(0, features=None)])


def test_the_examples_of_a_list_of_candidates_are_one_choice() -> None:
    """Two lists in a lane; of the second no item was taken, and one item was no candidate."""
    features = replace(FEATURES, schema=replace(FEATURES.schema, shown_by="click"))
    its = Learner(build_model(features, CONFIG.model))
    stands = [np.float32(np.log(n)).tobytes() for n in (1, 3, 5)] + [b""]
    examples = []
    for n in range(8):
        block = structs.replace(feature_block(n), feature_set=features.digest)
        about = {
            "labels": [float(n == 1), 0.0],
            "offset": n // 4,
            "partition": 0,
            "choice": stands[(n + 3) % 4],
        }
        examples.append(example(n, features=block, **about))
    lane = its.prepare(examples)
    assert [choice.taken for choice in lane.choices] == [1]
    out, first = learned(its, lane), its.model.dense_size() - choice_size(features)
    places = [1, 2, 3]
    rows_RC = np.column_stack(
        [np.log([1, 3, 5]), lane.batch.dense_BF[places], log_odds(out.probabilities_BL[places, 0])]
    )
    weights, one_choice = its.model.read_dense()[first:], lane.label_targets.liked_B[1:2]
    sums = choice_sums(weights, [rows_RC.astype(np.float32)], one_choice, features)
    np.testing.assert_allclose(out.dense[first:], sums, atol=1e-6)
    assert sums.any()
