from dataclasses import replace

import numpy as np
import pytest

from benchmarks.studies.promotion.simulated_pairs import Pair, Stream
from experiments.statistics.comparison import Comparison, PairedPredictions, log_losses
from recsys.model.prediction_metrics import auc, log_loss


def compared(pair: Pair, steps: int, seed: int = 0, segments: bool = False) -> tuple:
    stream, comparison, seen = Stream(pair, seed, users=500), Comparison(tight_at=4_000), []
    for n in range(steps):
        pairs = stream.step()
        if segments:
            odd = pairs.users_N % 2 == 1
            pairs = PairedPredictions(pairs.users_N, pairs.live_N, pairs.candidate_N, pairs.labels_N,
                           {"odd": odd, f"step {n % 3}": np.ones(len(pairs), bool)})  # fmt: skip
        seen.append(pairs)
        comparison.add(pairs)
    return comparison.result(), seen


def test_the_means_are_those_of_all_examples() -> None:
    result, seen = compared(Pair(1.0, 0.4), 40)
    labels = np.concatenate([p.labels_N for p in seen])
    live = np.concatenate([p.live_N for p in seen])
    candidate = np.concatenate([p.candidate_N for p in seen])
    gained = log_loss(live, labels) - log_loss(candidate, labels)
    assert result.loss.mean == pytest.approx(gained, rel=1e-6)
    assert result.live_loss == pytest.approx(log_loss(live, labels), rel=1e-6)
    assert result.candidate_calibration == pytest.approx(candidate.sum() / labels.sum())
    assert result.examples == len(labels) and result.users == len(
        set(np.concatenate([p.users_N for p in seen]))
    )
    blocks = [auc(p.candidate_N, p.labels_N) - auc(p.live_N, p.labels_N) for p in seen]
    assert result.auc.mean == pytest.approx(np.mean(blocks))


def test_a_better_candidate_is_told_from_a_worse_one() -> None:
    better, _ = compared(Pair(1.0, 0.4), 60)
    worse, _ = compared(Pair(0.4, 1.0), 60)
    assert better.loss.low > 0 and better.auc.low > 0
    assert worse.loss.high < 0 and worse.auc.high < 0


def test_equal_models_gain_nothing_at_all() -> None:
    _result, seen = compared(Pair(0.7, 0.7), 20)
    same = Comparison()
    for p in seen:
        same.add(PairedPredictions(p.users_N, p.live_N, p.live_N, p.labels_N))
    assert same.result().loss.mean == 0 and same.result().loss.low == -np.inf


def test_a_segment_has_bounds_of_its_own_and_they_are_wider() -> None:
    result, seen = compared(Pair(1.0, 0.4), 80, segments=True)
    assert set(result.segments) == {"odd", "step 0", "step 1", "step 2"}
    odd = result.segments["odd"]
    assert odd.weight < result.loss.weight
    assert odd.high - odd.low > result.loss.high - result.loss.low
    users, live, candidate, labels = (
        np.concatenate([getattr(p, name) for p in seen])
        for name in ("users_N", "live_N", "candidate_N", "labels_N")
    )
    of = users % 2 == 1
    gained = log_loss(live[of], labels[of]) - log_loss(candidate[of], labels[of])
    assert odd.weight == of.sum() and odd.mean == pytest.approx(gained, rel=1e-6)


def test_losses_stay_finite_at_0_and_1() -> None:
    losses = log_losses(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    assert np.isfinite(losses).all() and (losses > 10).all()


def test_arrays_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"arrays have \[1, 2\] examples"):
        PairedPredictions(np.zeros(2, np.int64), np.zeros(2), np.zeros(1), np.zeros(2))


def test_one_that_stands_for_four_counts_four_times() -> None:
    stream, once, often = Stream(Pair(1.0, 0.4), 5, users=500), Comparison(), Comparison()
    for _ in range(20):
        pairs = stream.step()
        four = np.where(pairs.labels_N > 0, 1.0, 4.0)
        once.add(replace(pairs, weights_N=four))
        at = np.repeat(np.arange(len(pairs)), four.astype(int))
        often.add(
            PairedPredictions(pairs.users_N[at], pairs.live_N[at], pairs.candidate_N[at], pairs.labels_N[at])
        )
    ours, theirs = once.result(), often.result()
    assert ours.loss.mean == pytest.approx(theirs.loss.mean)
    assert (ours.loss.low, ours.loss.high) == pytest.approx((theirs.loss.low, theirs.loss.high))
    assert ours.candidate_calibration == pytest.approx(theirs.candidate_calibration)


def test_a_segment_is_compared_by_its_examples_alone_and_there_are_sixteen_at_most() -> None:
    result, seen = compared(Pair(1.0, 0.4), 30, segments=True)
    odd = Comparison(tight_at=4_000)
    for p in seen:
        mask = p.users_N % 2 == 1
        odd.add(PairedPredictions(*(x[mask] for x in (p.users_N, p.live_N, p.candidate_N, p.labels_N))))
    assert result.segments["odd"].mean == pytest.approx(odd.result().loss.mean)
    assert result.segments["odd"].weight == odd.result().examples
    many = Comparison()
    for n in range(20):
        many.add(replace(seen[0], segments={f"s{n}": np.ones(len(seen[0]), bool)}))
    assert list(many.result().segments) == [f"s{n}" for n in range(16)]
