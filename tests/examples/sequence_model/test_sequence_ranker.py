"""The plug-in ranker of examples/sequence_model: reads the history in order, and serves as it learns."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.sequence_model.recsys_sequence_model import SequenceRanker
from recsys.config.system_config import ModelConfig
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.request_features import RequestFeatures
from recsys.model.list_ranker import list_logits, lists_of
from recsys.model.model import Model, build_model, lookup_of, with_missing_row
from recsys.model.ranker import Ranker, RankerShape
from tests.support.serving.request_batches import batch_of

NAME = "examples.sequence_model.recsys_sequence_model:SequenceRanker@1"
HISTORY = 20
SHAPE = RankerShape(
    slots=4, dim=16, item_slot=2, history=HISTORY, outcomes=3, dense=0, labels=1, hidden=(16,)
)


def sequence_model(kind: str = "all", noise: float = 0.2) -> Model:
    model = build_model(FeatureSet(FEED_SCHEMA, kind, HISTORY), ModelConfig(ranker=NAME))
    draw = np.random.default_rng(1)
    dense = model.read_dense() + noise * draw.normal(0, 1, model.dense_size())
    model.write_dense(dense.astype(np.float32))
    return model


def request_of(model: Model, items: int, entries: int) -> RequestFeatures:
    draw, features = np.random.default_rng(items), model.features
    history = draw.integers(1, 60, (HISTORY, features.history_keys))
    outcomes = draw.uniform(0.1, 1, (HISTORY, features.outcomes)).astype(np.float32)
    history[entries:], outcomes[entries:] = 0, 0
    return RequestFeatures(
        features.digest,
        draw.integers(0, 60, features.user_columns),
        draw.integers(0, 60, (items, features.item_columns)),
        history,
        outcomes,
        draw.normal(0, 1, (items, model.ranker.shape.dense)).astype(np.float32),
    )


def rows_of(keys: np.ndarray) -> np.ndarray:
    table = np.random.default_rng(9).normal(0, 0.5, (64, 17)).astype(np.float32)
    return with_missing_row(table[keys]).numpy()


def served(model: Model, request: RequestFeatures) -> np.ndarray:
    lists = lists_of([request])
    with torch.inference_mode():
        return list_logits(model, lists, rows_of(lists.keys))


def learned(model: Model, requests: Sequence[RequestFeatures]) -> np.ndarray:
    batch = batch_of(model.features, requests)
    lookup = lookup_of(batch)
    with torch.inference_mode():
        rows = torch.from_numpy(rows_of(lookup.keys["features"]))
        return model.rank(batch, lookup, rows).numpy()


@pytest.mark.parametrize("kind", ["ids+history", "all"])
def test_lists_are_served_with_the_logits_that_are_learned(kind: str) -> None:
    model = sequence_model(kind)
    requests = [request_of(model, n, entries) for n, entries in ((1, 20), (17, 0), (40, 3))]
    expected = learned(model, requests)
    assert expected.std() > 0.1
    parts = np.concatenate([served(model, request) for request in requests])
    np.testing.assert_allclose(parts, expected, rtol=2e-5, atol=2e-5)


def test_an_item_s_logits_do_not_hang_on_the_items_beside_it() -> None:
    model = sequence_model()
    request = request_of(model, 300, 12)
    whole = served(model, request)
    for at in (0, 1, 17, 150, 299):
        part = slice(at, at + 1)
        one = replace(request, items_NI=request.items_NI[part], dense_NF=request.dense_NF[part])
        assert served(model, one).tobytes() == whole[part].tobytes()


def test_it_begins_as_the_built_in_model() -> None:
    model = sequence_model(noise=0)
    built_in = build_model(model.features, ModelConfig())
    request = request_of(model, 40, 12)
    np.testing.assert_allclose(served(model, request), served(built_in, request), atol=2e-5)


def history_of(entries: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, HISTORY, 17, generator=draw)
    outcomes = torch.rand(1, HISTORY, 3, generator=draw) + 0.1
    rows[:, entries:], outcomes[:, entries:] = 0, 0
    return rows, outcomes


@torch.no_grad()
def ranked(ranker: torch.nn.Module, rows: torch.Tensor, outcomes: torch.Tensor) -> torch.Tensor:
    items = torch.randn(5, 4, 17, generator=torch.Generator().manual_seed(3))
    return ranker(items, rows, outcomes, torch.zeros(5, 0))


def random_ranker() -> SequenceRanker:
    ranker, draw = SequenceRanker(SHAPE, seed=2), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return ranker


def test_the_order_of_the_history_counts_and_places_without_an_entry_do_not() -> None:
    ranker = random_ranker()
    rows, outcomes = history_of(6)
    before = ranked(ranker, rows, outcomes)
    order = torch.tensor([0, 3, 2, 1, *range(4, HISTORY)])
    swapped = ranked(ranker, rows[:, order], outcomes[:, order])
    plain = ranker.built_in
    swapped_plain = ranked(plain, rows[:, order], outcomes[:, order])
    torch.testing.assert_close(swapped_plain, ranked(plain, rows, outcomes))
    assert (swapped - before).abs().max() > 0.01
    rows[:, 6:] = 5.0  # rows where no entry is
    torch.testing.assert_close(
        ranked(ranker, rows, outcomes) - ranked(plain, rows, outcomes), before - ranked(plain, *history_of(6))
    )


def test_no_entry_reads_a_newer_one() -> None:
    ranker = random_ranker()
    states: list[torch.Tensor] = []
    ranker.blocks[0].register_forward_hook(lambda block, inputs, out: states.append(out))
    rows, outcomes = history_of(6)
    ranked(ranker, rows, outcomes)
    rows[:, 0] += 1.0  # the newest entry
    ranked(ranker, rows, outcomes)
    first, second = (state[0] for state in states if state.shape[1] == 1 + HISTORY)
    torch.testing.assert_close(first[:-1], second[:-1])
    assert (first[-1] - second[-1]).abs().max() > 0.01


def test_a_seed_gives_the_same_parameters_whatever_was_drawn_before() -> None:
    one = SequenceRanker(SHAPE, 7)
    torch.rand(3)
    other, third = SequenceRanker(SHAPE, 7), SequenceRanker(SHAPE, 8)
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.entry.weight, third.entry.weight)


def test_a_shape_without_history_is_refused() -> None:
    with pytest.raises(ValueError, match="set model.features to ids.history or all"):
        SequenceRanker(replace(SHAPE, history=0))


@pytest.mark.slow
def test_it_learns_what_hangs_on_the_order() -> None:
    """Liked is an item whose first number has the sign of that of the newest entry but one."""
    draw = torch.Generator().manual_seed(0)
    ranker, plain = SequenceRanker(SHAPE, 1), Ranker(SHAPE, 1)
    losses = {}
    for name, model in (("sequence", ranker), ("built in", plain)):
        draw.manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        history: list[float] = []
        for _ in range(400):
            rows = torch.zeros(64, HISTORY, 17)
            rows[:, :, 0] = torch.randint(0, 2, (64, HISTORY), generator=draw) * 2.0 - 1
            items = torch.zeros(64, 4, 17)
            items[:, 2:, 0] = torch.randint(0, 2, (64, 1), generator=draw) * 2.0 - 1
            liked = (items[:, 2, 0] == rows[:, 1, 0]).float()
            outcomes = torch.ones(64, HISTORY, 3)
            logits = model(items, rows, outcomes, torch.zeros(64, 0))[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, liked)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(float(loss.detach()))
        losses[name] = np.mean(history[-50:])
    assert losses["sequence"] < 0.2 < 0.6 < losses["built in"]
