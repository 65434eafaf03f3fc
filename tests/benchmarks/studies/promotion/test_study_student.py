"""The study of students: that its arms are what they say, and that the command tells all of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.promotion import student_arms, study_student
from benchmarks.studies.promotion.student_arms import Arms, as_int8, replace_last, requests_of
from benchmarks.study import study
from recsys.config.system_config import tables_of
from recsys.model.model import build_model
from serving.replica.row_store import RowStore
from serving.scorers.probabilities import probabilities
from tests.support.small_log import write_log
from tests.support.training.offline_examples import MODEL, toy_blocks
from tests.support.training.small_feed import FEATURES
from training.offline.examples import Examples, concatenated
from training.offline.loop import Plan

SMALL = replace(MODEL, dim=2, hidden=(4,))
PLAN = Plan(last=1, epochs=1, step_examples=16)


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Examples:
    monkeypatch.setattr(student_arms, "BLOCK", 24)
    return concatenated(toy_blocks(5).blocks)


@pytest.fixture
def arms(examples: Examples) -> Arms:
    return Arms(FEATURES, MODEL, examples, 96, PLAN, 2)


def test_what_is_judged_was_not_learned_before(examples: Examples, arms: Arms) -> None:
    labels = np.where(np.arange(120)[:, None] < 96, examples.labels, 1 - examples.labels)
    others = Arms(FEATURES, MODEL, replace(examples, labels=labels), 96, PLAN, 2)
    arrays, same = arms.train(SMALL, 0.5), others.train(SMALL, 0.5)
    assert all(np.array_equal(arrays[name], same[name]) for name in arrays)
    one, two = arms.judge(SMALL, arrays), others.judge(SMALL, same)
    assert np.array_equal(one.frozen, two.frozen) and np.array_equal(one.int8, two.int8)
    assert np.array_equal(one.learning[:16], two.learning[:16])
    assert not np.array_equal(one.learning[16:], two.learning[16:])
    alone = arms.train(SMALL)
    assert not np.array_equal(alone["dense/values"], arrays["dense/values"])


def test_int8_is_what_a_replica_keeps_and_it_ranks_what_was_learned(examples: Examples, arms: Arms) -> None:
    arrays = as_int8(arms.train(SMALL))
    stores = {
        table.name: RowStore.filled(
            table, SMALL.seed, arrays[f"table/{table.name}/keys"], arrays[f"table/{table.name}/values"]
        )
        for table in tables_of(SMALL)
    }
    network = build_model(FEATURES, SMALL)
    network.write_dense(arrays["dense/averaged"])
    judged = examples.take(slice(96, None))
    judgement = arms.judge(SMALL, arms.train(SMALL))
    said = judgement.int8
    assert not np.array_equal(said, judgement.frozen)
    requests = requests_of(FEATURES, judged, 4)
    assert [len(its.items_NI) for its in requests] == [300] * 4
    for n, request in enumerate(requests):
        first = probabilities(network, stores, [request])[0, 0]
        assert first == pytest.approx(said[n * 6], abs=1e-5)


def test_a_narrower_model_costs_less(arms: Arms) -> None:
    large, small = arms.train(MODEL), arms.train(SMALL)
    whole = arms.cost(MODEL, large, 5)
    narrow = arms.cost(SMALL, small, 5)
    assert narrow.row_bytes < whole.row_bytes and narrow.bytes < whole.bytes
    assert narrow.rank_us > 0
    with pytest.raises(ValueError, match="1 blocks of 24 examples"):
        replace_last(PLAN, 1)


def test_the_command_tells_all_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_log(tmp_path / "log", requests=40)
    times = [json.loads(line)["time_ms"] for line in (folder / "events.jsonl").open()]
    monkeypatch.setattr(student_arms, "BLOCK", 24)
    middle = (min(times) + 2 * max(times)) // 3
    monkeypatch.setattr(study_student, "judged_from_ms", lambda dataset: middle)
    monkeypatch.setattr(study_student, "_SAMPLES", 20)
    words = ["student", str(folder), "--student", "dim=4,hidden=8", "--seeds", "1", "--epochs", "1"]
    done = CliRunner().invoke(study, [*words, "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["arm"], row["way"]) for row in found["aucs"]][:2] == [
        ("teacher", "learning"),
        ("as large, offline", "learning"),
    ]
    assert len(found["aucs"]) == 10 and found["rows"] > 20 and found["learned"] > 40
    assert found["student"] == {"dim": 4, "hidden": [8], "share": 0.5}
    sizes = {its["arm"]: its["bytes_a_row"] for its in found["costs"]}
    assert sizes["student, taught"] < sizes["teacher"]
    assert "student, taught, int8 − student, taught, frozen" in done.output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--student", "dim=64"], "expected no number above the system's"),
        (["--teacher-share", "-1"], "share is -1.0, expected 0"),
        (["--seeds", "0"], "--seeds is 0"),
    ],
)
def test_bad_options_are_refused(words: list[str], reason: str) -> None:
    done = CliRunner().invoke(study, ["student", "world", *words])
    assert done.exit_code == 2 and reason in done.output
