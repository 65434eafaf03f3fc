"""The HAProxy of a Ray cluster that a system has left, as by a kill, and the next start of the system."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.config.safety_config import DoorsConfig
from runtime.supervision import launch_plan
from runtime.supervision.processes import STATE
from tests.support.plan_config import config_in
from tests.support.systems.haproxy_text import haproxy_api

# of Ray, which uses pydantic as it was
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def hardened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's class is the system's, in this test alone."""
    haproxy = importlib.import_module("ray.serve._private.haproxy")
    monkeypatch.setattr(haproxy, "HAProxyApi", haproxy.HAProxyApi)
    monkeypatch.delitem(sys.modules, "runtime.parts.haproxy_revival", raising=False)
    importlib.import_module("runtime.parts.haproxy_revival")


def test_it_takes_the_settings_of_the_newest_start(
    hardened: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv(STATE, str(state))

    def start(port: int, **doors: Any) -> int:
        made = config_in(state, doors=DoorsConfig(certificate="both.pem", **doors))
        made = replace(made, serve=replace(made.serve, port=port))
        config, plan = launch_plan.resolve(made)
        launch_plan.write(config, plan)
        return config.doors.local_port

    def written() -> str:
        api._generate_config_file_internal()
        return (tmp_path / "haproxy.cfg").read_text()

    first = start(0, idle_s=20)
    port = launch_plan.read(state)[0].serve.port
    api = haproxy_api(tmp_path, port=port)
    assert f"bind 127.0.0.1:{first}\n" in written() and "timeout client 20s" in written()
    second = start(0, idle_s=30, per_source=7)
    text = written()
    assert f"bind 127.0.0.1:{second}\n" in text and f"bind 127.0.0.1:{first}\n" not in text
    assert "timeout client 30s" in text and "sc0_conn_cur gt 7" in text
    assert f"bind 127.0.0.1:{port} ssl" in text  # Serve stays where it listens
    (state / "run" / "config.json").unlink()
    assert written() == text
