"""The command from an archive or a data set to a candidate, killed and started again, and what it refuses."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from parameter_server.shard.shard import Shard, ShardSpec
from parameter_server.storage.durable_shard import load_shard
from plugins.backfill.command import copy_filled
from plugins.backfill.fill import KEPT
from recsys.config.system_config import Config, ModelConfig, tables_of
from recsys.events.control_records import Candidate, ModelSize
from recsys.events.records import CONTROL, topics, unpack
from recsys.features import feature_set_file as feature_sets
from recsys.model.model import build_model
from recsys.model.ranker import RankerModule, RankerShape
from recsys.process.open_log import open_log
from runtime.cli.main import COMMANDS, load
from runtime.jobs.offline_job import _archive_examples, _student, run
from runtime.supervision import launch_plan as plans
from tests.support.paths import ROOT
from tests.support.plan_config import config_in
from tests.support.small_log import write_log
from tests.support.training.archived_examples import COUNT, MINUTE_MS, archived, at, remove_hour
from tests.support.training.offline_command import CONFIG, arrays_of, asked, state_with_archive
from tests.support.training.small_feed import FEATURES, START_MS
from training.candidates.registry import Registry, model_config, model_size_of
from training.offline import job as offline_job
from training.offline import teacher_labels as teaching
from training.offline.job import FileCheckpoints


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return state_with_archive(tmp_path_factory.mktemp("system"))


MODEL = ModelConfig(dim=4, vector_dim=4, hidden=(8,))
SEQUENCE = "examples.sequence_model.recsys_sequence_model:SequenceRanker@1"


def called(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(load(COMMANDS["offline"][0], "offline"), list(words))
    return done.exit_code, done.output


def test_an_archive_becomes_a_candidate_that_a_line_goes_on_from(system: Path, tmp_path: Path) -> None:
    done = run(asked(system, tmp_path))
    name = done["candidate"]
    its, snapshot = Registry(tmp_path).check(
        name, FEATURES, MODEL, holdout_from_ms=START_MS + COUNT * MINUTE_MS,
        log_id=(system / "archive" / "log_id").read_text(),
    )  # fmt: skip
    assert (its.kind, its.examples, its.offsets) == ("offline", COUNT, {0: 27, 1: 27, 2: 27})
    assert 0 < its.metrics["last_day.log_loss"] < 2 and its.epochs in (1.0, 2.0)
    assert its.code and its.config["dim"] == 4 and its.ancestor is None
    shard = Shard(ShardSpec(tables_of(MODEL), lanes=2), snapshot.read(0)["dense/values"])
    load_shard(shard, snapshot)
    assert shard.applied == snapshot.step > 0 and len(shard.tables["features"]) > 20
    again = run(asked(system, tmp_path))
    assert again["already registered"] and again["candidate"] == name
    left = {path.name for path in (tmp_path / ".work").glob("*/*")}
    assert left == {"job.json", "lock"}, "neither checkpoints nor examples of people stay behind"


def test_a_candidate_may_have_the_ranker_of_a_plug_in(system: Path, tmp_path: Path) -> None:
    done = run(asked(system, tmp_path, ranker=SEQUENCE))
    model = replace(MODEL, ranker=SEQUENCE)
    provenance = Registry(tmp_path).provenance(done["candidate"])
    assert model_config(provenance) == model and provenance.kind == "offline"
    assert model_size_of(provenance, MODEL) == ModelSize(4, (8,), ranker=SEQUENCE)
    arrays, network = arrays_of(tmp_path, done["candidate"]), build_model(FEATURES, model)
    learned = arrays["0/dense/values"]
    assert len(learned) == network.dense_size()
    head = network.ranker.get_parameter("head.weight")
    assert not head.any(), "begins as the built-in one"
    network.write_dense(learned)
    assert head.any() and 0 < provenance.metrics["last_day.log_loss"] < 2
    assert _student(asked(system, tmp_path), model)[0] == model
    assert _student(asked(system, tmp_path, ranker="built-in"), model)[0] == MODEL


def test_now_is_as_far_as_the_archive_has_come(system: Path, tmp_path: Path) -> None:
    name = run(asked(system, tmp_path, until="now"))["candidate"]
    its = Registry(tmp_path).provenance(name)
    last = START_MS + (COUNT - 1) * MINUTE_MS  # the events tick on
    assert its.until_ms == last // 1000 * 1000 + 1000 and its.examples == COUNT
    status, output = called("--registry", str(tmp_path))
    assert status == 2 and "give --state FOLDER" in output


def test_it_is_proposed_where_that_is_asked_for(system: Path, tmp_path: Path) -> None:
    config, plan = plans.resolve(config_in(tmp_path / "live", model=MODEL), only=["log"])
    feature_sets.write_feature_set(config, FEATURES)
    plans.write(config, plan)
    log = open_log(config)
    for topic in topics(2):
        log.create(topic)
    archive = shutil.copytree(system / "archive", tmp_path / "archive")
    (archive / "log_id").write_text(log.id)
    words = [
        "--data", str(archive), "--registry", str(tmp_path / "registry"), "--until",
        str(START_MS + COUNT * MINUTE_MS), "--state", config.state, "--workers", "0",
        "--tables", "own", "--epochs", "1", "--propose", config.state,
    ]  # fmt: skip
    status, output = called(*words)
    assert status == 0, output
    (record,) = log.read(CONTROL, 0, 0)
    said = unpack(record.value, Candidate)
    assert [said.line] == Registry(tmp_path / "registry").names() and said.learns
    assert called(*words)[0] == 2 and log.end(CONTROL, 0) == 1  # a name is used once
    log.close()


def test_it_starts_from_another_and_says_so(system: Path, tmp_path: Path) -> None:
    first = run(asked(system, tmp_path, until=str(START_MS + 50 * MINUTE_MS)))["candidate"]
    second = run(asked(system, tmp_path, init=first))["candidate"]
    its = Registry(tmp_path).provenance(second)
    assert its.ancestor is not None and its.ancestor.line == first
    path = tmp_path / first
    by_folder = run(asked(system, tmp_path / "b", init=str(path)))["candidate"]
    for name, array in arrays_of(tmp_path / "b", by_folder).items():
        assert np.array_equal(array, arrays_of(tmp_path, second)[name]), name
    steps = arrays_of(tmp_path, second)["0/dense/t"] - arrays_of(tmp_path, first)["0/dense/t"]
    assert steps > 0


def test_killed_at_any_checkpoint_it_ends_with_the_same_candidate(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(asked(system, tmp_path / "a"))["candidate"]
    real, calls = FileCheckpoints.save, 0

    def dies(self: FileCheckpoints, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 1:
            raise KeyboardInterrupt  # before
        real(self, *args)
        if calls % 7 == 4:
            raise KeyboardInterrupt  # after

    monkeypatch.setattr(FileCheckpoints, "save", dies)
    kills, done = 0, None
    while done is None and kills < 40:
        try:
            done = run(asked(system, tmp_path / "b"))
        except KeyboardInterrupt:
            kills += 1
    assert kills > 2 and done is not None
    one, two = arrays_of(tmp_path / "a", whole), arrays_of(tmp_path / "b", done["candidate"])
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    ours, theirs = Registry(tmp_path / "a"), Registry(tmp_path / "b")
    assert ours.provenance(whole).metrics == theirs.provenance(done["candidate"]).metrics


def test_killed_after_the_candidate_was_added_it_is_not_made_twice(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(offline_job, "clean_up", dies)
        with pytest.raises(KeyboardInterrupt):
            run(asked(system, tmp_path))
    assert run(asked(system, tmp_path))["already registered"] and len(Registry(tmp_path).names()) == 1


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose archive knows what was predicted of two examples in three."""
    folder = tmp_path_factory.mktemp("answered")
    feature_sets.write_feature_set(Config(state=str(folder)), FEATURES)
    said = [np.array([n % 3 / 3 + 0.1, 0.2, 0.3], np.float32).tobytes() for n in range(COUNT)]
    examples = [at(n, predicted=said[n] if n % 3 else b"", served_by="main/2") for n in range(COUNT)]
    archived(folder / "archive", examples=examples)
    (folder / "small.yaml").write_text(CONFIG)
    return folder


