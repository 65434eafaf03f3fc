"""``recsys up`` and ``down`` beside another process that holds the state folder."""

import os
import socket
import subprocess
from dataclasses import replace

import msgspec
import pytest
import typer
from rich.console import Console

from recsys.app.app_file import APP_FILE, read_app
from recsys.config.safety_config import SafetyConfig, SafetyRule
from recsys.config.system_config import digest
from recsys.features.feature_set_file import FILE as FEATURES_FILE
from recsys.features.feature_set_file import feature_set
from recsys.free_ports import PortTaken
from recsys.process.part_process import run_folder, write_atomically
from runtime.cli import up
from runtime.cli.system import end, status
from runtime.supervision import launch_plan, run_file
from runtime.supervision.processes import STATE, Identity, identify
from runtime.supervision.run_file import Running
from tests.support.plan_config import FREE, config_in
from tests.support.power_cut import power_cut

APP = "events: {buy: {label: positive, weight: 1}}\nfields: {item: {brand: category}}\n"
ME, DEAD = identify(os.getpid()), Identity(2**22 + 1, 1e9)


@pytest.fixture
def config(tmp_path):
    config = config_in(tmp_path)
    resolved, plan = launch_plan.resolve(config)
    launch_plan.write(resolved, plan)
    return config


def written(file, text=APP):
    file.write_text(text, "utf-8")
    return file


def settings_of(state, file):
    return replace(up.with_definition("laptop", state, file)[0], serve=FREE)


def wrote(config, supervisor, **more):
    running = Running(supervisor=supervisor, config_digest=digest(config), started_ms=1, time_ms=1, **more)
    write_atomically(run_folder(config.state) / "up.json", msgspec.json.encode(running))


def test_a_second_up_beside_a_dead_supervisor_fails_and_names_the_holder(config, capsys):
    """The folder is held by another command, or by an `up` that has written nothing yet."""
    for write in (lambda: None, lambda: wrote(config, DEAD)):
        write()
        with run_file.lock(config.state):
            assert up.start(config) == 1
        text = " ".join(capsys.readouterr().err.split())
        assert "no supervisor runs, but process" in text and str(os.getpid()) in text


def test_a_second_up_beside_one_that_is_stopping_fails(config, capsys):
    wrote(config, ME, stopping=True)
    with run_file.lock(config.state):
        assert up.start(config) == 1
    assert "is stopping" in capsys.readouterr().err


def test_a_second_up_beside_a_running_one_is_fine(config, capsys):
    wrote(config, ME)
    with run_file.lock(config.state):
        assert up.start(config) == 0
    assert f"already running, supervised by process {os.getpid()}" in capsys.readouterr().out


def test_a_refused_definition_leaves_the_one_that_is_kept(config, tmp_path, monkeypatch, capsys):
    """Beside a running system, and where the plan is refused: else the next start would take it."""
    _, app, file = up.with_definition("laptop", tmp_path, written(tmp_path / "first.yaml"))
    settings = settings_of(tmp_path, file)
    monkeypatch.setattr(up, "_run", lambda *_: None)
    assert up.start(settings, app=app, file=file) == 0
    kept = {name: (tmp_path / name).read_bytes() for name in (APP_FILE, FEATURES_FILE)}
    assert kept[APP_FILE] == file.read_bytes()
    changed = written(tmp_path / "changed.yaml", APP.replace("weight: 1", "weight: 2"))
    settings, app = settings_of(tmp_path, changed), read_app(changed)
    wrote(config, ME)
    with run_file.lock(tmp_path), pytest.raises(typer.Exit) as refused:
        up.up(state=tmp_path, app=changed)
    assert refused.value.exit_code == 1 and "runs with another" in capsys.readouterr().err
    same = written(tmp_path / "same.yaml", APP + "# another text, the same settings\n")
    wrote(settings_of(tmp_path, file), ME)
    with run_file.lock(tmp_path):
        assert up.start(settings_of(tmp_path, file), app=app, file=file) == 0
        assert up.start(settings_of(tmp_path, same), app=app, file=same) == 1
    (tmp_path / "run/up.json").unlink()
    unknown = replace(settings, serve=replace(FREE, routes=("shpo",)))
    assert up.start(unknown, app=app, file=changed) == 1
    assert kept == {name: (tmp_path / name).read_bytes() for name in kept}
    assert up.start(settings, app=app, file=changed) == 0
    assert (tmp_path / APP_FILE).read_bytes() == changed.read_bytes()


def test_a_power_cut_after_the_start_leaves_all_that_the_next_one_reads(tmp_path, monkeypatch):
    _, app, file = up.with_definition("laptop", tmp_path / "state", written(tmp_path / "app"))
    settings = settings_of(tmp_path / "state", file)
    monkeypatch.setattr(up, "_run", lambda *_: None)
    with power_cut(tmp_path):
        assert up.start(settings, app=app, file=file) == 0
    assert read_app(tmp_path / "state" / APP_FILE) == app
    assert feature_set(settings) == app.feature_set(settings.model.features)
    assert launch_plan.read(tmp_path / "state")[0].surfaces == settings.surfaces


