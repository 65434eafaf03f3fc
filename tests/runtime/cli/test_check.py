"""``recsys check`` on a small state folder: all damage is named, and repaired where another copy exists."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmarks.harness.archived_log import archive_log
from parameter_server.storage import snapshots
from parameter_server.storage.wal import Wal
from recsys.config.log_config import LogConfig
from recsys.events.records import CONTROL, EVENTS
from recsys.log.protocol import Append
from recsys.log.sqlite_log import SqliteLog
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import write_atomically
from recsys.process.part_snapshot import PartState
from runtime.cli.main import app
from runtime.jobs.state_check import Pace, StateReport
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.processes import identify
from tests.support.plan_config import FREE
from tests.support.simulation.bit_flips import flip_bit
from tests.support.training.archived_examples import remove_digests
from tests.support.training.small_feed import PARTITIONS, append_events, feed, toy_config
from training.archive.files import files_of
from training.continual.trainer_run import run_of

EVENT_COUNT = 24


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A stopped system with some of every kind of file."""
    config = replace(toy_config(str(tmp_path)), serve=FREE, log=LogConfig(partitions=PARTITIONS))
    plans.write(*plans.resolve(config))
    log = open_log(config)
    create_topics(log, config)
    append_events(log, feed(EVENT_COUNT))
    log.append(CONTROL, [Append(0, b"", b"a control record")])
    archive_log(log, tmp_path / "archive")
    log.close()
    for step in (500, 1000):
        arrays = {"rows": np.arange(step, dtype=np.float32)}
        snapshots.write_part(tmp_path / "snapshots", "main", 0, step, 0, 1, arrays, {"step": step})
    wal = Wal(tmp_path / "parts" / "shards" / "main-0-0-of-1.wal", "main/0/0-of-1")
    for step in range(1001, 1009):
        wal.append(step, b"gradients" * 20)
    wal.close()
    PartState(tmp_path, "joiner").save(log.id, {EVENTS: {0: 1}}, b"state")
    run_of(config).begin("a")
    return tmp_path


def checked(state: Path, *options: str) -> tuple[int, StateReport, str]:
    """Exit status, report and text of a run without limit of its rate."""
    options = (str(state), "--mb-s", "0", *options)
    done: Result = CliRunner().invoke(app, ["check", *options, "--json", "-"])
    report = msgspec.json.decode(done.output, type=StateReport)
    return done.exit_code, report, "\n".join(f"{d.where}: {d.what}" for d in report.damage)


def event_values(state: Path) -> list[bytes]:
    log = SqliteLog(state / "log")
    values = [r.value for p in range(PARTITIONS) for r in log.read(EVENTS, p, log.begin(EVENTS, p))]
    log.close()
    return values


def flip_at(file: Path, text: bytes, *places: int) -> None:
    bit = 8 * file.read_bytes().index(text)
    for place in places:
        flip_bit(file, bit + place)


def test_an_intact_state_has_no_damage(state: Path) -> None:
    status, report, _ = checked(state)
    assert (status, report.damage) == (0, [])
    assert report.records > EVENT_COUNT and report.snapshots == 2
    assert (report.write_ahead_files, report.part_states) == (1, 1) and report.archive_files >= 3
    done = CliRunner().invoke(app, ["check", str(state)])
    assert done.exit_code == 0 and done.output.endswith("no damage\n")


def test_log_records_come_back_from_their_checksum_and_from_the_archive(state: Path) -> None:
    before = event_values(state)
    flip_at(state / "log" / "control.sqlite", b"a control record", 5)
    flip_at(state / "log" / "events.sqlite", before[7], 9, 18, 27)
    status, report, text = checked(state)
    assert status == 1 and len(report.damage) == 2
    assert f"{state}/log/events.sqlite: events/" in text and "is damaged or missing" in text
    status, report, _ = checked(state, "--repair")
    assert status == 0 and all(damage.repaired for damage in report.damage)
    by_topic = {Path(damage.where).stem: damage.repair for damage in report.damage}
    assert "1 were corrected" in by_topic["control"]
    assert "0 were corrected" in by_topic["events"]
    assert "1 come from the archive" in by_topic["events"]
    assert event_values(state) == before and checked(state)[0] == 0


