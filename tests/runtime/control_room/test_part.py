"""The part: where it is, what it sees (the same as `recsys metrics`), what it does while nobody looks."""

import os
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import msgspec
import pytest

from experiments.assignment.design import metric_of
from experiments.statistics.revision import parse_each
from recsys.config.part_configs import ControlRoomConfig, WorkersConfig
from recsys.config.system_config import Config
from recsys.events.control_records import Experiments, ExperimentState, Live
from recsys.events.event_types import Verdict, encode
from recsys.events.records import CONTROL, EVENTS, pack
from recsys.free_ports import free_ports
from recsys.log.protocol import Append, Log
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Heartbeat, Stop, run_folder, write_atomically
from runtime.control_room import experiment_panel
from runtime.control_room import part as control_room_part
from runtime.control_room.experiment_panel import ExperimentPanel
from runtime.control_room.part import ControlRoom, run
from runtime.control_room.system_watch import SystemWatch
from runtime.reports.experiment_summary import read_report, starts_in, summary_row
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.part_metrics import families
from runtime.supervision.part_table import table
from runtime.supervision.processes import identify
from runtime.supervision.system_status import gather
from serving.control_room.exposition import samples_of
from serving.sessions import counter_loop
from tests.support.plan_config import config_in
from tests.support.training.experiment_log import LABELS, ToyTrial
from training.outcomes.experiment_fold import ExperimentFold

TEXT = """
name: mine
metrics: {primary: [long_view], find: 0.2}
arms: {control: {share: 0.5}, treatment: {share: 0.5, overrides: {explore: 0.2}}}
"""


@pytest.fixture
def system(tmp_path: Path) -> tuple[Config, Log]:
    """A state folder as of a running system, whose parts are this process."""
    free = next(free_ports())
    config = config_in(tmp_path, control_room=ControlRoomConfig(port=free))
    config, plan = plans.resolve(config)
    plans.write(config, plan)
    log = open_log(config)
    create_topics(log, config)
    log.append(EVENTS, [Append(p, b"", b"x") for p in (0, 0, 1, 3)])
    log.append(CONTROL, [Append(0, b"", pack(Live(line="main", epoch=0)))])
    parts = []
    for name in ("joiner", "trainer", "session-fold"):
        beat = Heartbeat(name, tmp_path / "run" / f"{name}.json")
        beat.add("events", 12)
        beat.gauge("auc.like", 0.71)
        beat.gauge("click_to_session_p95_ms", 38.0)
        beat.offsets(EVENTS, [1, 0, 0, 1])
        beat.ready()
        parts.append(run_file.PartRecord(name=name, state="ready", restarts=2))
    me = identify(os.getpid())
    running = run_file.Running(supervisor=me, config_digest="", started_ms=1, time_ms=1, parts=parts)
    write_atomically(tmp_path / "run" / "up.json", msgspec.json.encode(running))
    return config, log


def test_workers_are_listed_one_by_one_and_their_counters_are_of_all(tmp_path: Path) -> None:
    config = config_in(tmp_path, workers=WorkersConfig(session_fold=2))
    parts = []
    for number, name in enumerate(config.workers.names("session-fold")):
        run_folder(tmp_path)
        beat = Heartbeat(name, tmp_path / "run" / f"{name}.json")
        beat.add("events", 10 + number)
        beat.ready()
        parts.append(run_file.PartRecord(name=name, state="ready"))
    me = identify(os.getpid())
    running = run_file.Running(supervisor=me, config_digest="", started_ms=1, time_ms=1, parts=parts)
    write_atomically(tmp_path / "run" / "up.json", msgspec.json.encode(running))
    log = open_log(config)
    create_topics(log, config)
    watch = SystemWatch(config, log)
    samples = watch.samples()
    assert samples["recsys_session_fold_events_total"] == 21
    assert samples['recsys_part_ready{part="session-fold.1"}'] == 1
    listed = [part["name"] for part in watch.panels()["parts"]]
    assert listed == ["session-fold.0", "session-fold.1"]


