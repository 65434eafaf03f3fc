import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from parameter_server.shard.lanes import LaneGradients, RowGradients
from plugins.registry_report.command import models
from tests.support.training.registry_cases import provenance, shard
from tests.support.training.small_feed import START_MS
from training.candidates.registry import Registry, Teacher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two candidates: the second learned one step more, of one row more."""
    its = Registry(tmp_path)
    one, two = shard(), shard()
    rows = RowGradients(np.array([3, 99], np.int64), np.ones((2, 5), np.float32), np.ones(2, np.int32))
    two.learn(3, START_MS + 5, [LaneGradients(0, {"features": rows}, np.ones(5, np.float32))])
    arrays, meta = one.export()
    its.add(provenance("cand-1"), arrays, meta, step=2)
    arrays, meta = two.export()
    its.add(provenance("cand-2", until_ms=START_MS + 9, made_ms=START_MS + 1), arrays, meta, step=3)
    return tmp_path


def called(folder: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(models, [*words, "--registry", str(folder)])
    return done.exit_code, done.output


def as_json(folder: Path, *words: str) -> Any:
    status, output = called(folder, *words, "--json", "-")
    assert status == 0, output
    return json.loads(output)


def test_the_list_has_all_and_says_which_is_corrupt(folder: Path) -> None:
    (folder / "cand-1" / "candidate.json").write_text("{")
    rows = as_json(folder, "list")
    assert [row["name"] for row in rows] == ["cand-1", "cand-2"]
    assert "corrupt" in rows[0]["refused"] and rows[1]["auc"] == 0.7
    status, output = called(folder, "list")
    assert status == 0 and "cand-2" in output
    assert "recsys offline" in called(folder / "none", "list")[1]


@pytest.mark.parametrize("file", ["none/f.json", "."])
def test_a_file_that_cannot_be_written_ends_it_in_one_line(folder: Path, file: str) -> None:
    status, output = called(folder, "list", "--json", str(folder / file))
    assert status == 2 and "recsys: " in output
    assert "cand-2" not in output


def test_one_is_shown_with_its_tables(folder: Path) -> None:
    shown = as_json(folder, "show", "cand-2")
    assert shown["tables"]["features"] == {"rows": 4, "dim": 5}
    assert (shown["steps"], shown["dense"], shown["offsets"]) == (3, 5, {"0": 7, "1": 9})
    assert "features" in called(folder, "show", "cand-2")[1]


def test_two_are_compared(folder: Path) -> None:
    found = as_json(folder, "diff", "cand-1", "cand-2")
    features = found["tables"]["features"]
    assert (features["only_a"], features["only_b"]) == (0, 1)
    assert 0 < features["distance"] < 1 and 0 < found["dense"] < 1
    assert set(found["fields"]) == {"until_ms", "made_ms"}
    same = as_json(folder, "diff", "cand-1", "cand-1")
    assert same["fields"] == {} and same["tables"]["features"]["distance"] == same["dense"] == 0.0
    assert "of dense parameters: 0." in called(folder, "diff", "cand-1", "cand-2")[1]


def test_who_taught_a_student_is_told(folder: Path) -> None:
    teacher = Teacher(by="served", share=0.25, examples=9, served={"main/3": 9})
    arrays, meta = shard().export()
    its = provenance("student-1", kind="student", teacher=teacher, made_ms=START_MS + 2)
    Registry(folder).add(its, arrays, meta, step=2)
    row = as_json(folder, "list")[-1]
    assert (row["kind"], row["model"]) == ("student", "dim 4, hidden 8")
    assert row["teacher"] == "main/3, 0.25 of 9 examples"
    shown = as_json(folder, "show", "student-1")
    assert shown["teacher"]["served"] == {"main/3": 9} and shown["config"]["dim"] == 4
    assert "teacher.share" in called(folder, "show", "student-1")[1]
    fields = as_json(folder, "diff", "cand-1", "student-1")["fields"]
    assert fields["kind"] == ["offline", "student"] and fields["teacher.share"] == [None, 0.25]


def test_what_is_wrong_is_one_line(folder: Path) -> None:
    status, output = called(folder, "show", "cand-9")
    assert status == 2 and "no candidate 'cand-9'" in output and "Traceback" not in output
