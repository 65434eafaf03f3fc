"""``recsys experiment``: on the log of a state folder, with a director that answers; tables and page."""

import json
import re
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from recsys.config.log_config import LogConfig
from recsys.events.control_records import Experiments, ExperimentState
from recsys.events.records import CONTROL, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA, write_feature_set
from recsys.log.protocol import Append
from recsys.process.open_log import create_topics, open_log
from runtime.cli.main import app
from runtime.jobs import director_requests
from runtime.supervision import launch_plan as plans
from tests.support.plan_config import config_in
from tests.support.training.experiment_log import ToyTrial
from training.candidates.director import Director

TEXT = """
name: mine
hypothesis: "<b>new</b> things please"
metrics: {primary: [long_view], guardrails: {hide: 0.3}, find: 0.2}
layer: mixing
arms: {control: {share: 0.5}, treatment: {share: 0.5, overrides: {diversity: 0.2}}}
"""
FILES = {"default.yaml": "name: default\narms: {a: {share: 0.5}, b: {share: 0.5}}\n"}

ODD = "name: odd\nlayer: odd\nmetric: nonsense\narms: {a: {share: 1}}\n"


class System:
    """A state folder, users who are served on its log, and a director in a thread."""

    def __init__(self, folder: Path) -> None:
        config = config_in(folder, log=LogConfig(partitions=2))
        self.config, plan = plans.resolve(config)
        plans.write(self.config, plan)
        write_feature_set(self.config, FeatureSet(FEED_SCHEMA))
        self.folder, self.log = folder, open_log(self.config)
        create_topics(self.log, self.config)
        self.toy = ToyTrial(log=self.log)
        self._stop = threading.Event()
        self._director = threading.Thread(target=self._direct, daemon=True)
        self._director.start()

    def _direct(self) -> None:
        log = open_log(self.config)
        director = Director(log, self.config, lambda: self.toy.now_ms, FILES)
        while not self._stop.wait(0.02):
            director.turn()
        log.close()

    def run(self, *words: str, fails: bool = False) -> str:
        done = CliRunner().invoke(app, ["experiment", *words, "--state", str(self.folder)])
        assert done.exit_code == (2 if fails else 0), done.output
        return done.output

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json", "-"))

    def newest(self) -> Experiments:
        return director_requests.newest_experiments(self.log)

    def close(self) -> None:
        self._stop.set()
        self._director.join()
        self.log.close()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    its = System(tmp_path / "state")
    yield its
    its.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    return file


def serve(system: System, users: int = 500) -> None:
    system.toy.take(system.newest())
    for n in range(users):
        system.toy.serve(f"u{n}")
    system.toy.pass_time(1)


def test_an_experiment_starts_is_listed_reported_and_stopped(
    system: System, file: Path, tmp_path: Path
) -> None:
    assert "mine is running, 100.0% of mixing, revision 2" in system.run("start", str(file))
    system.toy.liked = {"treatment": (0.8, 0.1)}
    serve(system)
    rows = {row["name"]: row for row in system.json("list")}
    assert rows["mine"]["traffic"] == 1 and rows["mine"]["primary"] == ["long_view"]
    assert rows["default"]["state"] == "running" and "mine" in system.run("list")
    page = tmp_path / "page.html"
    seen = system.json("report", "mine")
    assert seen["verdict"] == "better" and sum(arm["users"] for arm in seen["arms"]) == 500
    assert seen["lines"][0]["effect"]["low"] > 0.3 and seen["days"] and seen["segments"]
    assert "mine: better" in system.run("report", "mine")
    assert "mine: better" in system.run("page", "mine", str(page))
    written = page.read_text()
    ET.fromstring(re.sub(r"<!doctype html>|<meta [^>]*>", "", written))  # all that is opened is closed
    assert "&lt;b&gt;new" in written and "<b>" not in written
    assert written.count("<svg") == 3 and "http" not in written and "<script" not in written
    assert "prefers-color-scheme: dark" in written and "width=device-width" in written
    assert "mine is stopped, revision 3: seen enough" in system.run("stop", "mine", "--reason", "seen enough")
    serve(system, 10)
    assert system.json("list")[1]["state"] == "stopped"
    assert system.json("report", "mine")["lines"] == seen["lines"]  # it stays


