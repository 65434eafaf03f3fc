"""`ray job submit` of an offline job, as docs/how-to/offline.md has it: to a head that asks for a token."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from recsys.free_ports import free_ports
from runtime.jobs.offline_job import run
from tests.support.paths import ROOT
from tests.support.training.archived_examples import COUNT, MINUTE_MS
from tests.support.training.offline_command import arrays_of, asked, state_with_archive
from tests.support.training.small_feed import START_MS
from training.candidates.registry import Registry

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.pairs(16)]
_BIN = Path(sys.executable).parent
# Ends when its input does. `ray stop` isn't used: it would end every Ray of the machine.
HEAD = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 3, "node_ip_address": "127.0.0.1", "include_dashboard": True,
    "dashboard_host": "127.0.0.1", "dashboard_port": int(sys.argv[1])})
print("started", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass
class Head:
    environment: dict[str, str]

    def ray_job(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Tried again as long as the head's agent, which starts after the head itself, isn't there."""
        until = time.monotonic() + 90
        while True:
            done = subprocess.run(
                [_BIN / "ray", "job", *words],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=200,
            )
            if "No available agent" not in done.stdout + done.stderr or time.monotonic() > until:
                return done
            time.sleep(1)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    token, port = tmp_path_factory.mktemp("head") / "ray.token", next(free_ports())
    token.write_text("a" * 64)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token), "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, str(port)], env=environment, cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "started\n"
        yield Head(environment)
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return state_with_archive(tmp_path_factory.mktemp("system"))


def words(system: Path, registry: Path) -> list[str]:
    """A submission of the job that ``asked`` describes."""
    (folder := system / "empty").mkdir(exist_ok=True)
    return [
        "submit", "--working-dir", str(folder), "--", str(_BIN / "recsys"), "offline",
        "--data", str(system / "archive"), "--registry", str(registry), "--workers", "2",
        "--until", str(START_MS + COUNT * MINUTE_MS), "--config", str(system / "small.yaml"),
        "--tables", "own", "--epochs", "2", "--step-examples", "16", "--checkpoint-every", "2",
    ]  # fmt: skip


def test_a_submitted_job_makes_the_candidate_of_one_process(head: Head, system: Path, tmp_path: Path) -> None:
    done = head.ray_job(*words(system, tmp_path / "job"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "2 Ray workers" in done.stdout
    (name,) = Registry(tmp_path / "job").names()
    assert name in done.stdout, "the job's log names the candidate"
    alone = run(asked(system, tmp_path / "one"))["candidate"]
    one, two = arrays_of(tmp_path / "one", alone), arrays_of(tmp_path / "job", name)
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def test_a_submission_fails_with_the_reason_of_the_command(head: Head, system: Path, tmp_path: Path) -> None:
    bad = [*words(system, tmp_path), "--init", "cand-7"]
    done = head.ray_job(*bad)
    assert done.returncode != 0 and "neither a candidate in" in done.stdout + done.stderr
    assert Registry(tmp_path).names() == []


def test_a_submission_without_the_token_is_refused(head: Head, system: Path, tmp_path: Path) -> None:
    stranger = Head({**head.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")})
    (tmp_path / "other").write_text("b" * 64)
    done = stranger.ray_job(*words(system, tmp_path))
    assert done.returncode != 0 and Registry(tmp_path).names() == []
    assert "authenti" in (done.stdout + done.stderr).lower()