def test_a_record_without_another_copy_is_named_as_lost(state: Path) -> None:
    flip_at(state / "log" / "control.sqlite", b"a control record", 5, 14, 23)
    status, _report, text = checked(state, "--repair")
    assert status == 1 and "control/0: offset 0 has no other copy" in text
    assert checked(state)[0] == 0


def test_snapshots_are_repaired_by_digest_and_by_a_copy(state: Path) -> None:
    version = state / "snapshots" / "main" / "000000-000000001000"
    (part,) = version.iterdir()
    copy = state / "registry" / "cand-1" / ".ancestor" / "main" / version.name / part.name
    shutil.copytree(part, copy)
    flip_at(part / "manifest.json", b'"step": 1000', 75)
    flip_bit(part / "arrays.safetensors", 5000)
    status, report, text = checked(state)
    assert status == 1 and len(report.damage) == 1 and "manifest.json is corrupt" in text
    status, report, _ = checked(state, "--repair")
    assert status == 0
    assert "one bit corrected" in report.damage[0].repair
    assert f"copied from {copy}" in report.damage[0].repair
    assert checked(state)[0] == 0
    snapshot = snapshots.require(state / "snapshots", "main")
    assert snapshot.step == 1000 and (snapshot.read(0)["rows"] == np.arange(1000)).all()


def test_a_snapshot_without_a_copy_stays_named(state: Path) -> None:
    (part,) = (state / "snapshots" / "main" / "000000-000000001000").iterdir()
    flip_bit(part / "arrays.safetensors", 5000)
    status, report, _ = checked(state, "--repair")
    assert status == 1 and "later ones replace it" in report.damage[0].repair
    assert snapshots.require(state / "snapshots", "main").step == 500


def test_other_files_are_named(state: Path) -> None:
    wal = state / "parts" / "shards" / "main-0-0-of-1.wal"
    flip_bit(wal, 4 * wal.stat().st_size)
    flip_bit(state / "parts" / "joiner" / "state.msgpack", 300)
    parquet = next((state / "archive" / EVENTS).glob("*/*/*.parquet"))
    flip_bit(parquet, 8 * 100)
    status, report, text = checked(state)
    assert status == 1 and len(report.damage) == 3
    assert all(str(file) in text for file in (wal, parquet, "joiner/state.msgpack"))
    assert not list(wal.parent.glob("*.damaged"))
    status, report, _ = checked(state, "--repair")
    assert [damage.repaired for damage in report.damage] == [True, False, False]
    assert Wal(wal, "main/0/0-of-1").steps is not None and wal.with_suffix(".wal.damaged").exists()
    wal.write_bytes(b"x" * 100)
    assert "begins with" in checked(state)[2]


def archive_files(state: Path) -> list[Path]:
    return sorted((state / "archive").rglob("part-*.parquet"))


def test_damage_that_parquet_does_not_see_is_named(state: Path) -> None:
    path = archive_files(state)[0]
    flip_bit(path, 8 * path.read_bytes().rindex(b"parquet-cpp-arrow"))
    pq.ParquetFile(path).read()
    status, report, text = checked(state)
    assert status == 1 and len(report.damage) == 1
    assert f"{path}: its SHA-256 isn't the one stored in it" in text
    assert "from a backup" in report.damage[0].repair


def test_archive_files_without_a_digest_are_damage(state: Path) -> None:
    remove_digests(*archive_files(state))
    status, report, _ = checked(state)
    assert (status, len(report.damage)) == (1, len(archive_files(state)))
    assert all("and its SHA-256" in damage.what for damage in report.damage)


@pytest.mark.parametrize("kind", [OverflowError, MemoryError, NotImplementedError, OSError])
def test_no_file_ends_the_report_whatever_its_reading_raises(
    state: Path, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*of: object, **options: object) -> None:
        raise kind("absurd")

    for target in (
        "runtime.jobs.state_check.check_topic",
        "runtime.jobs.state_check.check_catalogue",
        "runtime.jobs.state_check.scan",
        "runtime.jobs.state_check.hashlib.sha256",
        "runtime.jobs.state_check.snapshots.check_snapshots",
        "runtime.jobs.state_check.check_digest",
    ):
        monkeypatch.setattr(target, fails)
    status, _report, text = checked(state)
    wanted = (
        "log/catalogue.db", "log/events.sqlite", "log/control.sqlite", "snapshots/main",
        "main-0-0-of-1.wal", "joiner/state.msgpack", *map(str, archive_files(state)),
    )  # fmt: skip
    assert status == 1 and all(file in text for file in wanted)


