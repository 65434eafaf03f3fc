"""`recsys metrics`: over HTTP, and where nothing was started."""

import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config.part_configs import MetricsConfig
from recsys.free_ports import free_ports
from recsys.process.part_process import Stop
from runtime.parts.metrics import CONTENT_TYPE, Server, run, text
from runtime.supervision import launch_plan as plans
from runtime.supervision.part_table import table
from tests.support.plan_config import config_in


def fetched(url: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, "", error.read()


def test_it_is_served_until_the_end_and_a_failure_is_no_end() -> None:
    said = iter([b"one 1\n", ValueError("the log is being moved"), b"two 2\n"])

    def tell() -> bytes:
        its = next(said)
        if isinstance(its, Exception):
            raise its
        return its

    with Server("127.0.0.1", 0, tell) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        assert fetched(url) == (200, CONTENT_TYPE, b"one 1\n")
        status, _, body = fetched(url)
        assert status == 503 and b"being moved" in body
        assert fetched(url)[2] == b"two 2\n" and server.scrapes == 2
        assert fetched(url.replace("/metrics", "/"))[0] == 404
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=1)


def test_where_nothing_was_started_it_says_so(tmp_path: Path) -> None:
    assert b"recsys_system_running 0.0" in text(tmp_path)


def test_the_part_is_there_where_a_port_is_set(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    free = next(free_ports())
    for port, there in ((0, False), (free, True)):
        config = replace(config, metrics=MetricsConfig(port=port))
        _, plan = plans.resolve(config)
        assert ("metrics" in [part.name for part in table(plan)]) is there
    stop = Stop()
    stop.set()
    run(config, stop)
    assert stop.heartbeat.now().addresses["metrics"].endswith(f":{free}/metrics")
