"""`recsys audit features` on what a real run of all parts left: the archive alone."""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.answers.reconstruction_run import run_system
from benchmarks.harness.archived_log import archive_log
from benchmarks.harness.local_system import LocalSystem, small_config
from plugins.answer_explanation.reconstructed_session import find_impression
from plugins.feature_audit.archive_audit import audit_features
from recsys.events.event_types import encode
from recsys.events.records import EVENTS, EXAMPLES, Example, unpack
from recsys.features.feature_set_file import feature_set
from recsys.features.request_features import read_block
from recsys.log.protocol import Record
from recsys.process.open_log import open_log
from runtime.cli.main import app
from training.archive.writer import read_archive

REQUESTS = 26


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    state = tmp_path_factory.mktemp("audit")
    asked, _ = asyncio.run(run_system(LocalSystem(small_config(state)), REQUESTS, 0))
    yield state, [request_id for request_id, _ in asked]


def archived(state: Path, folder: Path) -> Path:
    log = open_log(small_config(state))
    archive_log(log, folder)
    log.close()
    return folder


def test_a_real_run_has_no_skew_and_needs_nothing_but_the_archive(
    ran: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder = archived(ran[0], tmp_path / "archive")
    report = audit_features(folder, 1.0, 1_000)
    assert (report.sampled, report.equal) == (REQUESTS, REQUESTS)
    assert not report.differing and not report.without_counters
    done = CliRunner().invoke(app, ["audit", "features", str(folder), "--share", "1", "--json", "-"])
    assert done.exit_code == 0, done.output
    assert msgspec.json.decode(done.output)["equal"] == REQUESTS


def test_planted_skew_is_found_and_the_command_says_so(ran: tuple[Path, list[str]], tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(ran[0], state)
    log = open_log(small_config(state))
    found = find_impression(log, ran[1][20])
    assert found is not None
    partition, offset, impression = found
    features = feature_set(small_config(state))
    its = read_block(impression.features, features)  # type: ignore[arg-type]
    its.dense_NF[0, -1] += np.float32(0.001)
    planted = msgspec.structs.replace(impression, features=its.block())
    key = str(impression.user_id).encode()
    log.replace(EVENTS, partition, [Record(offset, key, encode(planted))])
    log.close()
    archived(state, state / "archive")
    done = CliRunner().invoke(app, ["audit", "features", str(state), "--share", "1"])
    assert done.exit_code == 1
    assert "events: 1 impressions, 1 numbers, largest difference 0.0009" in done.output
    assert f"first in {impression.request_id}" in done.output


def test_impressions_without_features_take_no_place_in_the_sample(
    ran: tuple[Path, list[str]], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    shutil.copytree(ran[0], state)
    log = open_log(small_config(state))
    for request_id in ran[1][4:]:  # as imported ones are
        placed = find_impression(log, request_id)
        assert placed is not None
        partition, offset, impression = placed
        plain = encode(msgspec.structs.replace(impression, features=None))
        key = str(impression.user_id).encode()
        log.replace(EVENTS, partition, [Record(offset, key, plain)])
    log.close()
    report = audit_features(archived(state, state / "archive"), 1.0, 4)
    assert (report.compared, report.without_features) == (4, REQUESTS - 4)


def test_backfill_writes_an_archive_of_examples_with_the_wanted_features(
    ran: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, out = archived(ran[0], tmp_path / "archive"), tmp_path / "filled"
    its = feature_set(small_config(ran[0]))
    wanted = replace(its, history=7)
    (tmp_path / "wanted.json").write_bytes(msgspec.json.encode(wanted))
    asked = ["backfill", str(folder), "--out", str(out), "--features", str(tmp_path / "wanted.json")]
    done = CliRunner().invoke(app, [*asked, "--json", "-"])
    assert done.exit_code == 0, done.output
    counts = msgspec.json.decode(done.output)
    before = read_archive(folder, EXAMPLES).to_table()
    after = read_archive(out, EXAMPLES).to_table()
    assert before.schema == after.schema
    assert counts == {"had the wanted features": 0, "backfilled": len(before)} and len(before)
    for old, new in zip(before["value"].to_pylist(), after["value"].to_pylist(), strict=True):
        was, filled = unpack(old, Example), unpack(new, Example)
        assert filled.features is not None and was.features is not None
        assert filled.features.backfilled and filled.features.feature_set == wanted.digest
        assert filled.features.item_keys == was.features.item_keys
        assert msgspec.structs.replace(filled, features=None) == msgspec.structs.replace(was, features=None)
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 2 and "name a new folder" in again.output


def test_a_folder_without_an_archive_is_refused_with_what_to_give(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "features", str(tmp_path)])
    assert done.exit_code == 2
    assert "has no archived events: give the folder" in done.output