def test_the_policy_of_a_new_definition_is_checked_with_its_own_labels(tmp_path, capsys):
    settings, app, file = up.with_definition("laptop", tmp_path / "state", written(tmp_path / "app"))
    weights = settings.policy.weights | {"stare": 1.0}
    wrong = replace(settings, serve=FREE, policy=replace(settings.policy, weights=weights))
    assert up.start(wrong, app=app, file=file) == 1
    assert "only labels of the schema (buy)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "state" / APP_FILE).exists()
    assert not (tmp_path / "state" / FEATURES_FILE).exists()


def test_a_safety_rule_about_a_misspelt_field_or_a_number_is_refused(config, tmp_path, capsys, monkeypatch):
    def refused(**named):
        rules = SafetyConfig((SafetyRule(value="adult", **named),))
        capsys.readouterr()
        assert up.start(replace(config, safety=rules)) == 1
        return " ".join(capsys.readouterr().err.split())

    def accepted(*_):
        raise ValueError("all names are known")

    monkeypatch.setattr(up, "table", accepted)
    assert "all names are known" in refused(when={"country": "DE"}, unless={"surface": "kids"})
    assert "all names are known" in refused(when={"legal_region": "DE"}), "requests may bring it"
    for named in ({"when": {"cuontry": "DE"}}, {"unless": {"surfaces": "kids"}}):
        (name,) = next(iter(named.values()))
        text = refused(**named)
        assert f"safety.rules: a name in when or unless is '{name}'" in text and "country" in text
    # As `recsys app apply` leaves it: the first feature set stays.
    fields = "fields: {context: {page: category, battery: number}, user: {born: number}}"
    (tmp_path / "app.yaml").write_text(fields)
    assert "all names are known" in refused(when={"page": "kids"}, unless={"battery": "5"})
    assert "is 'born', expected" in refused(when={"born": "2015"})


def test_down_names_who_holds_a_folder_without_a_supervisor(config, capsys, tmp_path):
    wrote(config, DEAD)
    assert end(tmp_path, Console()) == 0
    with run_file.lock(config.state):
        assert end(tmp_path, Console()) == 1
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert end(tmp_path, Console()) == 0
    assert run_file.holder(tmp_path) == run_file.holder(tmp_path / "none") == ""


def test_a_holder_on_another_machine_is_named_with_it(config, capsys, tmp_path, monkeypatch):
    """The nodes of a cluster share the folder: here the same id may be that of any process."""
    wrote(config, DEAD)
    named = f"process {os.getpid()} on {socket.gethostname()} uses"
    with run_file.lock(config.state):
        monkeypatch.setattr(socket, "gethostname", lambda: "node-2")
        assert up.start(config) == 1 and end(tmp_path, Console()) == 1
        with pytest.raises(typer.Exit):
            status(tmp_path)
    out, err = (" ".join(text.split()) for text in capsys.readouterr())
    assert (out.count(named), err.count(named)) == (1, 2), (out, err)


def test_down_within_a_job_of_the_system_ends_nothing(config, capsys, tmp_path, monkeypatch):
    """A Ray job inherits the environment of the head, and would be ended before the rest."""
    with subprocess.Popen(["sleep", "60"], env={STATE: str(tmp_path)}) as part:
        wrote(config, identify(part.pid))
        monkeypatch.setenv(STATE, str(tmp_path))
        assert end(tmp_path, Console()) == 1 and part.poll() is None
        assert "call `recsys down` from outside" in " ".join(capsys.readouterr().err.split())
        monkeypatch.setenv(STATE, str(tmp_path / "other"))  # of another system
        assert end(tmp_path, Console()) == 0 and part.wait(5) != 0


def test_a_full_disk_locks_all_the_same(config, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with run_file.lock(config.state), pytest.raises(run_file.AlreadyRuns, match="uses"):
        with run_file.lock(config.state):
            pass


def test_a_port_that_a_killed_system_still_holds_is_waited_for(config, monkeypatch):
    """Its processes die one after the other; only their own folder is worth the wait."""
    taken, waits = PortTaken("port 8001 (metrics.port) is in use"), []
    answers = iter([taken, taken])

    def plan(config, *_):
        for error in answers:
            raise error
        return launch_plan.resolve(config)

    monkeypatch.setattr(up, "_plan", plan)
    monkeypatch.setattr(up, "_run", lambda *_: None)
    monkeypatch.setattr(up.time, "sleep", waits.append)
    assert up.start(config) == 1 and waits == []  # nothing ran here
    wrote(config, DEAD)
    answers = iter([taken, taken])
    assert up.start(config) == 0 and len(waits) == 2
