"""Contract of list ranking: compiled loops and plain torch agree with ``Model.rank``, up to the last bits."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.config.system_config import ModelConfig
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.request_features import RequestFeatures
from recsys.model.list_ranker import Lists, list_logits, lists_of, logits_by_torch, logits_compiled
from recsys.model.model import Model, build_model, lookup_of, with_missing_row
from recsys.model.ranker import Ranker, RankerModule, RankerShape
from tests.support.serving.request_batches import batch_of

DIM = 6
CONFIG = ModelConfig(dim=DIM - 1, vector_dim=4, hidden=(24, 18))


Rank = Callable[[Model, Lists, np.ndarray], np.ndarray]


def model_of(
    kind: str, ranker: Callable[[RankerShape, int], RankerModule] = Ranker, **changes: object
) -> Model:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    features = FeatureSet(FEED_SCHEMA, kind, 7)
    if kind == "lists":
        features = FeatureSet(FEED_SCHEMA, "all", 7, Declared(whole_list=True))
    model = build_model(features, config, ranker)
    draw = np.random.default_rng(3)
    model.write_dense(draw.normal(0, 0.3, model.dense_size()).astype(np.float32))
    return model


def request(model: Model, items: int, seed: int, entries: int = 5) -> RequestFeatures:
    """Some keys are 0 (nothing there), some come twice, and the history ends early."""
    draw, features = np.random.default_rng(seed), model.features
    t, h = features.history_length, features.history_keys
    history = draw.integers(0, 30, (t, h))
    history[entries:] = 0
    outcomes = draw.uniform(0.1, 1, (t, features.outcomes)).astype(np.float32)
    outcomes[entries:] = 0
    return RequestFeatures(
        features.digest,
        draw.integers(0, 40, features.user_columns),
        draw.integers(0, 40, (items, features.item_columns)),
        history,
        outcomes,
        draw.normal(0, 1, (items, model.ranker.shape.dense)).astype(np.float32),
    )


def rows_of(keys: np.ndarray) -> np.ndarray:
    table = np.random.default_rng(9).normal(0, 0.7, (64, DIM)).astype(np.float32)
    return with_missing_row(table[keys]).numpy()


def one_by_one(model: Model, requests: list[RequestFeatures]) -> np.ndarray:
    batch = batch_of(model.features, requests)
    lookup = lookup_of(batch)
    with torch.inference_mode():
        rows = torch.from_numpy(rows_of(lookup.keys["features"]))
        return model.rank(batch, lookup, rows).numpy()


def together(model: Model, requests: list[RequestFeatures], rank: Rank = list_logits) -> np.ndarray:
    lists = lists_of(requests)
    with torch.inference_mode():
        return rank(model, lists, rows_of(lists.keys))


@pytest.mark.parametrize("rank", [logits_by_torch, logits_compiled])
@pytest.mark.parametrize("kind", ["ids", "ids+history", "all", "lists"])
@pytest.mark.parametrize("hidden", [(24, 18), (9,), ()])
def test_the_logits_are_those_of_the_model(kind: str, hidden: tuple[int, ...], rank: Rank) -> None:
    model = model_of(kind, hidden=hidden)
    requests = [request(model, n, n, entries) for n, entries in ((1, 7), (17, 0), (40, 3), (300, 5))]
    expected = one_by_one(model, requests)
    assert expected.std() > 0.1
    most = np.abs(expected).max()  # of lists many terms are added up
    np.testing.assert_allclose(together(model, requests, rank), expected, rtol=2e-5, atol=5e-6 * most)


class FirstSlot(RankerModule):
    """A ranker without layers or history: a linear function of the first slot's row."""

    def __init__(self, shape: RankerShape, seed: int) -> None:
        super().__init__(shape)
        self.head = torch.nn.Linear(shape.dim, shape.outputs)

    def forward(self, pooled_BSR, history_BTR, outcomes_BTO, dense_BF):  # type: ignore[no-untyped-def]
        return self.head(pooled_BSR[:, 0, : self.shape.dim])


class Scaled(Ranker):
    """The built-in ranker with another forward: its compiled loops would be wrong."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(*inputs)


@pytest.mark.parametrize("ranker", [FirstSlot, Scaled])
@pytest.mark.parametrize("kind", ["ids", "all"])
def test_any_ranker_module_ranks_lists(kind: str, ranker: type[RankerModule]) -> None:
    model = model_of(kind, ranker)
    requests = [request(model, n, n) for n in (1, 17, 40)]
    expected = one_by_one(model, requests)
    assert expected.std() > 0.1
    np.testing.assert_allclose(together(model, requests), expected, rtol=2e-5, atol=2e-5)


class Counting(FirstSlot):
    """Notes how many histories it gets."""

    histories = 0

    def forward(self, pooled_BSR, history_BTR, outcomes_BTO, dense_BF):  # type: ignore[no-untyped-def]
        self.histories = len(history_BTR)
        assert len(outcomes_BTO) == len(history_BTR)
        return super().forward(pooled_BSR, history_BTR, outcomes_BTO, dense_BF)


def test_the_items_of_one_request_share_one_history() -> None:
    model = model_of("all", Counting)
    together(model, [request(model, 40, 1)])
    assert model.ranker.histories == 1
    together(model, [request(model, n, n) for n in (1, 15)])
    assert model.ranker.histories == 16


def test_the_built_in_ranker_uses_the_compiled_loops() -> None:
    model = model_of("lists")
    requests = [request(model, 33, 1)]
    assert together(model, requests).tobytes() == together(model, requests, logits_compiled).tobytes()


def test_a_list_s_logits_do_not_hang_on_the_lists_beside_it() -> None:
    model = model_of("lists")
    requests = [request(model, n, n) for n in (3, 16, 45, 1, 33)]
    alone = np.concatenate([together(model, [each]) for each in requests])
    assert together(model, requests).tobytes() == alone.tobytes()


def test_what_is_written_to_the_parameters_is_ranked_by_at_once() -> None:
    model = model_of("lists")
    asked = [request(model, 20, 1)]
    before = together(model, asked)
    for name in ("layers.0.weight", "layers.0.bias", "sharpness"):
        flat = model.read_dense()
        with torch.no_grad():
            model.ranker.get_parameter(name).mul_(1.5).add_(0.1)
        changed = together(model, asked)
        assert not np.array_equal(changed, before), name
        np.testing.assert_allclose(changed, one_by_one(model, asked), rtol=2e-5, atol=2e-5)
        model.write_dense(flat)
        assert np.array_equal(together(model, asked), before)
