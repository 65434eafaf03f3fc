"""The part that makes the log's topics: a state folder belongs to one log."""

import shutil
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import EntryPoints
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from recsys import plugins
from recsys.config.part_configs import WorkersConfig
from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import Config
from recsys.events.records import EVENTS
from recsys.log.protocol import LogLost
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from recsys.process.worker_share import WHOLE, Share, part_of
from runtime.supervision import launch_plan, part_table
from runtime.supervision.part_table import NAMES, body, create_log, niceness, table
from runtime.supervision.supervisor import Part
from serving.retrieval.ray_retrieval import CATCH_UP_S
from serving.sessions import counter_loop
from serving.sessions.counter_sums import SumLoop
from tests.support.plan_config import config_in
from tests.support.power_cut import power_cut

_FOLDS = ("session-fold", "joiner")


def test_serving_may_take_as_long_to_start_as_a_replica_may_read() -> None:
    (serve,) = (part for part in part_table._PARTS if part.name == "serve")
    assert serve.ready_s > CATCH_UP_S


def test_folds_that_read_the_whole_catalogue_may_take_as_long_as_serving(tmp_path: Path) -> None:
    workers = WorkersConfig(session_fold=2, counters=2)
    for many in (WorkersConfig(), workers):
        parts = table(launch_plan.resolve(replace(config_in(tmp_path), workers=many))[1], many)
        reading = {part_of(p.name) for p in parts if p.ready_s > CATCH_UP_S}
        others = {part_of(p.name) for p in parts if p.ready_s <= CATCH_UP_S}
        assert reading == {"session-fold", "counters", "serve"} and not reading & others


def test_topics_are_made_and_another_log_is_refused(tmp_path: Path) -> None:
    config = replace(Config(), state=str(tmp_path))
    create_log(config, Stop())
    known = (tmp_path / "log.id").read_text()
    log = open_log(config)
    assert log.id == known and log.partitions(EVENTS) == config.log.partitions
    log.close()
    create_log(config, Stop())  # the same again: nothing to say

    (tmp_path / "log.id").write_text("")  # as a power cut could leave it
    with power_cut(tmp_path):
        create_log(config, Stop())
    assert (tmp_path / "log.id").read_text() == known

    shutil.rmtree(tmp_path / "log")
    with pytest.raises(LogLost, match=f"holds the state of log {known}.*new state folder"):
        create_log(config, Stop())


def test_what_learns_and_what_tells_of_it_step_back_for_what_answers() -> None:
    back = {name for name in NAMES if niceness(name) > 0}
    learns = {"counters", "joiner", "archive", "sequencer", "director", "shadow", "trainer"}
    assert back == {*learns, "metrics", "control-room", "sentinel"}
    with pytest.raises(ValueError, match="'nobody', expected one of broker"):
        niceness("nobody")


def test_a_fold_with_workers_is_a_process_of_each(tmp_path: Path) -> None:
    workers = WorkersConfig(session_fold=2, joiner=3)
    config = replace(config_in(tmp_path), workers=workers)
    for only, names in (
        ((), ["session-fold.0", "session-fold.1", "counters", "joiner.0", "joiner.1", "joiner.2"]),
        (("joiner",), ["joiner.0", "joiner.1", "joiner.2"]),
        (("joiner.1",), ["joiner.1"]),
    ):
        parts = table(launch_plan.resolve(config, only=only)[1], workers)
        folds = [part for part in parts if part_of(part.name) in (*_FOLDS, "counters")]
        assert [part.name for part in folds] == names
        assert {part.shares for part in folds if "." in part.name} == {""}
        assert {part.needs for part in folds if part_of(part.name) == "joiner"} == {("log",)}
    worker = body("joiner.1", workers)
    assert isinstance(worker, partial) and worker.func is body("joiner")
    assert worker.keywords == {"share": Share(1, 3)}
    assert niceness("joiner.1") == niceness("joiner")
    for name in ("joiners.1", "joiner.3", "joiner", "counters.0"):
        with pytest.raises(ValueError, match=f"no part '{name}', expected"):
            body(name, workers)


def test_each_part_that_may_have_workers_takes_its_share() -> None:
    parts = [each.name.replace("_", "-") for each in fields(WorkersConfig)]
    assert set(parts) < set(NAMES)
    for part in parts:
        assert "share" in signature(body(part)).parameters, part


def test_the_last_of_several_counters_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[Any] = []

    def run(config: Config, stop: Stop, *given: Any, kind: Any = None) -> None:
        shares.append(kind or given[0])

    monkeypatch.setattr(counter_loop, "run", run)
    for workers in (WorkersConfig(), WorkersConfig(counters=2)):
        for name in workers.names("counters"):
            body(name, workers)(config_in(tmp_path), Stop())
    assert shares == [WHOLE, Share(0, 2), Share(1, 2), SumLoop]


def test_viewers_are_a_plug_in_that_must_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan = launch_plan.resolve(config_in(tmp_path), viewers=2.0)
    assert body("viewers").__module__ == "examples.short_video.viewers"
    assert "viewers" in {part.name for part in table(plan)}
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([]))
    with pytest.raises(ValueError, match="no plug-in 'viewers' of the group 'recsys.parts'.*pip"):
        table(plan)
    table(launch_plan.resolve(config)[1])  # without viewers nothing is missing


def test_only_processes_that_learn_or_answer_load_torch_and_none_ray_train() -> None:
    """Torch takes two seconds of the processor and 200 MB, of each process; parts load it with the first
    step, and what Ray starts for them at its start."""
    asked = """
import sys
from runtime.supervision.part_table import NAMES, body
for name in NAMES:
    body(name)
import serving.app
print("torch" in sys.modules, "ray.train" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"


def test_the_sentinel_runs_where_a_rule_holds_users(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    for nats, runs in ((0.0, False), (20.0, True)):
        held = replace(config, bounds=BoundsConfig(hold_nats=nats))
        _, plan = launch_plan.resolve(held)
        assert ("sentinel" in {part.name for part in table(plan)}) == runs


def test_parts_of_one_process_start_and_end_for_the_same_reasons(tmp_path: Path) -> None:
    config = replace(config_in(tmp_path), bounds=BoundsConfig(hold_nats=20.0))
    groups: dict[str, list[Part]] = {}
    for part in table(launch_plan.resolve(config, control_room=True)[1]):
        groups.setdefault(part.shares, []).append(part)
    del groups[""]
    assert len(groups) == 2
    for group in groups.values():
        assert len({(part.needs, part.bound, part.nice, part.once) for part in group}) == 1
