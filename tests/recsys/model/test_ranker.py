import numpy as np
import pytest
import torch

from recsys.model.ranker import WATCH_SCALE, Ranker, RankerShape, loss_per_output, targets, watch_seconds

SHAPE = RankerShape(slots=3, dim=4, item_slot=1, history=5, outcomes=4, dense=6, labels=2, hidden=(8,))


def inputs(size: int, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((size, 3, 5), (size, 5, 5), (size, 5, 4), (size, 6))
    pooled, history, outcomes, dense = (torch.rand(*s, generator=draw) for s in shapes)
    return [pooled, history, outcomes, dense]


def test_it_starts_the_same_everywhere_and_differs_by_seed() -> None:
    first, same, other = Ranker(SHAPE, 1), Ranker(SHAPE, 1), Ranker(SHAPE, 2)
    a, b, c = (r.layers[0].weight for r in (first, same, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_it_gives_a_logit_for_each_label_and_watch_time() -> None:
    out = Ranker(SHAPE)(*inputs(7))
    assert out.shape == (7, 3) == (7, SHAPE.outputs)
    assert out.isfinite().all()


def test_entries_that_are_none_change_nothing() -> None:
    pooled, history, outcomes, dense = inputs(4)
    ranker = Ranker(SHAPE)
    outcomes[:, 3:] = 0.0
    before = ranker(pooled, history, outcomes, dense)
    history[:, 3:] = 99.0
    assert torch.equal(ranker(pooled, history, outcomes, dense), before)
    nothing = torch.zeros_like(outcomes)  # a new viewer has no entry at all
    assert torch.equal(
        ranker(pooled, history, nothing, dense), ranker(pooled, torch.zeros_like(history), nothing, dense)
    )


def test_the_history_matters_where_there_is_one() -> None:
    pooled, history, outcomes, dense = inputs(4)
    ranker = Ranker(SHAPE)
    before = ranker(pooled, history, outcomes, dense)
    outcomes[:, 0, 0] += 1.0
    assert not torch.equal(ranker(pooled, history, outcomes, dense), before)


def test_rows_however_large_give_numbers() -> None:
    pooled, history, outcomes, dense = inputs(4)
    out = Ranker(SHAPE)(pooled * 1e6, history * 1e6, outcomes, dense)
    assert out.isfinite().all()


def test_a_rows_last_number_is_its_linear_term_of_the_first_label() -> None:
    pooled, history, outcomes, dense = inputs(4)
    ranker = Ranker(SHAPE)
    before = ranker(pooled, history, outcomes, dense)
    pooled[:, 2, -1] += 1.0
    after = ranker(pooled, history, outcomes, dense)
    np.testing.assert_allclose(after[:, 0].detach(), before[:, 0].detach() + 1.0, rtol=1e-5)
    assert torch.equal(after[:, 1:], before[:, 1:])


def test_watch_time_goes_to_the_last_output_and_back() -> None:
    watch_ms = torch.tensor([0.0, 1_000.0, 60_000.0, 1e9])
    wanted = targets(torch.zeros(4, 2), watch_ms)
    assert wanted.shape == (4, 3) and wanted[-1, -1] == 1.0
    seconds = watch_seconds(wanted[:3, -1])
    np.testing.assert_allclose(seconds, [0.0, 1.0, 60.0], atol=1e-3)
    assert float(torch.tensor(WATCH_SCALE)) == pytest.approx(np.log1p(600), abs=0.01)


def test_the_loss_is_least_where_the_prediction_is_the_target() -> None:
    target = torch.tensor([[0.3]])
    best = torch.logit(target)
    at = [float(loss_per_output(best + d, target)) for d in (-0.5, 0.0, 0.5)]
    assert at[1] < at[0] and at[1] < at[2]
