"""`recsys replay` over an event log made here: what it writes, what its options change, how it fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from recsys.config.system_config import Config, laptop
from recsys.events.event_types import Tick
from recsys.events.hashing import uniform
from recsys.model.prediction_metrics import auc
from replay.datasets.open_dataset import open_dataset
from replay.predictions import Predictions, read_predictions
from replay.replay_report import judged_rows, with_bar
from replay.replay_run import ReplayOptions, ReplayResult, config_for, replay_data
from runtime.cli.main import app
from tests.support.training.small_crowd import START_MS

pytestmark = pytest.mark.pairs(1)

MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS
EVERY_MS = 10 * MINUTE_MS  # between two requests
USERS, ITEMS = 10, 20
COLUMNS = ["request_id", "user_id", "item_id", "time_ms", "line", "version"]


def write_log(folder: Path, requests: int = 120, all_shown: bool = True) -> Path:
    """Slates of three; a click where user and item are both even or both odd, mostly."""
    lines: list[dict[str, Any]] = [
        {"type": "item", "time_ms": START_MS, "item_id": f"v{n}",
         "fields": {"author": f"a{n % 2}", "tags": [f"t{n % 4}"], "duration_ms": 9_000}}
        for n in range(ITEMS)
    ]  # fmt: skip
    for n in range(requests):
        user, at_ms = n % USERS, START_MS + n * EVERY_MS
        slate = [int(uniform(1, n, rank) * 7) * 3 % ITEMS + rank for rank in range(3)]
        slate = [item % ITEMS for item in slate]
        lines.append({"type": "impression", "time_ms": at_ms, "request_id": f"r{n}", "user_id": f"u{user}",
                      "items": [{"item_id": f"v{item}"} for item in dict.fromkeys(slate)],
                      "context": {"page": "home" if n % 3 else "shop"}})  # fmt: skip
        for item in dict.fromkeys(slate):
            if uniform(2, n, item) < (0.85 if user % 2 == item % 2 else 0.1):
                lines.append({"type": "engagement", "time_ms": at_ms + 20_000, "request_id": f"r{n}",
                              "user_id": f"u{user}", "item_id": f"v{item}", "kind": "click"})  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    lines.sort(key=lambda line: line["time_ms"])
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = str(all_shown).lower()
    (folder / "dataset.yaml").write_text(f"labels: [click]\nwindow_s: 60\nall_shown: {shown}\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path) -> ReplayResult:
    return replayed(data)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


def replayed(folder: Path, **options: Any) -> ReplayResult:
    return replay_data(open_dataset(folder), ReplayOptions(**options))


def late_auc(predictions: Predictions) -> float:
    late = np.asarray(predictions.time_ms) > START_MS + 70 * EVERY_MS
    score, truth = (np.asarray(c["click"])[late] for c in (predictions.scores, predictions.labels))
    return auc(score.astype(np.float64), truth.astype(np.float64))


@pytest.mark.slow
def test_it_writes_every_score_and_a_report(data: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    file, report = tmp_path / "p.parquet", tmp_path / "r.json"
    result = run(data, "--predictions", file, "--report", report)
    assert result.exit_code == 0, result.output
    table = pq.read_table(file)
    assert table.column_names == [*COLUMNS, "score_click", "label_click"]
    scores = table["score_click"].to_numpy()
    assert ((scores > 0) & (scores < 1)).all()
    assert set(table["label_click"].to_pylist()) == {0, 1}
    times = table["time_ms"].to_pylist()
    assert times == sorted(times)
    found = json.loads(report.read_text())
    assert found["rows"] == table.num_rows and found["users"] == USERS
    clicked = table["label_click"].to_numpy()
    assert found["labels"]["click"]["auc"] == pytest.approx(auc(scores, clicked), abs=1e-6)
    assert found["steps"] > 1 and len(found["digest"]) == 64 and found["dead_letters"] == {}
    assert found["joiner"]["examples"] > 300 and found["joiner"]["never_shown"] == 0
    assert set(found["labels"]["click"]["slices"]) == {"test", "test page=home", "test page=shop"}
    lists = found["labels"]["click"]["slices"]["test"]["lists"]
    assert 30 < lists["requests"] <= 120 and 0.5 < lists["auc"] < lists["hit@10"] == 1.0
    assert f"{lists['ndcg@10']:.4f}" in result.output
    again = run(data, "--against", file)
    assert again.exit_code == 0 and "difference" in again.output


def test_it_learns_what_is_to_be_found_out_and_gives_the_same_bits_twice(
    data: Path, whole: ReplayResult
) -> None:
    first, second = whole, replayed(data)
    assert late_auc(first.predictions) > 0.75
    assert first.digest == second.digest and first.steps == second.steps
    for name in ("scores", "labels"):
        a, b = (getattr(r.predictions, name)["click"] for r in (first, second))
        assert a.tobytes() == b.tobytes()
    assert first.predictions.version == second.predictions.version


@pytest.mark.slow
def test_after_the_freeze_no_parameter_changes(data: Path, whole: ReplayResult) -> None:
    freeze_ms = START_MS + 60 * EVERY_MS
    frozen = replayed(data, frozen_after_ms=freeze_ms)
    times = np.asarray(frozen.predictions.time_ms)
    versions = np.array(frozen.predictions.version)
    assert len(set(versions[times > freeze_ms + 2 * EVERY_MS])) == 1
    assert len(set(versions[times < freeze_ms])) > 3
    assert frozen.steps == int(versions[-1].split(".")[1])
    cut = replayed(data, until_ms=freeze_ms + 20 * EVERY_MS, frozen_after_ms=freeze_ms)
    assert cut.digest == frozen.digest != whole.digest


@pytest.mark.slow
def test_updates_are_held_back_to_multiples_of_the_interval(data: Path, whole: ReplayResult) -> None:
    held = replayed(data, sync_every_ms=3 * 3_600_000)
    hours = np.asarray(held.predictions.time_ms) // (3 * 3_600_000)
    versions = np.array(held.predictions.version)
    assert all(len(set(versions[hours == h])) == 1 for h in np.unique(hours))
    assert len(set(versions)) > 3 and held.digest == whole.digest


def test_only_the_rows_of_the_time_asked_for_are_scored(data: Path, tmp_path: Path) -> None:
    from_ms, until_ms = START_MS + 20 * EVERY_MS, START_MS + 50 * EVERY_MS
    file = tmp_path / "p.parquet"
    iso = "2023-11-15T06:33:20"  # until_ms, in UTC
    assert run(data, "--from", from_ms, "--until", iso, "--predictions", file).exit_code == 0
    times = np.asarray(read_predictions(file).time_ms)
    assert (times.min(), times.max()) == (from_ms, until_ms - EVERY_MS)


@pytest.mark.parametrize("features", ["ids", "ids+history"])
def test_the_ranker_may_read_less(data: Path, whole: ReplayResult, features: str) -> None:
    part = replayed(data, features=features, until_ms=START_MS + 50 * EVERY_MS)
    assert part.steps > 1 and 100 < len(part.predictions.request_id) < 200
    scores = np.asarray(part.predictions.scores["click"])
    same = np.asarray(whole.predictions.scores["click"])[: len(scores)]
    assert scores.std() > 0 and not np.allclose(scores, same, atol=1e-3)


@pytest.mark.slow
def test_what_was_not_seen_is_no_negative(tmp_path: Path) -> None:
    shown, seen = (replayed(write_log(tmp_path / str(s), 40, all_shown=s)) for s in (True, False))
    rows = len(shown.predictions.request_id)
    assert shown.counts["never_shown"] == 0 and seen.counts["never_shown"] > 0
    clicks = int(np.sum(shown.predictions.labels["click"]))
    # The windows of the last requests are open at the end of the log.
    assert rows - 12 <= shown.counts["examples"] <= rows and seen.counts["examples"] <= clicks


def test_the_second_half_of_the_days_is_judged(data: Path, whole: ReplayResult) -> None:
    dataset, predictions = open_dataset(data), whole.predictions
    days = np.asarray(predictions.time_ms) // DAY_MS
    known = np.unique(days)
    assert (judged_rows(dataset, predictions) == (days >= known[len(known) // 2])).all()
    nothing = predictions.rows(np.zeros(len(days), np.bool_))
    assert len(judged_rows(dataset, nothing)) == 0


def test_a_log_of_nothing_has_an_empty_report(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "data", requests=0)
    result = run(folder, "--report", tmp_path / "r.json", "--predictions", tmp_path / "p.parquet")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == 0


@pytest.mark.slow
def test_it_ends_when_the_step_asked_for_has_been_learned(data: Path, whole: ReplayResult) -> None:
    fourth = replayed(data, until_step=4)
    assert fourth.steps == 4 and fourth.digest != whole.digest
    n = len(fourth.predictions.request_id)
    assert 0 < n < len(whole.predictions.request_id)
    same = np.asarray(whole.predictions.scores["click"])[:n]
    assert np.asarray(fourth.predictions.scores["click"]).tobytes() == same.tobytes()
    # The same state as that of a log that ends there.
    end_ms = int(np.asarray(fourth.predictions.time_ms)[-1]) + 1
    assert replayed(data, until_step=4, until_ms=end_ms + EVERY_MS).digest == fourth.digest
    assert replayed(data, until_step=whole.steps).digest == whole.digest


def test_several_steps_that_are_due_at_once_end_with_the_one_asked_for(data: Path) -> None:
    few = {"step_examples": 1, "until_ms": START_MS + 20 * EVERY_MS}
    digests = [replayed(data, until_step=step, **few).digest for step in (4, 5)]
    assert digests[0] != digests[1] and replayed(data, until_step=5, **few).steps == 5


@pytest.mark.slow
def test_the_digest_is_all_that_is_printed(data: Path, whole: ReplayResult) -> None:
    assert run(data, "--digest").stdout == whole.digest + "\n"
    asked = run(data, "--digest", "--until-version", "0.3").stdout
    assert asked == replayed(data, until_step=3).digest + "\n" != whole.digest + "\n"


def configured(
    data: Path, whole: ReplayResult, monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> Config:
    """The configuration that a command runs with."""
    asked: list[Config] = []
    monkeypatch.setattr(
        "runtime.cli.data.replay._run", lambda _, options, config, *more: asked.append(config) or whole
    )
    result = run(data, *arguments)
    assert result.exit_code == 0, result.output
    return asked[0]


def test_an_option_comes_before_the_environment_that_before_the_file_and_that_before_the_data_set(
    data: Path, whole: ReplayResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = configured(data, whole, monkeypatch)
    assert plain == config_for(open_dataset(data), ReplayOptions(), laptop())
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {features: ids, dim: 8}\nstep: {examples: 9, lanes: 2}\njoin: {negatives: 0.5}\n"
        "sessions: {history: 5}\nserve: {candidates: 50}\nlog: {partitions: 3}\n"
    )
    mine = configured(data, whole, monkeypatch, "--config", file)
    assert (mine.model.features, mine.model.dim, mine.sessions.history) == ("ids", 8, 5)
    assert (mine.step.examples, mine.step.lanes, mine.step.every_ms) == (9, 2, 600_000)
    assert (mine.join.negatives, mine.join.window_s) == (0.5, 60.0)
    assert (mine.serve.candidates, mine.log.partitions) == (50, 3)
    monkeypatch.setenv("RECSYS__STEP__EXAMPLES", "10")
    monkeypatch.setenv("RECSYS__STEP__LANES", "1")
    options = ["--features", "all", "--step-examples", 3, "--step-every", 7]
    both = configured(data, whole, monkeypatch, "--config", file, *options)
    assert (both.model.features, both.model.dim) == ("all", 8)
    assert (both.step.examples, both.step.lanes, both.step.every_ms) == (3, 1, 7000)
    file.write_text("step: {example: 9}\n")
    result = run(data, "--config", file)
    assert result.exit_code == 2 and "there is no step.example" in " ".join(result.stderr.split())


@pytest.mark.slow
def test_the_configuration_is_what_is_replayed(data: Path, whole: ReplayResult, tmp_path: Path) -> None:
    file, plain = tmp_path / "mine.yaml", whole.digest
    for text, differs in (("model: {seed: 7}", True), ("parameter_server: {shards: 1}", False)):
        file.write_text(text)
        digest = run(data, "--config", file, "--digest").stdout.strip()
        assert len(digest) == 64 and (digest != plain) == differs, text


def test_what_was_written_before_an_error_stays_readable(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder, file = write_log(tmp_path / "data", requests=5), tmp_path / "p.parquet"
    with (folder / "events.jsonl").open("a") as log:
        log.write("{}\n")
    (folder / "dataset.yaml").write_text(  # declared: no scan finds the broken line before
        "labels: [click]\nwindow_s: 60\nfields: {item: {author: categorical}}\n"
    )
    assert run(folder, "--predictions", file).exit_code == 2 and not file.exists()
    part = pq.read_table(tmp_path / "p.parquet.part")
    assert part.column_names == [*COLUMNS, "score_click", "label_click"]


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay.replay_report._REPORT_S", 0.0)
    ticks = [Tick(time_ms=START_MS + n) for n in range(2001)]
    assert list(with_bar(iter(ticks))) == ticks
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",  ")[0][:22] for line in lines[1:]] == [
        "recsys: 1,000 events, ",
        "recsys: 2,000 events, ",
    ]
    monkeypatch.setattr("replay.replay_report._REPORT_S", 10.0)
    assert list(with_bar(iter(ticks))) == ticks and not capsys.readouterr().err


def test_a_log_of_clicks_alone_is_replayed(tmp_path: Path) -> None:
    folder, report = tmp_path / "clicks", tmp_path / "r.json"
    folder.mkdir()
    clicks = [(n, f"u{n % 5}", f"v{n // 5 * 7 % 30}") for n in range(150)]  # each item once a user
    rows = [f"engagement,{START_MS + n * MINUTE_MS},{user},{item},click" for n, user, item in clicks]
    (folder / "events.csv").write_text("\n".join(["type,time_ms,user_id,item_id,kind", *rows]))
    (folder / "dataset.yaml").write_text("labels: [click]\nwindow_s: 60\n")
    judged_ms = START_MS + 75 * MINUTE_MS
    result = run(folder, "--report", report, "--retrieval", 1, "--judge-from", judged_ms)
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    assert found["retrieval"]["targets"] == 75
    assert found["retrieval"]["path"]["retrieved and ranked"].keys() > {"hit@10", "ndcg@10", "mrr"}
    measured = found["retrieval"]["questions"]["next"]
    assert measured["cases"] == 75 and measured["lists"]["transitions"]["hit@10"] > 0.7
    assert "retrieved and ranked" in result.output and "popularity, 24 h" in result.output
    assert "the next item of a visit: " in result.output
    assert "the first item of the next visit: –, 0 cases" in result.output


@pytest.mark.services
def test_the_digest_of_a_step_is_the_same_through_a_broker(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "data", 40)
    # An example a step: those of one list are due at once, and the step asked for is not the last of them.
    options = ["--no-warm-up", "--digest", "--until-version", 20, "--step-examples", 1]
    one, real = run(folder, *options), run(folder, *options, "--through-broker", "sqlite")
    assert one.exit_code == real.exit_code == 0, real.output
    assert one.stdout == real.stdout
    other = run(folder, "--no-warm-up", "--digest", "--step-examples", 1)
    assert len(one.stdout) == 65 and one.stdout != other.stdout


# --- what can't be done is said, with exit code 2 --------------------------------------------------


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "data", requests=5)
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"type":"engagement","time_ms":"soon"}\n')
    lines = len((folder / "events.jsonl").read_text().splitlines())
    result = run(folder)
    assert result.exit_code == 2 and f"events.jsonl:{lines}" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--features", "most"], "model.features is 'most'"),
        (["--step-examples", "0"], "step.examples is 0"),
        (["--frozen-after", "yesterday"], "yesterday"),
        (["--report", "no/such/folder/r.json"], "there is no folder"),
        (["--predictions", "no/such/folder/p.parquet"], "there is no folder"),
        (["--against", "nothing.parquet"], "can't be read"),
        (["--until-version", "1.4"], "expected a step from 1 on"),
        (["--until-version", "0"], "expected a step from 1 on"),
        (["--through-broker", "mysql"], "expected sqlite, kafka"),
        (["--through-broker", "sqlite", "--warm-up"], "leave --warm-up out"),
    ],
)
def test_what_can_not_be_done_is_said_before_the_work(
    data: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("replay.replay_run.replay_with", None)  # it doesn't come so far
    result = run(data, *arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "warm", "told"),
    [([], True, False), (["--warm-up"], True, False), (["--no-warm-up"], False, False),
     (["--through-broker", "sqlite"], False, True),
     (["--through-broker", "sqlite", "--no-warm-up"], False, False)],
)  # fmt: skip
def test_a_warm_up_that_is_left_out_is_told(
    data: Path, whole: ReplayResult, arguments: list[str], warm: bool, told: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[ReplayOptions] = []
    monkeypatch.setattr(
        "runtime.cli.data.replay._run", lambda _, options, *more: asked.append(options) or whole
    )
    result = run(data, *arguments)
    assert result.exit_code == 0, result.output
    assert asked[0].warm_up is warm and ("skips the warm-up" in result.stderr) is told


@pytest.mark.slow
def test_a_step_that_the_log_does_not_reach_is_named(data: Path, whole: ReplayResult) -> None:
    result = run(data, "--until-version", 5000)
    assert result.exit_code == 2
    assert f"ends at step {whole.steps}" in " ".join(result.stderr.split())


def test_predictions_of_another_label_can_not_be_compared(data: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "p.parquet"
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in COLUMNS}), file)
    result = run(data, "--against", file)
    assert result.exit_code == 2 and "no column score_click" in result.output


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere")
    assert result.exit_code == 2 and "nowhere" in result.output
