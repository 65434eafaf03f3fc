"""Metrics against slow definitions, and the report that is made of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.model.prediction_metrics import (
    auc,
    by_day,
    calibration,
    grouped_auc,
    list_metrics,
    log_loss,
    normalized_entropy,
    paired_auc_interval,
)
from replay.predictions import (
    Predictions,
    PredictionsFile,
    build_report,
    compare,
    read_predictions,
    write_report,
)

# Few values, so that ties are common.
ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=40,
)


def slow_auc(rows: list[tuple[float, bool, int]]) -> float:
    positives = [row[0] for row in rows if row[1]]
    negatives = [row[0] for row in rows if not row[1]]
    won = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    pairs = len(positives) * len(negatives)
    return won / pairs if pairs else float("nan")


def columns(rows: list[tuple[float, bool, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    score, label, user = zip(*rows, strict=True)
    return np.array(score), np.array(label, int), np.array(user)


@given(ROWS)
def test_auc_counts_pairs_and_half_of_ties(rows: list) -> None:
    score, label, _ = columns(rows)
    assert auc(score, label) == pytest.approx(slow_auc(rows), nan_ok=True)


@given(ROWS, st.data())
def test_a_weight_is_a_repetition(rows: list, data: st.DataObject) -> None:
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))
    score, label, _ = columns(rows)
    again = [row for row, n in zip(rows, times, strict=True) for _ in range(n)]
    assert auc(score, label, times) == pytest.approx(slow_auc(again), nan_ok=True)


@given(ROWS)
def test_grouped_auc_is_the_mean_over_users(rows: list) -> None:
    score, label, user = columns(rows)
    each = {u: [row for row in rows if row[2] == u] for u in set(user.tolist())}
    known = [(slow_auc(r), len(r)) for r in each.values() if slow_auc(r) == slow_auc(r)]
    if not known:
        assert np.isnan(grouped_auc(score, label, user))
        return
    values, sizes = zip(*known, strict=True)
    assert grouped_auc(score, label, user) == pytest.approx(np.average(values, weights=sizes))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60),
    st.randoms(use_true_random=False),
    st.integers(1, 5),
)
def test_metrics_of_lists_are_means_over_requests_with_both_labels(
    rows: list[tuple[bool, int]], random: Any, k: int
) -> None:
    scores = random.sample(range(1000), len(rows))  # without ties, whose order is a matter of taste
    slow: dict[str, list[float]] = {name: [] for name in ("auc", "ndcg", "mrr", "hit", "recall")}
    for request in range(6):
        own = [(score, label) for score, (label, of) in zip(scores, rows, strict=True) if of == request]
        labels = [label for _, label in sorted(own, reverse=True)]
        if not 0 < sum(labels) < len(labels):
            continue
        slow["auc"].append(slow_auc([(score, label, 0) for score, label in own]))
        gains = [label / math.log2(n + 2) for n, label in enumerate(labels[:k])]
        best = [1 / math.log2(n + 2) for n in range(min(k, sum(labels)))]
        slow["ndcg"].append(sum(gains) / sum(best))
        slow["mrr"].append(1 / (labels.index(True) + 1))
        slow["hit"].append(float(any(labels[:k])))
        slow["recall"].append(sum(labels[:k]) / sum(labels))
    fast = list_metrics(scores, [r[0] for r in rows], [f"r{r[1]}" for r in rows], k)
    assert fast.pop("requests") == len(slow["auc"])
    full = {name: f"{name}@{k}" for name in ("ndcg", "hit", "recall")}
    for name, values in slow.items():
        mean = np.mean(values) if values else float("nan")
        assert fast[full.get(name, name)] == pytest.approx(mean, nan_ok=True), name


def test_no_metric_of_lists_gains_from_the_order_of_rows() -> None:
    labels = np.tile([1, 0, 0, 0, 0], 2000)
    requests = np.repeat(np.arange(2000), 5)
    flat = list_metrics(np.zeros(10_000), labels, requests, k=1)
    assert flat["auc"] == 0.5
    assert flat["hit@1"] == pytest.approx(0.2, abs=0.03) == flat["recall@1"]


def test_losses_of_answers_known_by_hand() -> None:
    labels = [1, 0, 0, 0]
    assert log_loss([0.5] * 4, labels) == pytest.approx(np.log(2))
    assert normalized_entropy([0.25] * 4, labels) == pytest.approx(1.0)
    assert normalized_entropy([0.9, 0.05, 0.05, 0.05], labels) < 0.3
    assert calibration([0.5] * 4, labels) == pytest.approx(2.0)
    assert np.isfinite(log_loss([1.0, 0.0], [0, 1]))
    for metric in (log_loss, normalized_entropy, calibration, auc):
        assert np.isnan(metric([], []))


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 is nan"):
        auc([0.1, float("nan")], [0, 1])


def planted(users: int = 150, seed: int = 1) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 10)
    truth = generator.random(user.size)
    label = (generator.random(user.size) < truth).astype(int)
    return truth, truth + generator.normal(0, 0.5, user.size), label, user


def test_the_interval_finds_a_difference_and_none_where_there_is_none() -> None:
    good, bad, label, user = planted()
    found = paired_auc_interval(good, bad, label, user, samples=200)
    assert found.low > 0 and found.low < found.difference < found.high
    assert found.difference == pytest.approx(auc(good, label) - auc(bad, label))
    same = paired_auc_interval(good, good * 2, label, user, samples=50)
    assert (same.low, same.difference, same.high) == (0, 0, 0)
    assert paired_auc_interval(good, bad, label, user, samples=200) == found
    assert paired_auc_interval(good, bad, label, user, samples=200, seed=1) != found


def test_the_interval_is_wider_where_users_repeat_themselves() -> None:
    good, bad, label, _user = planted(users=30)
    alone = paired_auc_interval(good, bad, label, np.arange(label.size), samples=300)
    copies = [np.tile(x, 8) for x in (good, bad, label)]
    owners = np.tile(np.arange(label.size), 8)
    grouped = paired_auc_interval(*copies, owners, samples=300)
    naive = paired_auc_interval(*copies, np.arange(owners.size), samples=300)
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.2)
    assert naive.high - naive.low < 0.6 * (grouped.high - grouped.low)


def test_days_are_those_of_the_time_zone() -> None:
    before = 1_651_075_199_999  # 27 April 2022, 23:59:59.999 in Beijing
    assert list(by_day(len, [before, before + 1], [1, 2])) == ["2022-04-27"]
    found = by_day(lambda x: x.sum(), [before, before + 1, before + 2], [1, 2, 3], utc_offset_h=8.0)
    assert found == {"2022-04-27": 1, "2022-04-28": 5}


def predictions(n: int = 300) -> Predictions:
    good, _, label, user = planted(users=n // 10)
    return Predictions(
        request_id=[f"r{i}" for i in range(n)],
        user_id=user.tolist(),
        item_id=[f"v{i % 7}" for i in range(n)],
        time_ms=np.arange(n) * 1_000_000,
        line=["main"] * n,
        version=[f"0.{i}" for i in range(n)],
        scores={"long_view": good, "like": np.full(n, 0.5)},
        labels={"long_view": label, "like": np.zeros(n)},
    )


def test_the_report_holds_each_label_by_day_and_slice() -> None:
    given_ = predictions()
    mask = np.arange(300) < 100
    report = build_report(given_, slices={"first": mask}, about={"data": "planted"})
    long = report["labels"]["long_view"]
    assert long["auc"] == pytest.approx(auc(given_.scores["long_view"], given_.labels["long_view"]))
    assert sum(day["rows"] for day in long["by_day"].values()) == report["rows"] == 300
    assert long["slices"]["first"]["rows"] == 100 and report["users"] == 30
    assert report["labels"]["like"]["auc"] is None
    assert report["data"] == "planted"


def test_predictions_and_report_survive_the_disk(tmp_path: Path) -> None:
    given_ = predictions()
    file = PredictionsFile(tmp_path / "p.parquet", ["long_view", "like"])
    blocks = [given_.rows(np.arange(n, n + 100)) for n in (0, 100, 200)]
    for block in blocks:
        file.write(block)
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet.part"]
    found = file.finish()
    assert list(found.user_id) == list(given_.user_id) and found.item_id[3] == "v3"
    assert np.allclose(found.scores["long_view"], given_.scores["long_view"], atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]
    again = read_predictions(tmp_path / "p.parquet")
    assert list(again.request_id) == list(found.request_id) == list(given_.request_id)
    write_report(tmp_path / "r.json", build_report(found))
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == 300


def test_runs_are_compared_on_the_rows_that_both_scored() -> None:
    given_ = predictions()
    later = given_.rows(np.arange(299, 99, -1))
    same = compare(given_, later, "long_view")
    assert same["rows"] == 200 and same["difference"] == 0 == same["low"]
    none = compare(given_, given_.rows(np.array([], int)), "long_view")
    assert none["rows"] == 0 and none["difference"] is None


def test_columns_of_another_length_are_named() -> None:
    with pytest.raises(ValueError, match="line has 1 rows, expected 2"):
        Predictions(["a", "b"], [1, 2], [1, 2], [0, 0], ["main"], ["0.1"] * 2, {}, {})


@settings(max_examples=20)
@given(ROWS)
def test_auc_is_the_same_for_any_rising_map_of_scores(rows: list) -> None:
    score, label, user = columns(rows)
    assert auc(score**3 + 5, label) == pytest.approx(auc(score, label), nan_ok=True)
    assert grouped_auc(score**3 + 5, label, user) == pytest.approx(
        grouped_auc(score, label, user), nan_ok=True
    )