SMALL = "dim=2,hidden=4"


def test_a_student_learns_what_served_as_well(answered: Path, tmp_path: Path) -> None:
    done = run(asked(answered, tmp_path, student=SMALL))
    name = done["candidate"]
    assert name.startswith("student-") and done["teacher"] == "main/2, 0.5 of 54 examples"
    log_id = (answered / "archive" / "log_id").read_text()
    small = model_config(Registry(tmp_path).provenance(name))
    its, snapshot = Registry(tmp_path).check(
        name, FEATURES, small, holdout_from_ms=START_MS + COUNT * MINUTE_MS, log_id=log_id
    )
    assert small == replace(MODEL, dim=2, hidden=(4,)) and its.kind == "student"
    assert its.teacher is not None and its.teacher.served == {"main/2": 54}
    shard = Shard(ShardSpec(tables_of(small), lanes=2), snapshot.read(0)["dense/values"])
    load_shard(shard, snapshot)
    assert len(shard.tables["features"]) > 20 and "last_day.auc" in its.metrics
    alone = run(asked(answered, tmp_path, student=SMALL, teacher_share=0.0))["candidate"]
    one, two = arrays_of(tmp_path, name), arrays_of(tmp_path, alone)
    assert not np.array_equal(one["0/dense/values"], two["0/dense/values"])
    again = run(asked(answered, tmp_path, student=SMALL, teacher_share=0.5))
    assert again["already registered"] and again["candidate"] == name, "0.5 is what is meant without"
    left = {path.name for path in (tmp_path / ".work").glob("*/*")}
    assert left == {"job.json", "lock"}


