import numpy as np
import pytest

from recsys.features.request_features import RequestFeatures, read_block
from recsys.model.batch import Batch
from tests.support.serving.request_batches import batch_of
from tests.support.training.small_feed import FEATURES, block


def requests(*counts: int) -> list[RequestFeatures]:
    return [read_block(block(n, items), FEATURES) for n, items in enumerate(counts)]


def per_example(batch: Batch) -> list[dict[str, list[int]]]:
    """The naive reading of a jagged tensor: for each example its keys by slot."""
    values, lengths = batch.sparse.values().tolist(), batch.sparse.lengths().tolist()
    out: list[dict[str, list[int]]] = [{} for _ in range(len(batch))]
    at = 0
    for s, slot in enumerate(batch.sparse.keys()):
        for b in range(len(batch)):
            length = lengths[s * len(batch) + b]
            out[b][slot] = values[at : at + length]
            at += length
    assert at == len(values)
    return out


def test_every_example_has_the_keys_of_its_request_and_item() -> None:
    given = requests(3, 1, 2)
    expected = []
    for request in given:
        for row in request.items_NI:
            pairs = [(FEATURES.user_slots, request.user_U), (FEATURES.item_slots, row)]
            keys = {
                slot.name: [int(k) for k in columns[slot.start : slot.stop] if k]
                for slots, columns in pairs
                for slot in slots
            }
            expected.append(keys)
    assert per_example(batch_of(FEATURES, given)) == expected


def test_one_request_and_many_give_the_same_rows() -> None:
    given = requests(3, 1)
    alone, together = batch_of(FEATURES, given[:1]), batch_of(FEATURES, given)
    assert per_example(alone) == per_example(together)[:3]
    assert alone.history_BTH.shape[0] == 1 and together.history_BTH.shape[0] == 4
    for name in ("history_BTH", "outcomes_BTO"):
        whole = getattr(together, name)
        assert (whole[:3] == getattr(alone, name)).all()
    for name in ("user_B", "item_B", "item_groups_BG", "dense_BF"):
        assert (getattr(together, name)[:3] == getattr(alone, name)).all()


def test_every_example_has_the_history_of_its_request() -> None:
    given = requests(2, 1, 3)
    batch = batch_of(FEATURES, given)
    of = [request for request in given for _ in request.items_NI]
    assert len({request.history_TH.tobytes() for request in given}) == 3
    for b, request in enumerate(of):
        assert (batch.history_BTH[b] == request.history_TH).all()
        assert (batch.outcomes_BTO[b] == request.outcomes_TO).all()


@pytest.mark.slow
def test_it_is_laid_out_as_torchrec_lays_it_out() -> None:
    torchrec = pytest.importorskip("torchrec")
    batch = batch_of(FEATURES, requests(2, 3))
    keyed = torchrec.KeyedJaggedTensor(
        keys=batch.sparse.keys(), values=batch.sparse.values(), lengths=batch.sparse.lengths()
    )
    assert keyed.stride() == len(batch)
    for slot in batch.sparse.keys():
        jagged = [row.tolist() for row in keyed[slot].to_dense()]
        assert jagged == [keys[slot] for keys in per_example(batch)]


def test_a_slot_that_nobody_has_is_empty_and_there() -> None:
    request = requests(2)[0]
    request = RequestFeatures(
        request.feature_set, np.zeros_like(request.user_U), np.zeros_like(request.items_NI),
        request.history_TH, request.outcomes_TO, request.dense_NF,
    )  # fmt: skip
    batch = batch_of(FEATURES, [request])
    assert len(batch.sparse.values()) == 0 and not batch.sparse.lengths().any()
    assert len(batch.sparse.lengths()) == 2 * len(batch.sparse.keys())