def test_what_cannot_be_is_told_in_one_line(system: System, file: Path, tmp_path: Path) -> None:
    system.run("start", str(file))
    few = system.run("report", "mine")
    assert "mine: open" in few and "nan" not in few
    system.run("page", "mine", str(tmp_path / "few.html"))
    assert "nan" not in (tmp_path / "few.html").read_text()
    assert "a name is used once" in system.run("start", str(file), fails=True)
    assert "no experiment 'x'; there are default, mine" in system.run("stop", "x", fails=True)
    assert "no experiment 'x', and no such file" in system.run("report", "x", fails=True)
    bad = tmp_path / "bad.yaml"
    bad.write_text(TEXT.replace("long_view", "long_look").replace("mine", "bad"))
    told = system.run("start", str(bad), fails=True)
    assert "bad.yaml:4: metric is 'long_look'" in told.replace("\n", "")
    assert system.newest().revision == 2
    assert "No such file" in system.run("start", str(tmp_path / "none.yaml"), fails=True)


def test_a_director_that_does_not_answer_is_told(
    system: System, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.run("list")
    system._stop.set()
    system._director.join()
    monkeypatch.setattr(director_requests, "ANSWER_S", 0.1)
    assert "the director didn't answer" in system.run("start", str(file), fails=True)


def test_check_reads_files_alone_and_beside_what_runs(system: System, file: Path, tmp_path: Path) -> None:
    assert "mine: 100% of mixing: control 50%, treatment 50%" in system.run("check", str(file))
    assert "default: 100%" in CliRunner().invoke(app, ["experiment", "check"]).output
    twin = tmp_path / "twin.yaml"
    twin.write_text(TEXT.replace("name: mine", "name: twin"))
    both = CliRunner().invoke(app, ["experiment", "check", str(file), str(twin)])
    assert both.exit_code == 2 and "shares users of the layer 'mixing'" in both.output
    assert "shares users" in system.run("check", str(file), str(twin), fails=True)
    config = replace(system.config, surfaces={"home": {"fixed": {0: "v7"}}})
    pins = {"pins.yaml": TEXT.replace("diversity: 0.2", "fixed.1: v7")}
    with pytest.raises(ValueError, match="mine: arm treatment on the surface 'home': "):
        director_requests.check_startable(pins, Experiments(revision=0), config)
    gone = CliRunner().invoke(app, ["experiment", "check", str(tmp_path / "none.yaml")])
    assert gone.exit_code == 2 and "none.yaml" in gone.output


def test_power_is_read_off_the_log(system: System, file: Path) -> None:
    assert "the log has no examples yet" in system.run("power", fails=True)
    for _ in range(3):
        serve(system, 200)
    found = system.json("power", str(file), "--effect", "0.2")
    (row,) = found["metrics"]
    assert found["users"] == 208 and row["metric"] == "long_view"  # and eight who pass the time
    assert row["mean"] == pytest.approx(0.4, abs=0.04)
    few, many = system.json("power", "--effect", "0.1"), system.json("power", "--effect", "0.3")
    assert few["metrics"][0]["users_needed"] > 3 * many["metrics"][0]["users_needed"]
    assert few["metrics"][0]["power_there"] < many["metrics"][0]["power_there"]
    assert "long_view" in system.run("power")
    assert "metric is 'x'" in system.run("power", "--metric", "x", fails=True)


def test_power_is_worked_out_of_what_is_given(tmp_path: Path) -> None:
    words = ["experiment", "power", "--mean", "10", "--sd", "5", "--users-per-day", "2000"]
    done = CliRunner().invoke(app, [*words, "--effect", "0.02", "--json", "-"])
    (row,) = json.loads(done.output)["metrics"]
    # Looked at once, with a size fixed beforehand: 2 (1.96 + 0.84)² · 0.5² / log(1.02)² = 10,000 an arm.
    assert 20_000 < row["users_needed"] < 2.2 * 20_000
    assert row["days_needed"] == pytest.approx(row["users_needed"] / 2_000, abs=2)
    assert "more" in CliRunner().invoke(app, [*words, "--effect", "0.001"]).output
    bad = CliRunner().invoke(app, [*words[:4], "--sd", "-1"])
    assert bad.exit_code == 2 and "--sd is -1" in bad.output


def test_one_that_cannot_be_read_any_more_is_in_nobodys_way(system: System) -> None:
    """As other code may have told it: the others are listed, and it is said why it isn't."""
    while not system.newest().configs:
        time.sleep(0.01)
    told = system.newest()
    odd = msgspec.structs.replace(
        told,
        revision=told.revision + 1,
        states={"odd": ExperimentState(traffic=1.0, by_request=True)},
        configs={**told.configs, "odd.yaml": ODD},
    )
    system.log.append(CONTROL, [Append(0, b"", pack(odd))])
    out = system.run("list")
    assert "default" in out and "odd can't be read: odd.yaml:3: metric is 'nonsense'" in out
    assert "odd can't be read" in system.run("report", "odd", fails=True)
    while system.newest().states["odd"].state != "stopped":  # the director saw it, and goes on
        time.sleep(0.01)
    assert "stopped already: broken: can't be read" in system.run("stop", "odd", fails=True)