def test_a_candidate_teaches_what_it_knows(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = str(START_MS + 50 * MINUTE_MS)
    teacher = run(asked(answered, tmp_path, until=before))["candidate"]
    taught = asked(answered, tmp_path, student=SMALL, teacher=teacher)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teaching.os, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            run(taught)
    its = Registry(tmp_path).provenance(run(taught)["candidate"])
    assert its.teacher is not None and its.teacher.snapshot is not None
    assert (its.teacher.by, its.teacher.snapshot.line) == (teacher, teacher)
    assert its.teacher.examples == COUNT and its.teacher.served == {}
    served = run(asked(answered, tmp_path, student=SMALL))["candidate"]
    one, two = arrays_of(tmp_path, its.name), arrays_of(tmp_path, served)
    assert not np.array_equal(one["0/dense/values"], two["0/dense/values"])
    late = run(asked(answered, tmp_path))["candidate"]
    with pytest.raises(ValueError, match="past the beginning of the holdout"):
        run(asked(answered, tmp_path, student=SMALL, teacher=late))


def test_a_student_of_who_learns_along_a_data_set(system: Path, tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log", requests=30)
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    its = asked(system, tmp_path / "registry", data=folder, until=str(last["time_ms"]), student=SMALL)
    found = Registry(its.registry).provenance(run(its)["candidate"])
    assert found.teacher is not None and found.teacher.by == "along"
    assert found.teacher.examples == found.examples > 20


def test_killed_at_any_checkpoint_a_student_is_the_same(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(asked(answered, tmp_path / "a", student=SMALL))["candidate"]
    real, calls = FileCheckpoints.save, 0

    def dies(self: FileCheckpoints, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 1:
            raise KeyboardInterrupt
        real(self, *args)

    monkeypatch.setattr(FileCheckpoints, "save", dies)
    kills, done = 0, None
    while done is None and kills < 40:
        try:
            done = run(asked(answered, tmp_path / "b", student=SMALL))
        except KeyboardInterrupt:
            kills += 1
    assert kills > 1 and done is not None
    one, two = arrays_of(tmp_path / "a", whole), arrays_of(tmp_path / "b", done["candidate"])
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def test_two_at_once_are_refused(system: Path, tmp_path: Path) -> None:
    run(asked(system, tmp_path))
    (folder,) = (tmp_path / ".work").glob("job-*")
    with offline_job.locked(folder), pytest.raises(offline_job.Busy, match="running already"):
        run(asked(system, tmp_path))


class Unmade(RankerModule):
    """A ranker whose constructor takes no seed."""

    version = "1"

    def __init__(self, shape: RankerShape) -> None:
        super().__init__(shape)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--until", "tomorrow"], "is no time"),
        (["--until", "2023-11-16", "--workers", "0"], "before --until 2023-11-16"),
        (["--until", "2023-11-15", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["--until", "2023-11-15", "--tables", "gold"], "expected 'torchrec' or 'own'"),
        (["--until", "2023-11-15", "--init", "cand-7"], "neither a candidate in"),
        (["--until", "2023-11-15", "--features", "ids"], "feature set is"),
        (["--until", "2023-11-14T22:00"], "there is no example before"),
        (["--until", "2023-11-15", "--propose", "/no/such"], "no system was started there"),
        (["--until", "2023-11-15", "--teacher", "cand-7"], "given without --student"),
        (["--until", "2023-11-15", "--teacher-share", "0.5"], "given without --student"),
        (["--until", "2023-11-15", "--student", "dim=8", "--ranker", "a@1"], "given together"),
        (["--until", "2023-11-15", "--ranker", "sequnce@1"], "no plug-in 'sequnce' of the group"),
        (
            ["--until", "2023-11-15", "--ranker", f"{__name__}:Unmade@1"],
            "can't be made for these features: TypeError(",
        ),
        (["--until", "2023-11-15", "--student", "vector_dim=4"], "'vector_dim=4' is given"),
        (["--until", "2023-11-15", "--student", "dim=32"], "expected no number above the system's"),
        (["--until", "2023-11-15", "--student", "dim=8", "--teacher-share", "2"], "share is 2.0"),
        (["--until", "2023-11-15", "--student", "dim=8", "--teacher", "c"], "no candidate 'c'"),
        (["--until", "2023-11-15", "--student", "dim=8"], "says what the live line predicted"),
    ],
)
def test_bad_input_is_refused_with_the_reason(
    system: Path, tmp_path: Path, words: list[str], reason: str
) -> None:
    status, output = called("--data", str(system / "archive"), "--registry", str(tmp_path), *words)
    assert status == 2 and reason in output.replace("\n", " ") and "Traceback" not in output
    assert Registry(tmp_path).names() == []


def test_a_hole_is_refused_and_can_be_allowed(system: Path, tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive")
    remove_hour(archive)
    feature_sets.write_feature_set(Config(state=str(tmp_path)), FEATURES)
    holed = asked(system, tmp_path / "registry", data=archive)
    with pytest.raises(ValueError, match="are missing"):
        run(holed)
    its = run(replace(holed, allow_gaps=True))
    assert its["examples"] == 74


def test_an_archive_that_backfill_filled_names_its_features(system: Path, tmp_path: Path) -> None:
    filled = tmp_path / "state" / "filled"
    assert copy_filled(system, filled)[KEPT] == COUNT
    other = replace(FEATURES, history=FEATURES.history + 1)
    feature_sets.write_feature_set(Config(state=str(filled.parent)), other)
    for state in (None, filled.parent):
        its = asked(system, tmp_path / "registry", data=filled, state=state)
        assert _archive_examples(its, Config())[0] == FEATURES
    done = run(replace(its, state=None, until="now"))
    assert done["examples"] == COUNT - 1  # the last second may not be whole


def test_a_data_set_becomes_a_candidate(system: Path, tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log", requests=30)
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    its = asked(system, tmp_path / "registry", data=folder, until=str(last["time_ms"]))
    done = run(its)
    found = Registry(its.registry).provenance(done["candidate"])
    assert found.log_id == "" and found.offsets == {} and found.examples > 20


@pytest.mark.slow
def test_killed_for_real_it_ends_with_the_same_candidate(system: Path, tmp_path: Path) -> None:
    """kill -9 of a process in the middle; what it began ends in another."""
    small = {"step_examples": 2, "checkpoint_every": 3}
    whole = run(asked(system, tmp_path / "a", **small))["candidate"]
    words = [
        sys.executable, "-c", "from runtime.cli.main import app; app()", "offline", "--json", "-",
        "--data", str(system / "archive"), "--until", str(START_MS + COUNT * MINUTE_MS),
        "--config", str(system / "small.yaml"), "--workers", "0", "--step-examples", "2",
        "--checkpoint-every", "3", "--epochs", "2", "--tables", "own", "--registry",
        str(tmp_path / "b"),
    ]  # fmt: skip
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "b" / ".work"
    while process.poll() is None:
        folders = checkpoints.glob("job-*/parts/work/0*")
        if max((int(path.name[-12:]) for path in folders), default=0) >= 30:  # of 82 and more
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = run(asked(system, tmp_path / "b", **small))["candidate"]
    one, two = arrays_of(tmp_path / "a", whole), arrays_of(tmp_path / "b", done)
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
