"""``recsys up``, ``down`` and ``status`` with real services: Valkey, Ray and Serve, the broker."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.processes import alive, listening, members
from runtime.supervision.supervisor_loop import part_environment
from tests.support.paths import ROOT
from tests.support.plan_config import seen_of

pytestmark = pytest.mark.pairs(19)


def recsys(*arguments, **variables):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RECSYS__SERVE__PORT": "0",
        "RECSYS__SERVE__DASHBOARD_PORT": "0",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "150",
        **variables,
    }
    command = [sys.executable, "-c", "from runtime.cli.main import app; app()", *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    yield folder
    recsys("down", "--state", folder)


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if found := condition():
                return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s: {condition}")


def sessions_of(running):
    return {part.name: part.process for part in running.parts if part.process is not None}


@pytest.mark.services
def test_valkey_comes_back_with_its_data_and_orphans_are_ended(state):
    from redis import Redis
    from redis.exceptions import NoPermissionError

    assert recsys("down", "--state", state)[0] == 0  # nothing there: fine
    status, text = recsys("up", "--state", state, "--only", "valkey,log", "--detach")
    assert status == 0, text
    config, _ = plans.read(state)
    client = Redis.from_url(config.sessions.url)
    client.set("user", "17")
    stranger = Redis(port=plans.port_of(config.sessions.url))
    with pytest.raises(NoPermissionError):
        stranger.get("user")
    assert stat.S_IMODE((state / "run" / "valkey.acl").stat().st_mode) == 0o600
    time.sleep(1.2)  # the append-only file is synced each second
    first = run_file.read(state)
    server = next(
        pid for pid in members(sessions_of(first)["valkey"]) if "valkey-server" in psutil.Process(pid).name()
    )
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: seen_of(run_file.read(state), "valkey").restarts == 1 and run_file.read(state).ready)
    assert Redis.from_url(config.sessions.url).get("user") == b"17"

    status, text = recsys("up", "--state", state, "--only", "valkey,log")
    assert status == 0 and "already running" in text
    status, text = recsys("up", "--state", state, RECSYS__STEP__EXAMPLES="17")
    assert status == 1 and "another configuration" in text

    orphan = sessions_of(run_file.read(state))["valkey"]
    os.kill(first.supervisor.pid, signal.SIGKILL)
    wait_for(lambda: not alive(first.supervisor))
    status, text = recsys("status", "--state", state)
    assert status == 1 and "left without a supervisor: valkey" in text and alive(orphan)
    status, text = recsys("up", "--state", state, "--only", "valkey,log", "--detach")
    assert status == 0 and "stopped 1 parts" in text and not alive(orphan)
    last = run_file.read(state)
    status, text = recsys("down", "--state", state)
    assert status == 0, text
    assert not any(members(process) for process in sessions_of(last).values())


APP = """
import json, time, urllib.request
import ray
from fastapi import FastAPI
from ray import serve

app = FastAPI()

@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(app)
class Hello:
    @app.get("/hello")
    async def hello(self):
        return {"hello": 1}

ray.init(log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
serve.run(Hello.bind(), name="hello")
"""


def serve_hello(state, tmp_path):
    """Runs the application in the Ray that is up; returns its URL once it answers."""
    config, plan = plans.read(state)
    app = tmp_path / "hello.py"
    app.write_text(APP.replace("PORT", str(config.serve.port)))
    environment = part_environment(config, plan)
    ran = subprocess.run([sys.executable, str(app)], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    url = f"http://127.0.0.1:{config.serve.port}/hello"
    wait_for(lambda: urllib.request.urlopen(url).read() == b'{"hello":1}')
    return url


@pytest.mark.services
def test_only_the_api_s_port_follows_the_configured_host(state, tmp_path):
    status, text = recsys("up", "--state", state, "--only", "ray", "--detach", RECSYS__SERVE__HOST="0.0.0.0")
    assert status == 0, text
    serve_hello(state, tmp_path)
    sockets = listening(sessions_of(run_file.read(state)))["ray"]
    port = plans.read(state)[0].serve.port
    beyond = {(found.host, found.port) for found in sockets if not found.loopback}
    assert beyond == {("0.0.0.0", port)} and len(sockets) >= 15


@pytest.mark.services
def test_serve_answers_behind_haproxy_and_all_ports_are_loopback(state, tmp_path):
    import httpx

    status, text = recsys("up", "--state", state, "--only", "ray", "--detach")
    assert status == 0, text
    url = serve_hello(state, tmp_path)
    config, _ = plans.read(state)
    with httpx.Client() as client:
        times = []
        for _ in range(500):
            begun = time.perf_counter()
            assert client.get(url).status_code == 200
            times.append(1000 * (time.perf_counter() - begun))
    print(f"p50 {sorted(times)[250]:.2f} ms, p95 {sorted(times)[475]:.2f} ms")

    sessions = sessions_of(run_file.read(state))
    sockets = listening(sessions)["ray"]
    programs = {found.program for found in sockets}
    assert {"gcs_server", "raylet"} <= programs
    assert len(sockets) >= 15 and config.serve.port in {found.port for found in sockets}
    assert [found for found in sockets if not found.loopback] == []
    wait_for(lambda: len(seen_of(run_file.read(state), "ray").sockets) >= 15)

    dashboard = f"http://127.0.0.1:{config.serve.dashboard_port}/api/jobs/"
    assert httpx.get(dashboard).status_code == 401
    token = (state / "run" / "ray.token").read_text()
    assert httpx.get(dashboard, headers={"Authorization": f"Bearer {token}"}).status_code == 200

    head = run_file.read(state)
    raylet = next(pid for pid in members(sessions["ray"]) if psutil.Process(pid).name() == "raylet")
    os.kill(raylet, signal.SIGKILL)
    wait_for(lambda: seen_of(run_file.read(state), "ray").restarts == 1 and run_file.read(state).ready, 120)
    assert members(sessions["ray"]) == []
    sessions = sessions_of(run_file.read(state))
    folder = (state / "run" / "ray").readlink()
    assert recsys("down", "--state", state)[0] == 0
    assert members(sessions["ray"]) == [] and not folder.exists()
    assert not alive(head.supervisor)


@pytest.mark.services
def test_the_embedded_broker_carries_the_log(state):
    status, text = recsys("up", "--state", state, "--only", "log", "--log", "kafka", "--detach")
    assert status == 0, text
    status, text = recsys("status", "--state", state, "--json", "-")
    found = json.loads(text)
    assert status == 0 and found["ready"] and found["dead_letters"] == 0
    assert [part["name"] for part in found["parts"]] == ["broker", "log"]


@pytest.mark.services
def test_ctrl_c_ends_everything(state):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RECSYS__SERVE__PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from runtime.cli.main import app; app()", "up", "--state", str(state),
         "--only", "valkey"],
        env=environment | {"RECSYS__SERVE__DASHBOARD_PORT": "0"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        running = wait_for(lambda: (found := run_file.read(state)).ready and found)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "valkey: ready" in output and "valkey: stopped" in output
    assert members(sessions_of(running)["valkey"]) == []
