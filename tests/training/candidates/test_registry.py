import json
import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import pytest

from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard
from parameter_server.storage.durable_shard import load_shard
from parameter_server.storage.part_files import encode_manifest
from recsys.config.system_config import ModelConfig, digest
from recsys.events.control_records import Live
from recsys.features.feature_set import FeatureSet
from tests.support.parameter_server.snapshot_rows import load_rows
from tests.support.power_cut import power_cut
from tests.support.training.registry_cases import MODEL, SPEC, provenance, shard
from tests.support.training.small_feed import FEATURES, START_MS
from training.candidates.registry import (
    FILE,
    Provenance,
    Refused,
    Registry,
    SnapshotRef,
    Teacher,
    describe_model,
    describe_teacher,
    model_config,
    model_size_of,
    new_name,
    plain_config,
    reference_to,
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    its = Registry(tmp_path / "registry")
    arrays, meta = shard().export()
    its.add(provenance(), arrays, meta, step=2)
    return its


def test_a_candidate_survives_a_power_cut(tmp_path: Path) -> None:
    """The job that made it has removed its checkpoints by then."""
    registry = Registry(tmp_path / "registry")
    with power_cut(tmp_path):
        registry.add(provenance(), *shard().export(), step=2)
    assert registry.snapshot("cand-1").step == 2


def test_a_job_that_goes_on_leaves_nothing_of_the_one_that_was_killed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with mock.patch.object(os, "rename", side_effect=KeyboardInterrupt), mock.patch("shutil.rmtree"):
        with pytest.raises(KeyboardInterrupt):
            registry.add(provenance(), *shard().export(), step=2)
    assert [path.name for path in tmp_path.iterdir()] == [".making-cand-1"]
    registry.add(provenance(), *shard().export(), step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["cand-1"]


def checked(registry: Registry, **changes: object) -> Provenance:
    asked = dict(features=FEATURES, model=MODEL, holdout_from_ms=START_MS, log_id="log-a")
    asked |= changes
    return registry.check("cand-1", **asked)[0]  # type: ignore[arg-type]


def test_a_candidate_is_a_line_that_a_shard_goes_on_from(registry: Registry) -> None:
    its, snapshot = registry.check("cand-1", FEATURES, MODEL, holdout_from_ms=START_MS, log_id="log-a")
    assert its == provenance() and registry.names() == ["cand-1"] and model_config(its) == MODEL
    again = Shard(SPEC, np.zeros(5, np.float32))
    load_shard(again, snapshot)
    assert again.digest() == shard().digest()
    rows = load_rows(registry.folder, "cand-1")
    assert sorted(rows.tables["features"][0]) == [3, 11, 12]
    assert reference_to(snapshot).line == "cand-1" and len(reference_to(snapshot).sha256) == 64


def test_a_name_is_given_once(registry: Registry) -> None:
    arrays, meta = shard().export()
    with pytest.raises(Refused, match="there is a candidate cand-1"):
        registry.add(provenance(), arrays, meta, step=2)
    assert [entry.name for entry in registry.folder.iterdir()] == ["cand-1"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": FeatureSet(FEATURES.schema, "ids")}, "reads feature set"),
        ({"model": replace(MODEL, dim=8)}, "model.dim is 4, expected 8"),
        ({"holdout_from_ms": START_MS - 1}, "past the beginning of the holdout"),
        ({"log_id": "log-b"}, "is of log 'log-a', expected log 'log-b'"),
    ],
)
def test_a_candidate_that_does_not_fit_is_refused(
    registry: Registry, changes: dict[str, object], reason: str
) -> None:
    checked(registry, holdout_from_ms=None, log_id=None)
    with pytest.raises(Refused, match=reason):
        checked(registry, **changes)


SMALL = replace(MODEL, dim=2, hidden=(4,))


def of_model(its: ModelConfig, **changes: object) -> Provenance:
    about = dict(model=digest(its), config=plain_config(its), kind="student") | changes
    return provenance("cand-2", **about)


@pytest.mark.parametrize(
    ("its", "reason"),
    [
        (of_model(SMALL), ""),
        (of_model(MODEL), ""),
        (of_model(SMALL, kind="offline"), ""),
        (
            of_model(replace(SMALL, vector_dim=2, row_rate=0.1)),
            "configuration: model.vector_dim is 2, expected 4, model.row_rate is 0.1, expected 0.005",
        ),
        (of_model(SMALL, model=digest(replace(SMALL, dim=3))), "its configuration is of"),
        (of_model(SMALL, config=plain_config(SMALL) | {"dim": 0}), "can't be read"),
        (of_model(SMALL, feature_set="old"), "reads feature set old"),
        (of_model(SMALL, log_id="log-b"), "is of log 'log-b'"),
        (of_model(SMALL, until_ms=START_MS + 1), "past the beginning of the holdout"),
    ],
)
def test_a_model_may_be_of_another_size_and_nothing_else(
    registry: Registry, its: Provenance, reason: str
) -> None:
    arrays, meta = shard().export()
    registry.add(its, arrays, meta, step=2)
    asked = dict(holdout_from_ms=START_MS, log_id="log-a")

    def proposed() -> None:
        found = registry.provenance("cand-2")
        model_size_of(found, MODEL)
        registry.check("cand-2", FEATURES, model_config(found), **asked)  # type: ignore[arg-type]

    if not reason:
        return proposed()
    with pytest.raises(Refused, match=reason):
        proposed()


def test_who_taught_is_kept_and_sealed(registry: Registry) -> None:
    teacher = Teacher(by="served", share=0.5, examples=7, served={"main/0": 7})
    arrays, meta = shard().export()
    registry.add(of_model(SMALL, teacher=teacher), arrays, meta, step=2)
    assert registry.provenance("cand-2").teacher == teacher
    assert describe_teacher(teacher) == "main/0, 0.5 of 7 examples"
    provenance = registry.provenance("cand-2")
    assert describe_model(provenance) == "dim 2, hidden 4"
    plugin = msgspec.structs.replace(provenance, config=provenance.config | {"ranker": "sequence@1"})
    assert describe_model(plugin) == "sequence@1, dim 2, hidden 4"
    file = registry.folder / "cand-2" / FILE
    file.write_text(file.read_text().replace('"share": 0.5', '"share": 0.6'))
    with pytest.raises(Refused, match="was changed"):
        registry.provenance("cand-2")


def test_a_file_from_before_there_were_students_is_whole(tmp_path: Path) -> None:
    its = dict(name="cand-1", kind="offline", feature_set="f", model="m", config={"dim": 4},
               code="c", made_ms=1, from_ms=2, until_ms=3, offsets={0: 7},
               metrics={"last_day.auc": 0.5})  # fmt: skip
    said = {
        "provenance": its,
        "snapshot": {"line": "cand-1", "epoch": 0, "step": 2, "sha256": "aa"},
        "digest": "f5c78e0b94ce5ae54ef09e86aed9e93b901d0396134c2e0ad86df588decb94d3",
    }
    (tmp_path / "cand-1").mkdir()
    (tmp_path / "cand-1" / FILE).write_text(json.dumps(said))
    found = Registry(tmp_path).provenance("cand-1")
    assert found == Provenance(**its) and found.teacher is None  # type: ignore[arg-type]


def test_what_was_not_learned_from_a_log_has_no_offsets_of_it(registry: Registry) -> None:
    arrays, meta = shard().export()
    registry.add(provenance("cand-2", log_id="", offsets={}), arrays, meta, step=2)
    with pytest.raises(Refused, match="of a folder of data"):
        registry.check("cand-2", FEATURES, MODEL, holdout_from_ms=None, log_id="log-a")


def test_a_corrupt_file_is_refused(registry: Registry) -> None:
    arrays = next(registry.folder.glob("cand-1/*/part-*/arrays.safetensors"))
    data = bytearray(arrays.read_bytes())
    data[-1] ^= 1
    arrays.write_bytes(data)
    with pytest.raises(Refused, match="corrupt.*SHA-256"):
        checked(registry)


def test_a_file_that_says_something_else_now_is_refused(registry: Registry) -> None:
    file = registry.folder / "cand-1" / FILE
    said = json.loads(file.read_text())
    said["provenance"]["until_ms"] -= 1_000_000
    file.write_text(json.dumps(said))
    with pytest.raises(Refused, match="was changed"):
        checked(registry)
    file.write_text("{")
    with pytest.raises(Refused, match="corrupt"):
        checked(registry)


def test_the_snapshot_of_another_is_refused(registry: Registry) -> None:
    other = shard()
    rows = RowGradients(np.array([3], np.int64), np.ones((1, 5), np.float32), np.ones(1, np.int32))
    other.learn(3, START_MS, [LaneGradients(0, {"features": rows})])
    arrays, meta = other.export()
    registry.add(provenance("cand-2"), arrays, meta | {"step": 2}, step=2)
    theirs = next(registry.folder.glob("cand-2/*/part-*"))
    mine = next(registry.folder.glob("cand-1/*/part-*"))
    manifest = json.loads((theirs / "manifest.json").read_text()) | {"line": "cand-1"}
    (mine / "manifest.json").write_text(encode_manifest(manifest))
    (mine / "arrays.safetensors").write_bytes((theirs / "arrays.safetensors").read_bytes())
    with pytest.raises(Refused, match="isn't the one"):
        checked(registry)


def test_numbers_that_are_not_finite_and_names_that_are_not_there(registry: Registry) -> None:
    arrays, meta = shard().export()
    arrays["dense/values"][0] = np.nan
    with pytest.raises(Refused, match="dense/values"):
        registry.add(provenance("cand-2"), arrays, meta, step=2)
    with pytest.raises(Refused, match="no candidate 'cand-2'.*there is cand-1"):
        registry.snapshot("cand-2")
    with pytest.raises(Refused, match="kind is 'guess'"):
        registry.add(provenance("cand-3", kind="guess"), arrays, meta, step=2)


def test_names_say_when_and_fit_a_line() -> None:
    name = new_name("offline", 1_795_640_592_000)
    assert name.startswith("cand-20261125-210312-") and name != new_name("offline", 1_795_640_592_000)
    assert new_name("student", 0).startswith("student-19700101-")


UNLEARNED = Live(line="main", epoch=2, base_step=3, parent_epoch=1, time_ms=START_MS + 50)


def test_what_may_have_learned_from_a_user_who_was_unlearned_since_is_refused(registry: Registry) -> None:
    with pytest.raises(Refused, match="cand-1.*may have learned from a user who was unlearned"):
        checked(registry, unlearned=UNLEARNED)
    earlier = msgspec.structs.replace(UNLEARNED, time_ms=START_MS - 50)
    assert checked(registry, unlearned=earlier)
    arrays, meta = shard().export()
    late = dict(made_ms=START_MS + 100)
    for name, its in {
        "of-data": dict(log_id="", offsets={}, made_ms=START_MS),
        "of-live": late | dict(ancestor=SnapshotRef("main", 2, 5, "")),
        "of-live-before": late | dict(ancestor=SnapshotRef("main", 1, 5, "")),
        "of-a-candidate-before": late | dict(ancestor=SnapshotRef("cand-1", 0, 2, "")),
        "of-its-child": late | dict(ancestor=SnapshotRef("of-a-candidate-before", 0, 2, "")),
        "of-one-that-is-gone": late | dict(ancestor=SnapshotRef("cand-0", 0, 2, "")),
        "taught-by-it": late
        | dict(
            kind="student", teacher=Teacher(by="cand-1", share=0.5, snapshot=SnapshotRef("cand-1", 0, 2, ""))
        ),
    }.items():
        registry.add(provenance(name, **its), arrays, meta, step=2)
    asked = dict(holdout_from_ms=None, log_id="log-a", or_data=True, unlearned=UNLEARNED)
    for name in ("of-data", "of-live"):
        assert registry.check(name, FEATURES, MODEL, **asked)  # type: ignore[arg-type]
    for name in (
        "of-live-before", "of-a-candidate-before", "of-its-child", "of-one-that-is-gone", "taught-by-it",
    ):  # fmt: skip
        with pytest.raises(Refused, match="may have learned|no candidate 'cand-0'"):
            registry.check(name, FEATURES, MODEL, **asked)  # type: ignore[arg-type]