def test_a_damaged_catalogue_is_named_and_made_again(state: Path) -> None:
    path = state / "log" / "catalogue.db"
    before = event_values(state)
    log = SqliteLog(state / "log")
    flip_at(path, log.id.encode(), 2)
    status, report, text = checked(state)
    assert status == 1 and f"{path}: it names log" in text
    assert "from the topics' files" in report.damage[0].repair
    status, report, _ = checked(state, "--repair")
    assert status == 0 and [damage.repaired for damage in report.damage] == [True]
    assert checked(state)[0] == 0 and SqliteLog(state / "log").id == log.id
    assert event_values(state) == before
    path.write_bytes(b"")
    assert checked(state)[0] == 1
    assert checked(state, "--repair")[0] == 0 and event_values(state) == before


def test_a_topic_whose_file_is_gone_is_named_and_not_made_anew(state: Path) -> None:
    (state / "log" / "control.sqlite").unlink()
    for options in ((), ("--repair",)):
        status, report, text = checked(state, *options)
        assert status == 1 and f"{state}/log/control.sqlite: it is gone" in text
        assert "restore a backup" in report.damage[0].repair
    assert not (state / "log" / "control.sqlite").exists()


@pytest.mark.parametrize(
    "name", ["run/config.json", "run/plan.json", "parts/trainer/run.json", "archive/log_id"]
)
def test_a_small_file_is_named_and_all_others_are_checked(state: Path, name: str) -> None:
    wal = state / "parts" / "shards" / "main-0-0-of-1.wal"
    flip_bit(wal, 4 * wal.stat().st_size)
    flip_bit(state / name, 8)
    status, report, text = checked(state)
    assert status == 1 and [Path(damage.where) for damage in report.damage if name in damage.where]
    assert str(wal) in text and report.records > EVENT_COUNT
    status, report, _ = checked(state, "--repair")
    assert status == 1 and report.archive_files == len(archive_files(state))


def test_records_come_back_from_the_intact_files_of_the_archive(state: Path) -> None:
    before = event_values(state)
    places = [file for file in files_of(state / "archive", EVENTS)]
    flip_bit(places[-1].path, 8 * 100)
    flip_at(state / "log" / "events.sqlite", before[7], 9, 18, 27)
    status, report, _ = checked(state, "--repair")
    (repair,) = (d.repair for d in report.damage if d.where.endswith("events.sqlite"))
    assert status == 1 and "1 come from the archive" in repair
    assert event_values(state) == before


def test_a_running_system_is_checked_but_not_repaired(state: Path) -> None:
    own = identify(os.getpid())
    assert own is not None
    run = run_file.Running(supervisor=own, config_digest="", started_ms=0, time_ms=0)
    write_atomically(state / "run" / "up.json", msgspec.json.encode(run))
    assert checked(state)[0] == 0
    done = CliRunner().invoke(app, ["check", str(state), "--repair"])
    assert done.exit_code == 2 and "stop it with `recsys down" in done.output
    (state / "run" / "up.json").unlink()
    with run_file.lock(state):
        done = CliRunner().invoke(app, ["check", str(state), "--repair"])
    assert done.exit_code == 2 and "uses" in done.output


def test_nothing_started_is_an_error_of_its_own(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 2 and "nothing was started in" in done.output
    done = CliRunner().invoke(app, ["check", "numpy"])
    assert done.exit_code == 2 and "numpy is no state folder; `recsys contracts numpy`" in done.output


def test_the_rate_of_reading_is_limited() -> None:
    slept: list[float] = []
    pace = Pace(2.0, clock=lambda: sum(slept), sleep=slept.append)
    for _ in range(10):
        pace(1_000_000)
    assert sum(slept) == pytest.approx(5.0)
    Pace(0.0, clock=lambda: 0.0, sleep=slept.append)(10**12)
    assert len(slept) == 10