def test_it_is_there_where_a_port_is_set_or_it_is_asked_for(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    _, plan = plans.resolve(config)
    assert not plan.control_room and "control-room" not in [part.name for part in table(plan)]
    asked, plan = plans.resolve(config, control_room=True)
    assert "control-room" in [part.name for part in table(plan)] and asked.control_room.port > 0
    assert config.control_room.port == 0 and plan.config_digest == plans.resolve(config)[1].config_digest
    free = next(free_ports())
    named, plan = plans.resolve(replace(config, control_room=ControlRoomConfig(port=free)))
    assert named.control_room.port == free and plan.control_room


def test_its_address_has_a_key_of_its_own_behind_the_hash(tmp_path: Path) -> None:
    config, plan = plans.resolve(config_in(tmp_path), control_room=True)
    assert plans.control_room_url(config) == ""  # nothing was started
    plans.write(config, plan)
    where, _, key = plans.control_room_url(config).partition("#")
    assert where == f"http://127.0.0.1:{config.control_room.port}/control"
    assert len(key) >= 32 and key != (tmp_path / "run" / "admin.key").read_text()
    plans.write(config, plan)
    assert plans.control_room_url(config).endswith(f"#{key}")


def test_it_sees_what_metrics_tell(system: tuple[Config, Log]) -> None:
    config, log = system
    seen = SystemWatch(config, log).samples()
    told = samples_of(families(gather(Path(config.state))))
    machine = {series for series in seen if series.startswith("recsys_machine_")}  # moves meanwhile
    assert len(machine) == 2 and machine <= told.keys()
    assert seen == told | {series: seen[series] for series in machine}
    assert seen['recsys_part_lag{part="joiner",topic="events"}'] == 2
    assert seen['recsys_trainer_auc{label="like"}'] == 0.71
    log.append(EVENTS, [Append(0, b"", b"x")])
    assert SystemWatch(config, log).samples()['recsys_part_lag{part="joiner",topic="events"}'] == 3


def test_users_in_quarantine_are_named_as_the_status_names_them(tmp_path: Path) -> None:
    config, plan = plans.resolve(config_in(tmp_path))
    plans.write(config, plan)
    log = open_log(config)
    create_topics(log, config)
    events = [
        Append(0, b"", encode(Verdict(time_ms=n, user_id=f"a{n}", quarantined=True))) for n in range(21)
    ]
    log.append(EVENTS, events)
    beat = Heartbeat("counters", tmp_path / "run" / "counters.json")
    stop = Stop(beat)
    counting = Thread(target=counter_loop.run, args=(config, stop))
    counting.start()
    while beat.now().gauges.get("quarantined") != 21 and counting.is_alive():
        time.sleep(0.01)
    stop.set()
    counting.join()
    beat.write()
    me = identify(os.getpid())
    parts = [run_file.PartRecord(name="counters", state="ready", process=me)]
    running = run_file.Running(supervisor=me, config_digest="", started_ms=1, time_ms=1, parts=parts)
    write_atomically(tmp_path / "run" / "up.json", msgspec.json.encode(running))
    watch = SystemWatch(config, log)
    assert watch.samples()["recsys_counters_quarantined"] == 21
    names = watch.panels()["quarantined"]
    assert names == sorted(f"a{n}" for n in range(21))[:20]
    assert gather(tmp_path).parts[0].names == {"quarantined": names}


def test_after_an_error_it_starts_again_on_its_port_in_the_same_process(
    system: tuple[Config, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = system

    def fails(self: ControlRoom) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(ControlRoom, "beat", fails)
    for _ in range(2):
        with pytest.raises(OSError, match="no space left"):
            run(config, Stop())


def test_the_ends_of_a_topic_are_asked_once_for_a_picture(system: tuple[Config, Log]) -> None:
    config, log = system
    watch, asked, end = SystemWatch(config, log), list[tuple[str, int]](), log.end

    def counted(topic: str, partition: int) -> int:
        asked.append((topic, partition))
        return end(topic, partition)

    log.end = counted  # type: ignore[method-assign]
    watch.samples()
    assert asked and len(set(asked)) == len(asked)


def test_curves_go_on_though_the_clock_was_set_back(
    system: tuple[Config, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, log = system
    room = ControlRoom(config, SystemWatch(config, log), Stop())
    for now_ms in (9_000_000, 9_001_000, 1_000_000, 1_001_000):
        monkeypatch.setattr(control_room_part, "machine_ms", lambda now_ms=now_ms: now_ms)
        room.beat()
    curve = next(points for points in msgspec.json.decode(room.curves()).values())
    assert [time_ms for time_ms, _ in curve] == [9_000_000, 1_000_000]


def test_pictures_are_made_for_pages_and_curves_go_on_without(system: tuple[Config, Log]) -> None:
    config, log = system
    stop = Stop()
    room = ControlRoom(config, SystemWatch(config, log), stop)
    for _ in range(3):
        room.beat()
    assert stop.heartbeat.now().counters.get("pictures", 0) == 0
    assert b"recsys_trainer_auc" in room.curves() and b"system_running" not in room.curves()
    painted = room.render()
    assert b'"epoch":0' in painted and b'recsys_part_restarts_total{part=\\"joiner\\"}":2' in painted
    assert stop.heartbeat.now().gauges["picture_ms"] > 0


def test_what_the_api_said_stays_for_a_minute_where_it_says_nothing(
    system: tuple[Config, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, said = SystemWatch(*system), {"/metrics": 'recsys_a 1\nrecsys_b{replica="r"} 2\n'}
    monkeypatch.setattr(watch._api, "text", lambda path, until_s: said.get(path, ""))
    assert {"recsys_a", 'recsys_b{replica="r"}'} < set(watch.samples())
    said.clear()
    seen = watch.samples()
    assert seen["recsys_a"] == 1 and 'recsys_b{replica="r"}' not in seen
    watch._cached_s -= 61
    assert "recsys_a" not in watch.samples()


def test_curves_wait_for_no_picture(system: tuple[Config, Log], monkeypatch: pytest.MonkeyPatch) -> None:
    room, began, goes_on = ControlRoom(system[0], SystemWatch(*system), Stop()), Event(), Event()

    def slow(now_ms: int) -> None:
        began.set()
        goes_on.wait(5)

    monkeypatch.setattr(room._builder, "build", slow)
    painting = Thread(target=room.render)
    painting.start()
    assert began.wait(5)
    asked = Thread(target=room.curves, daemon=True)
    asked.start()
    asked.join(2)
    assert not asked.is_alive()
    goes_on.set()
    painting.join(5)


def test_it_serves_until_asked_to_stop_and_says_where(system: tuple[Config, Log]) -> None:
    config, log = system
    log.close()
    stop = Stop()
    stop.set()
    run(config, stop)
    port = config.control_room.port
    assert stop.heartbeat.now().addresses["control_room"] == f"http://127.0.0.1:{port}/control"


def test_an_item_is_asked_of_an_api_that_may_be_away(system: tuple[Config, Log]) -> None:
    config, log = system
    status, body = SystemWatch(config, log).inspect("items", "v1")
    assert status == 503 and b"does not answer" in body


def trials_of(toy: ToyTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentPanel:
    monkeypatch.setattr(experiment_panel, "labels_of", lambda config: LABELS)
    return ExperimentPanel(replace(toy.config, state=str(tmp_path)), lambda: toy.log)


def test_experiments_are_told_as_the_report_tells_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, said = ToyTrial(), Experiments(revision=1, configs={"mine.yaml": TEXT})
    toy.take(said)
    for n in range(40):
        toy.serve(f"u{n}")
    toy.pass_time(1)
    its = trials_of(toy, tmp_path, monkeypatch)
    monkeypatch.setattr(experiment_panel, "CPU_S", 60.0)
    [found] = its.update(said, starts_in(said))
    assert found["name"] == "mine" and not found["behind"]
    assert sum(arm["users"] for arm in found["report"]["arms"]) == 40
    assert found["report"]["lines"][0]["metric"] == "long_view"
    # Each figure is that of `recsys experiment list` and `report`.
    [experiment], _ = parse_each(said, toy.config.policy, LABELS)
    assert found.items() >= summary_row(experiment, said).items()
    toy.log.append(CONTROL, [Append(0, b"", pack(said))])
    readout, notes = read_report(toy.log, replace(toy.config, state=str(tmp_path)), experiment)
    assert found["report"] == {
        "verdict": readout.verdict,
        "arms": list(msgspec.to_builtins(readout.arms)),
        "notes": notes,
        "lines": [
            {
                "metric": line.metric, "role": line.role, "arm": line.arm, "finding": line.finding,
                "relative": line.effect.relative, "low": line.effect.low, "high": line.effect.high,
            }
            for line in readout.lines
        ],
    }  # fmt: skip


def test_once_an_experiment_begins_it_is_told_from_its_start_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, all of the log is its users' past; then the week before the start, as in the report."""
    toy, trials = ToyTrial(), None
    for n in range(20):
        toy.serve(f"u{n}")
    toy.pass_time(24 * 8)
    for state in (ExperimentState(state="waiting"), ExperimentState(traffic=1.0, started_ms=toy.now_ms)):
        revision = Experiments(revision=1, configs={"mine.yaml": TEXT}, states={"mine": state})
        toy.take(revision)
        for n in range(20):
            toy.serve(f"u{n}")
        toy.pass_time(1)
        trials = trials or trials_of(toy, tmp_path, monkeypatch)
        monkeypatch.setattr(experiment_panel, "CPU_S", 60.0)
        trials.update(revision, starts_in(revision))
    panel = trials._folds["mine"][-1]
    fold = ExperimentFold(toy.log, toy.config, LABELS, panel.experiment, state.started_ms)
    while fold.read():
        pass
    past, of_panel = (
        f.outcomes.users(metric_of("long_view", LABELS), 0).covariates_UK for f in (fold, panel)
    )
    assert past.sum() > 0 and (of_panel == past).all()


def test_a_look_reads_no_longer_than_it_may_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, said = ToyTrial(), Experiments(revision=1, configs={"mine.yaml": TEXT})
    toy.take(said)
    toy.serve("u1")
    its = trials_of(toy, tmp_path, monkeypatch)
    monkeypatch.setattr(experiment_panel, "CPU_S", -1.0)
    [found] = its.update(said, starts_in(said))
    assert found["behind"] and not sum(arm["users"] for arm in found["report"]["arms"])
    monkeypatch.setattr(experiment_panel, "CPU_S", 60.0)
    [found] = its.update(said, starts_in(said))
    assert not found["behind"] and sum(arm["users"] for arm in found["report"]["arms"]) == 1


def test_an_experiment_that_cannot_be_read_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = ToyTrial()
    its = trials_of(toy, tmp_path, monkeypatch)
    bad = Experiments(revision=1, configs={"bad.yaml": "name: bad\nnonsense: 1\n"})
    [found] = its.update(bad, starts_in(bad))
    assert found["name"] == "bad" and found["unread"]


def several(*names: str, **stands: ExperimentState) -> Experiments:
    texts = {f"{name}.yaml": TEXT.replace("mine", name) + f"layer: {name}\n" for name in sorted(names)}
    return Experiments(revision=1, configs=texts, states=stands)


def test_who_runs_comes_first_and_the_newest_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"e{n:02}" for n in range(14)]
    stands = {name: ExperimentState(state="running", started_ms=n) for n, name in enumerate(names)}
    stands["e13"] = ExperimentState(state="stopped", started_ms=99, why="harm")
    its = trials_of(ToyTrial(), tmp_path, monkeypatch)
    monkeypatch.setattr(experiment_panel, "CPU_S", 60.0)
    said = several(*names, **stands)
    told = its.update(said, starts_in(said))
    assert [row["name"] for row in told] == names[12:0:-1] and its.left_out == 2
    said = several("e03", "e13", e03=stands["e03"], e13=stands["e13"])
    told = its.update(said, starts_in(said))
    assert [row["name"] for row in told] == ["e03", "e13"] and its.left_out == 0
    assert "stopped: harm" in told[1]["unread"]


def test_one_that_is_stopped_is_told_as_it_was_and_not_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, said = ToyTrial(), several("mine")
    toy.take(said)
    toy.serve("u1")
    its = trials_of(toy, tmp_path, monkeypatch)
    monkeypatch.setattr(experiment_panel, "CPU_S", 60.0)
    its.update(said, starts_in(said))
    over = several("mine", mine=ExperimentState(state="stopped", why="harm"))
    monkeypatch.setattr(ExperimentFold, "read", None)
    [row] = its.update(over, starts_in(said))
    assert row["state"] == "stopped" and sum(arm["users"] for arm in row["report"]["arms"]) == 1
    assert not its._folds


def test_each_has_its_turn_where_time_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, said = ToyTrial(), several("a", "b", "c")
    its = trials_of(toy, tmp_path, monkeypatch)
    now_s, read = [0.0], list[str]()
    monkeypatch.setattr(experiment_panel.time, "thread_time", lambda: now_s[0])

    def takes(fold: ExperimentFold, **_: object) -> int:
        now_s[0] += 0.02
        read.append(fold.experiment.name)
        return 1000

    def report(fold: ExperimentFold) -> dict[str, object]:
        now_s[0] += 0.1
        return {"arms": []}

    monkeypatch.setattr(ExperimentFold, "read", takes)
    monkeypatch.setattr(experiment_panel, "_report", report)
    for _ in range(6):
        before_s = now_s[0]
        its.update(said, starts_in(said))
        assert now_s[0] - before_s <= 0.15 + 0.02 + 0.1
    assert set(read) == {"a", "b", "c"}
    assert max(map(read.count, "abc")) <= 2 * min(map(read.count, "abc"))


def test_one_that_fails_stops_no_other_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toy, said = ToyTrial(), several("bad", "mine")
    its, report = trials_of(toy, tmp_path, monkeypatch), experiment_panel._report
    monkeypatch.setattr(experiment_panel, "CPU_S", 60.0)
    its.update(said, starts_in(said))

    def fails(fold: ExperimentFold) -> dict[str, object]:
        if fold.experiment.name == "bad":
            raise ZeroDivisionError
        return report(fold)

    monkeypatch.setattr(experiment_panel, "_report", fails)
    toy.serve("u1")
    assert toy.log  # with what was served
    bad, mine = its.update(said, starts_in(said))
    assert bad["failed"] == "can't be read now: ZeroDivisionError" and "failed" not in mine
    assert bad["read_ms"] <= mine["read_ms"] and "experiment bad can't be read" in caplog.text
    monkeypatch.setattr(its, "update", lambda *_: 1 / 0)
    its._run(said, {})
    assert "experiments can't be read" in caplog.text
    monkeypatch.undo()
    trials = trials_of(toy, tmp_path, monkeypatch)
    assert all("failed" not in row for row in trials.update(said, starts_in(said)))
