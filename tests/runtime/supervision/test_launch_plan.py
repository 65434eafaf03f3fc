"""What one `recsys up` will run: addresses, ports, secrets, and the parts that follow from it."""

import os
import re
import socket
import stat
from dataclasses import replace
from urllib.parse import urlsplit

import msgspec
import pytest

from recsys.config.loader import ConfigError
from recsys.config.log_config import LogConfig
from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import ParameterServerConfig, SessionConfig
from recsys.free_ports import PortTaken
from runtime.parts import valkey
from runtime.reports.status_table import addresses
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.launch_plan import resolve
from runtime.supervision.part_table import NAMES, body, table
from runtime.supervision.ray_environment import client_environment, job_environment
from runtime.supervision.supervisor import Supervisor
from tests.support.plan_config import FREE, config_in


def test_resolving_fills_in_addresses_and_no_port_twice(tmp_path):
    config, plan = resolve(config_in(tmp_path, log=LogConfig(url="kafka://")))
    assert plan.embedded == ["ray", "valkey", "broker"]
    assert re.fullmatch(r"redis://recsys:[\w-]{32,}@127\.0\.0\.1:\d+/0", config.sessions.url)
    assert re.fullmatch(r"kafka://127\.0\.0\.1:\d+", config.log.url)
    taken = [config.serve.port, config.serve.dashboard_port, *msgspec.structs.astuple(plan.ray)]
    taken += [plans.port_of(config.sessions.url), plans.port_of(config.log.url)]
    assert len(set(taken)) == len(taken) and all(20_000 <= port < 30_000 for port in taken)


def test_what_is_not_ours_is_not_started(tmp_path, monkeypatch):
    changes = {"sessions": SessionConfig(url="redis://127.0.0.1:6379/0")}
    there = config_in(tmp_path, log=LogConfig(url="kafka://h:9092"), nodes=3, **changes)
    config, plan = resolve(there)
    its = client_environment(config, plan)
    assert its["RAY_ADDRESS"] == "auto" and its["RAY_AUTH_TOKEN_PATH"].endswith("/run/ray.token")
    assert "RAY_TRAIN_ENABLE_STATE_TRACKING" not in its  # it takes a process more
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    config, plan = resolve(there, ray_address="10.0.0.1:6379")
    assert client_environment(config, plan).keys() == {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"}
    assert plan.embedded == [] and config.log.url == "kafka://h:9092"
    names = {part.name for part in table(plan)}
    assert not names & {"broker", "valkey", "ray", "viewers"} and "serve" in names


def test_a_job_takes_address_and_token_from_its_system(tmp_path):
    config, plan = resolve(config_in(tmp_path))
    token = str(tmp_path.resolve() / "run" / "ray.token")
    own = job_environment(config, plan)
    assert own["RAY_ADDRESS"] == f"127.0.0.1:{plan.ray.gcs}" and own["RAY_AUTH_TOKEN_PATH"] == token
    assert own.items() <= client_environment(config, plan).items()
    cluster = msgspec.structs.replace(plan, embedded=[], ray_address="10.0.0.1:6379")
    assert job_environment(config, cluster) == {}, "of another's nodes it has no token"
    nodes = msgspec.structs.replace(cluster, own_nodes=True)
    assert job_environment(config, nodes) == own | {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert job_environment(config, msgspec.structs.replace(nodes, ray_address="")) == {}


def test_files_get_absolute_paths_and_keep_their_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").symlink_to("of-this-year.pem")
    shards = ParameterServerConfig(tls=True, ca_file="ca.pem", cert_file="/etc/own.pem")
    log = LogConfig(url="kafka://h:9092", tls=True, ca_file="ca.pem")
    config, _ = resolve(config_in(tmp_path, log=log, parameter_server=shards))
    assert config.log.ca_file == config.parameter_server.ca_file == str(tmp_path / "ca.pem")
    assert config.parameter_server == replace(shards, ca_file=str(tmp_path / "ca.pem"))


def test_an_api_without_keys_is_not_opened_to_other_machines(tmp_path):
    exposed = replace(FREE, host="0.0.0.0")
    config = replace(config_in(tmp_path, access=AccessConfig(mode="open")), serve=exposed)
    with pytest.raises(ConfigError, match="access.mode is 'open'.*access.hosts"):
        resolve(config)
    for access in (AccessConfig(), AccessConfig(mode="keys"), AccessConfig(mode="open", hosts=("feed.lan",))):
        assert resolve(replace(config, access=access))
    assert resolve(replace(config, serve=FREE))


def test_secrets_are_made_once_and_are_the_owners(tmp_path):
    config, plan = resolve(config_in(tmp_path))
    plans.write(config, plan)
    files = [tmp_path / "run" / name for name in ("admin.key", "token.keys", "source.key")]
    before = [file.read_text() for file in files]
    plans.write(config, plan)
    assert [file.read_text() for file in files] == before and len(set(before)) == 3
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert plans.admin_headers(tmp_path) == {"x-admin-key": before[0]}
    assert plans.admin_headers(tmp_path / "none") == {}


@pytest.mark.parametrize("left", [b"", b"\n", bytes(43)], ids=["empty", "blank", "zeros"])
def test_secrets_that_a_power_cut_emptied_are_made_again_and_synced(tmp_path, monkeypatch, left):
    names = ("admin.key", "control.key", "ray.token", "token.keys", "source.key", "door.key")
    synced, renamed = [], {}
    sync, replace_ = os.fsync, os.replace

    def note(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def rename(partial, path):
        renamed[path.name] = list(synced)
        replace_(partial, path)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", rename)
    plans.write(*resolve(config_in(tmp_path)))
    for name in names:
        assert any(f".{name}." in file for file in renamed[name])
        (tmp_path / "run" / name).write_bytes(left)
    assert synced.count("run") == len(names)
    plans.write(*resolve(config_in(tmp_path)))
    assert all(re.fullmatch(r"[\w-]{43}", (tmp_path / "run" / name).read_text()) for name in names)


def test_a_port_in_use_is_named_with_its_holder(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        config = replace(config_in(tmp_path), serve=replace(FREE, port=port))
        with pytest.raises(PortTaken) as raised:
            resolve(config)
        theirs, _ = resolve(config, ray_address="10.0.0.1:6379")  # Serve that runs there may have it
    assert theirs.serve.port == port
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
    with run_file.lock(tmp_path / "above" / "state"):
        assert stat.S_IMODE((tmp_path / "above" / "state").stat().st_mode) == 0o700
    tmp_path.chmod(0o750)
    with run_file.lock(tmp_path):  # also one that was open before
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


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
