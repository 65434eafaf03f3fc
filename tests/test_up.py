"""``recsys up``, ``down`` and ``status``: pure parts first, then processes, then Ray and Valkey."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest

from recsys.cli import plan as plans
from recsys.cli import ray_head, valkey
from recsys.cli import running as runs
from recsys.cli.parts import NAMES, body, table
from recsys.cli.plan import PortTaken, resolve
from recsys.cli.processes import Socket, alive, identify, is_loopback, listening, members
from recsys.cli.ray_head import client_environment
from recsys.cli.ray_loopback import loopback_of, write_haproxy
from recsys.cli.runner import Runner, part_environment
from recsys.cli.supervisor import Part, Supervisor
from recsys.cli.table import addresses, duration, ports, said_beyond_loopback
from recsys.cli.vitals import Version, freshness, last_step, version_in, waiting
from recsys.config import Config, LogConfig, ServeConfig, SessionConfig
from recsys.log import Append, MemoryLog, Record, Topic
from recsys.records import STEPS, Step, pack

ROOT = Path(__file__).resolve().parent.parent
FREE = ServeConfig(port=0, dashboard_port=0)


def config_in(folder, **changes):
    return replace(Config(), state=str(folder), serve=FREE, **changes)


# --- pure -------------------------------------------------------------------------------------------------


def test_resolving_fills_in_addresses_and_no_port_twice(tmp_path):
    config, plan = resolve(config_in(tmp_path, log=LogConfig(url="kafka://")))
    assert plan.embedded == ["ray", "valkey", "broker"]
    assert re.fullmatch(r"redis://recsys:[\w-]{32,}@127\.0\.0\.1:\d+/0", config.sessions.url)
    assert re.fullmatch(r"kafka://127\.0\.0\.1:\d+", config.log.url)
    taken = [config.serve.port, config.serve.dashboard_port, *msgspec.structs.astuple(plan.ray)]
    taken += [plans.port_of(config.sessions.url), plans.port_of(config.log.url)]
    assert len(set(taken)) == len(taken) and all(20_000 <= port < 30_000 for port in taken)


def test_what_is_not_ours_is_not_started(tmp_path):
    changes = {"sessions": SessionConfig(url="redis://127.0.0.1:6379/0")}
    there = config_in(tmp_path, log=LogConfig(url="kafka://h:9092"), nodes=3, **changes)
    with pytest.raises(ValueError, match="RAY_ADDRESS is empty"):
        resolve(there)
    config, plan = resolve(there, ray_address="10.0.0.1:6379")
    assert "RAY_ADDRESS" not in client_environment(config, plan)
    assert plan.embedded == [] and config.log.url == "kafka://h:9092"
    names = {part.name for part in table(plan)}
    assert not names & {"broker", "valkey", "ray", "viewers"} and "serve" in names


def test_a_port_in_use_is_named_with_its_holder(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        config = replace(config_in(tmp_path), serve=replace(FREE, port=port))
        with pytest.raises(PortTaken) as raised:
            resolve(config)
    assert f"port {port} (serve.port)" in str(raised.value)
    assert f"process {os.getpid()}" in str(raised.value)
    assert "RECSYS__SERVE__PORT" in str(raised.value)


def test_configuration_and_secrets_come_back_and_are_their_owners_only(tmp_path):
    config, plan = resolve(config_in(tmp_path), viewers=3.0, only=["log"])
    plans.write(config, plan)
    key = (tmp_path / "run" / "admin.key").read_text()
    plans.write(config, plan)
    assert plans.read(tmp_path) == (config, plan)
    assert (tmp_path / "run" / "admin.key").read_text() == key and len(key) >= 32
    for path in (tmp_path / "run").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_the_embedded_store_s_password_is_new_each_time_and_shown_nowhere(tmp_path):
    config, plan = resolve(config_in(tmp_path))
    again, _ = resolve(config_in(tmp_path))
    password, other = (urlsplit(c.sessions.url).password for c in (config, again))
    assert len(password) >= 32 and password != other
    assert password not in valkey.users(config.sessions.url)
    assert password not in "".join(addresses(config)) and "***@127.0.0.1" in addresses(config)[2]
    plans.write(config, plan)
    there = [path.name for path in (tmp_path / "run").iterdir() if password in path.read_text()]
    assert there == ["config.json"]


def test_the_state_folder_is_made_for_its_owner_only(tmp_path):
    with runs.held(tmp_path / "above" / "state"):
        assert stat.S_IMODE((tmp_path / "above" / "state").stat().st_mode) == 0o700
    tmp_path.chmod(0o750)
    with runs.held(tmp_path):  # one that stands is left as it is
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_reading_where_nothing_was_started_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="recsys up"):
        plans.read(tmp_path)


@pytest.mark.parametrize("embedded", [[], ["valkey", "ray"], ["valkey", "broker", "ray"]])
def test_the_table_is_in_order_for_every_plan(tmp_path, embedded):
    _, plan = resolve(config_in(tmp_path), viewers=1.0)
    plan = msgspec.structs.replace(plan, embedded=embedded)
    parts = table(plan)
    Supervisor(parts, lambda part: pytest.fail("nothing is started here"), lambda: 0.0)
    assert [part.name for part in parts] == [n for n in NAMES if n in {p.name for p in parts}]


def test_only_takes_what_is_needed_along(tmp_path):
    _, plan = resolve(config_in(tmp_path), only=["session-fold"])
    assert [part.name for part in table(plan)] == ["log", "valkey", "session-fold"]
    with pytest.raises(ValueError, match="'nonsense'"):
        table(msgspec.structs.replace(plan, only=["nonsense"]))
    with pytest.raises(ValueError, match="'nonsense'"):
        body("nonsense")


@pytest.mark.parametrize(
    "host, expected",
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("127.0.0.53", True),
     ("0.0.0.0", False), ("::", False), ("::ffff:192.0.2.2", False), ("fe80::1%eth0", False)],
)  # fmt: skip
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_ports_beyond_loopback_are_told_with_their_guard():
    sockets = [
        Socket(1, "127.0.0.1", "x"),
        Socket(2, "0.0.0.0", "haproxy"),
        Socket(3, "::", "raylet"),
    ]
    assert ports(sockets) == "1 0.0.0.0:2 (OPEN to other machines) :::3 (guarded by token)"
    many = [Socket(port, "::1", "x") for port in range(9)]
    assert ports(many) == "0 1 2 3 …"


def test_passwords_are_not_shown():
    config = replace(Config(), sessions=SessionConfig(url="redis://:hush@127.0.0.1:6379/0"))
    assert "hush" not in "".join(addresses(config))


@pytest.mark.parametrize(
    "host, told",
    [("0.0.0.0", True), ("192.0.2.7", True), ("feed.example", True),
     ("127.0.0.1", False), ("::1", False), ("localhost", False)],
)  # fmt: skip
def test_an_api_beyond_loopback_is_told_with_what_guards_it(host, told):
    said = said_beyond_loopback(replace(Config(), state="s", serve=ServeConfig(host=host)))
    assert bool(said) is told
    assert not told or (f"{host}:8000" in said and "s/run/admin.key" in said)


def test_durations():
    assert [duration(ms) for ms in (-5, 999, 61_000, 7_500_000)] == ["0s", "0s", "1m01s", "2h05m"]


@pytest.mark.parametrize(
    "address, expected",
    [("[::]:0", "127.0.0.1:0"), ("0.0.0.0:7", "127.0.0.1:7"), (":7", "127.0.0.1:7"),
     ("192.0.2.2:7", "192.0.2.2:7"), ("127.0.0.1:7", "127.0.0.1:7")],
)  # fmt: skip
def test_addresses_that_mean_all_interfaces(address, expected):
    assert loopback_of(address) == expected


def test_haproxy_reads_binds_on_loopback_only(tmp_path):
    script, settings = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    write_haproxy(script, "/bin/echo", "127.0.0.1", 8000)
    settings.write_text("frontend a\n    bind :9101\n  bind *:8404\n    bind 127.0.0.1:8000 proto h2\n"
                        "    bind 0.0.0.0:1\n    server s 10.0.0.1:80\n")  # fmt: skip
    ran = subprocess.run(
        [script, "-db", "-f", settings, "-x", "a b"], capture_output=True, text=True
    )
    assert ran.stdout.strip() == f"-db -f {settings} -x a b"
    assert settings.read_text() == (
        "frontend a\n    bind 127.0.0.1:9101\n  bind 127.0.0.1:8404\n    bind 127.0.0.1:8000 proto h2\n"
        "    bind 127.0.0.1:1\n    server s 10.0.0.1:80\n"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "feed.example"])
@pytest.mark.parametrize("written", ["127.0.0.1", "*"])
def test_haproxy_binds_the_api_where_it_is_configured_and_nothing_else(tmp_path, host, written):
    script, settings = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    write_haproxy(script, "/bin/echo", host, 8000)
    settings.write_text(f"frontend a\n    bind {written}:8000\n    bind *:80\n    bind :18000\n"
                        "    bind 0.0.0.0:80001\n    server s 127.0.0.1:8000 check\n")  # fmt: skip
    subprocess.run([script, "-f", settings], check=True, capture_output=True)
    subprocess.run(
        [script, "-f", settings], check=True, capture_output=True
    )  # a file that isn't new
    assert settings.read_text() == (
        f"frontend a\n    bind {host}:8000\n    bind 127.0.0.1:80\n    bind 127.0.0.1:18000\n"
        "    bind 127.0.0.1:80001\n    server s 127.0.0.1:8000 check\n"
    )


def test_behind_our_haproxy_replicas_stay_on_loopback(tmp_path, monkeypatch):
    everywhere = replace(FREE, host="0.0.0.0")
    config, plan = resolve(replace(config_in(tmp_path), serve=everywhere))
    monkeypatch.setattr(ray_head, "haproxy", lambda: "/bin/haproxy")
    assert ray_head.serve_host(config, plan) == "127.0.0.1"
    _, theirs = resolve(replace(config_in(tmp_path), serve=everywhere), ray_address="10.0.0.1:6379")
    assert ray_head.serve_host(config, theirs) == "0.0.0.0"
    monkeypatch.setattr(ray_head, "haproxy", lambda: "")
    assert ray_head.serve_host(config, plan) == "0.0.0.0"


def test_the_last_step_is_found_and_lag_is_counted():
    log = MemoryLog()
    log.create(Topic(STEPS))
    assert last_step(log) is None and waiting(log, STEPS, [0]) == 0
    for step in range(1, 8):
        record = Step(
            line="main", epoch=2, step=step, ranges=[], examples=0, lanes=1, time_ms=0, config=""
        )
        log.append(STEPS, [Append(0, b"main", pack(record))])
    assert last_step(log) == Version("main", 2, 7)
    assert waiting(log, STEPS, [5]) == 2 and waiting(log, STEPS, None) == 7
    assert waiting(log, "nonsense", [0]) is None


def test_the_last_step_is_found_behind_a_gap():
    class Sparse(MemoryLog):
        def end(self, topic, partition):
            return super().end(topic, partition) + 40

        def read(self, topic, partition, offset, limit=1000):
            return [r for r in self._partitions(topic)[partition] if r.offset >= offset][:limit]

    log = Sparse()
    log.create(Topic(STEPS))
    record = Step(
        line="main", epoch=0, step=9, ranges=[], examples=0, lanes=1, time_ms=0, config=""
    )
    log._topics[STEPS][0].append(Record(3, b"", pack(record)))
    assert last_step(log) == Version("main", 0, 9)


def test_versions_and_freshness_are_read_from_where_they_stand():
    at = {"line": "main", "epoch": 1, "step": 5, "more": True}
    assert version_in(at) == version_in({"stamp": at}) == Version("main", 1, 5)
    assert version_in({"line": 3}) is None and version_in({}) is None
    assert freshness("x", {"gauges": {"x": 3}}, []) == 3.0 and freshness("x", {}, []) is None


# --- real processes ---------------------------------------------------------------------------------------

FAKE = """
import os, signal, subprocess, sys, time

