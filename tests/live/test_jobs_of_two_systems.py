"""`ray job submit` on a machine with two systems: each job reaches the Ray of its own, and no other."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.harness.serve_doors import parts
from recsys.config.system_config import Config
from runtime.supervision import launch_plan
from tests.support.plan_config import config_in
from tests.support.training.archived_examples import COUNT, MINUTE_MS
from tests.support.training.offline_command import state_with_archive
from tests.support.training.small_feed import START_MS
from training.candidates.registry import Registry

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.pairs(16)]
_BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Config]]:
    """Two state folders, each with the running Ray of its system."""
    with ExitStack() as running:
        started = []
        for name in ("one", "two"):
            made = config_in(tmp_path_factory.mktemp(name) / "state")
            config, plan = launch_plan.resolve(made)
            launch_plan.write(config, plan)
            running.enter_context(parts(config, ("ray",)))
            started.append(config)
        yield started


def address_of(config: Config) -> str:
    return f"127.0.0.1:{launch_plan.read(config.state)[1].ray.gcs}"


def run(*command: object, **more: str) -> str:
    """Runs a command that finds no Ray in its environment; returns its output."""
    found = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in found} | more
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(config: Config, folder: Path, *words: object) -> str:
    """Submits a job by the state folder alone; returns its output."""
    node = (_BIN / "recsys", "node", "--state", config.state, "--")
    return run(*node, _BIN / "ray", "job", "submit", "--working-dir", folder, "--", *words)


def offline(archived: Path, registry: Path) -> list[object]:
    """The command that trains a candidate with one Ray worker."""
    return [
        _BIN / "recsys", "offline", "--data", archived / "archive", "--registry", registry,
        "--until", START_MS + COUNT * MINUTE_MS, "--config", archived / "small.yaml",
        "--tables", "own", "--workers", 1, "--epochs", 1, "--step-examples", 16,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return state_with_archive(tmp_path_factory.mktemp("archived"))


def test_a_job_has_the_address_of_the_ray_that_runs_it(systems: list[Config], tmp_path: Path) -> None:
    program = "import os; print('at', os.environ['RAY_ADDRESS'])"
    (tmp_path / "job.py").write_text(program)
    for config in (*systems, systems[0]):
        output = submit(config, tmp_path, "python", "job.py")
        assert f"at {address_of(config)}\n" in output


def test_an_offline_job_takes_the_ray_of_its_state_folder_not_one_that_was_found(
    systems: list[Config], archived: Path, tmp_path: Path
) -> None:
    (empty := tmp_path / "empty").mkdir()
    for config, other in (systems, systems[::-1]):
        registry = tmp_path / Path(config.state).parent.name
        found = ("env", f"RAY_ADDRESS={address_of(other)}")
        assert "succeeded" in submit(config, empty, *found, *offline(archived, registry))
        assert Registry(registry).names()


def test_an_offline_job_outside_of_systems_joins_none(
    systems: list[Config], archived: Path, tmp_path: Path
) -> None:
    """Ray would join the one whose address it finds in its temporary folder."""
    with tempfile.TemporaryDirectory() as short:
        (folder := Path(short) / "ray").mkdir()
        (folder / "ray_current_cluster").write_text(address_of(systems[0]))
        run(*offline(archived, tmp_path), RAY_TMPDIR=short)
    assert Registry(tmp_path).names()