def good(stop):
    while not stop.wait(0.02):
        stop.heartbeat.add("events")

def once(stop):
    pass

def flaky(stop):
    while not stop.wait(0.02):
        if stop.heartbeat.now().time_ms - stop.heartbeat.now().started_ms > 100:
            raise ValueError("no luck")

def stubborn(stop):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"], process_group=0)
    stop.heartbeat.gauge("child", child.pid)
    stop.is_set()
    stop.heartbeat.write()
    time.sleep(600)

if __name__ == "__main__":
    from recsys.loops import run_part
    name, state = sys.argv[1:]
    sys.exit(run_part(name, state, globals()[name]))
"""


@pytest.fixture
def make_runner(tmp_path):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)

    def make(parts, show):
        config, plan = resolve(config_in(tmp_path / "state"))
        return Runner(
            config, plan, show, parts=parts,
            command=lambda name, state: [sys.executable, str(fake), name, state],
        )  # fmt: skip

    yield make
    for number, handler in before.items():
        signal.signal(number, handler)


def seen_of(running, name):
    return next(part for part in running.parts if part.name == name)


@pytest.mark.slow
def test_real_parts_start_die_come_back_and_end(make_runner):
    parts = [Part("once", "", once=True), Part("good", "", needs=("once",))]
    killed, ended = [], []

    def show(running, changes):
        good = seen_of(running, "good")
        if running.ready and not killed:
            killed.append(good.process)
            os.kill(good.process.pid, signal.SIGKILL)
        elif running.ready and good.restarts:
            ended.append(good)
            runner.stop()

    runner = make_runner(parts, show)
    runner.run()
    assert ended[0].last_exit == -9 and ended[0].process.pid != killed[0].pid
    assert not alive(ended[0].process)


@pytest.mark.slow
def test_a_failure_is_told_and_delays_grow(make_runner, tmp_path):
    from recsys.cli.table import note

    notes = []

    def show(running, changes):
        flaky = seen_of(running, "flaky")
        if flaky.state == "backoff" and flaky.restarts == 2:
            notes.append(note(flaky, tmp_path / "state"))
            runner.stop()

    runner = make_runner([Part("flaky", "")], show)
    runner.run()
    assert "last exit 1" in notes[0] and "ValueError: no luck" in notes[0]


@pytest.mark.slow
def test_the_stubborn_is_killed_with_all_that_it_started_and_nothing_else(make_runner, tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    children = []

    def show(running, changes):
        if running.ready and not children:
            beat = json.loads((tmp_path / "state" / "run" / "stubborn.json").read_text())
            children.append(identify(int(beat["gauges"]["child"])))
            assert sorted(members(seen_of(running, "stubborn").process)) == sorted(
                [beat["pid"], children[0].pid]
            )
            runner.stop()

    try:
        runner = make_runner([Part("stubborn", "", grace_s=0.3)], show)
        runner.run()
        assert not alive(children[0])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_is_not_taken_for_another_of_its_id():
    me = identify(os.getpid())
    assert alive(me)
    other = msgspec.structs.replace(me, started=me.started - 60)
    assert not alive(other)
    leader = identify(os.getsid(0)) if psutil.pid_exists(os.getsid(0)) else None
    if leader is not None:
        assert os.getpid() in members(leader)
        assert members(msgspec.structs.replace(leader, started=leader.started + 60)) == []


def test_one_holds_the_state_folder(tmp_path):
    with runs.held(tmp_path):
        with pytest.raises(runs.AlreadyRuns):
            with runs.held(tmp_path):
                pass
    with runs.held(tmp_path):
        pass


# --- services ---------------------------------------------------------------------------------------------


def recsys(*arguments, **variables):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RECSYS__SERVE__PORT": "0",
        "RECSYS__SERVE__DASHBOARD_PORT": "0",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "150",
        **variables,
    }
    command = [sys.executable, "-c", "from recsys.cli.main import app; app()", *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    yield folder
    recsys("down", "--state", folder)


def wait_for(condition, timeout_s=30.0):
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
    first = runs.read(state)
    server = next(
        pid
        for pid in members(sessions_of(first)["valkey"])
        if "valkey-server" in psutil.Process(pid).name()
    )
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: seen_of(runs.read(state), "valkey").restarts == 1 and runs.read(state).ready)
    assert Redis.from_url(config.sessions.url).get("user") == b"17"

    status, text = recsys("up", "--state", state, "--only", "valkey,log")
    assert status == 0 and "already running" in text
    status, text = recsys("up", "--state", state, RECSYS__STEP__EXAMPLES="17")
    assert status == 1 and "another configuration" in text

    orphan = sessions_of(runs.read(state))["valkey"]
    os.kill(first.supervisor.pid, signal.SIGKILL)
    wait_for(lambda: not alive(first.supervisor))
    status, text = recsys("status", "--state", state)
    assert status == 1 and "left without a supervisor: valkey" in text and alive(orphan)
    status, text = recsys("up", "--state", state, "--only", "valkey,log", "--detach")
    assert status == 0 and "ended 1 parts" in text and not alive(orphan)
    last = runs.read(state)
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


@pytest.mark.services
def test_serve_answers_behind_haproxy_and_all_ports_are_loopback(state, tmp_path):
    import httpx

    status, text = recsys("up", "--state", state, "--only", "ray", "--detach")
    assert status == 0, text
    config, plan = plans.read(state)
    app = tmp_path / "hello.py"
    app.write_text(APP.replace("PORT", str(config.serve.port)))
    environment = part_environment(config, plan)
    ran = subprocess.run(
        [sys.executable, str(app)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    url = f"http://127.0.0.1:{config.serve.port}/hello"
    wait_for(lambda: urllib.request.urlopen(url).read() == b'{"hello":1}')
    with httpx.Client() as client:
        times = []
        for _ in range(500):
            begun = time.perf_counter()
            assert client.get(url).status_code == 200
            times.append(1000 * (time.perf_counter() - begun))
    print(f"p50 {sorted(times)[250]:.2f} ms, p95 {sorted(times)[475]:.2f} ms")

    sessions = sessions_of(runs.read(state))
    sockets = listening(sessions)["ray"]
    programs = {found.program for found in sockets}
    assert {"gcs_server", "raylet"} <= programs
    assert len(sockets) >= 15 and config.serve.port in {found.port for found in sockets}
    assert [found for found in sockets if not found.loopback] == []
    wait_for(lambda: len(seen_of(runs.read(state), "ray").sockets) >= 15)

    dashboard = f"http://127.0.0.1:{config.serve.dashboard_port}/api/jobs/"
    assert httpx.get(dashboard).status_code == 401
    token = (state / "run" / "ray.token").read_text()
    assert httpx.get(dashboard, headers={"Authorization": f"Bearer {token}"}).status_code == 200

    head = runs.read(state)
    raylet = next(pid for pid in members(sessions["ray"]) if psutil.Process(pid).name() == "raylet")
    os.kill(raylet, signal.SIGKILL)
    wait_for(lambda: seen_of(runs.read(state), "ray").restarts == 1 and runs.read(state).ready, 60)
    assert members(sessions["ray"]) == []
    sessions = sessions_of(runs.read(state))
    folder = (state / "run" / "ray").readlink()
    assert recsys("down", "--state", state)[0] == 0
    assert members(sessions["ray"]) == [] and not folder.exists()
    assert not alive(head.supervisor)


@pytest.mark.services
def test_the_embedded_broker_carries_the_log(state):
    status, text = recsys("up", "--state", state, "--only", "log", "--log", "kafka", "--detach")
    assert status == 0, text
    status, text = recsys("status", "--state", state, "--json")
    found = json.loads(text)
    assert status == 0 and found["ready"] and found["dead_letters"] == 0
    assert [part["name"] for part in found["parts"]] == ["broker", "log"]


@pytest.mark.services
def test_ctrl_c_ends_everything(state):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RECSYS__SERVE__PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from recsys.cli.main import app; app()", "up", "--state", str(state),
         "--only", "valkey"],
        env=environment | {"RECSYS__SERVE__DASHBOARD_PORT": "0"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        running = wait_for(lambda: (found := runs.read(state)).ready and found)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0 and "valkey: ready" in output and "valkey: stopped" in output
    assert members(sessions_of(running)["valkey"]) == []
