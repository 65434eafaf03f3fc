"""Prometheus itself over a live system: what it says of our names, and every query of the dashboard."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from recsys.free_ports import free_ports
from runtime.parts.metrics import text
from tests.support.paths import ROOT
from tests.support.systems.live_system import LiveSystem

DEPLOY = ROOT / "deploy" / "prometheus"
PATIENCE_S = 60.0
RATES_OVER = "6s"  # Grafana's $__rate_interval, at a scrape each second
# What a system that is well may have no series for: nobody was turned away at the door, what was forgotten is
# known by the second snapshot, and how long views take isn't, half a minute after the last one.
MAY_BE_EMPTY = ("recsys_refused_total", "recsys_shadow_panel_forgotten", "view_to_", "click_to_")
# promtool would have seconds spelt out, and no other unit. Our names are stable, and say the unit they have.
ABBREVIATED = "metric names should not contain abbreviated units"


def prometheus_is_there() -> bool:
    return all(map(shutil.which, ("prometheus", "promtool")))


def promtool(*words: str | Path, given: bytes = b"") -> tuple[int, str]:
    """Its exit status, and what it says."""
    ran = subprocess.run(["promtool", *map(str, words)], input=given, capture_output=True, timeout=60)
    return ran.returncode, (ran.stdout + ran.stderr).decode()


def complaints(exposition: bytes) -> list[str]:
    """What promtool holds against names and texts, but for what we mean to be so."""
    _, said = promtool("check", "metrics", given=exposition)
    found = [line for line in said.splitlines() if line]
    return [line for line in found if not _meant(line)]


def _meant(line: str) -> bool:
    name, _, complaint = line.partition(" ")
    return complaint == ABBREVIATED and name.endswith(("_ms", "_s"))


def check_names(system: LiveSystem) -> None:
    with urllib.request.urlopen(f"{system.url}/metrics", timeout=30) as answer:
        assert complaints(answer.read()) == []
    assert complaints(text(system.state)) == []


def queries(rates_over: str = RATES_OVER) -> list[str]:
    """Those of all panels, as Grafana would ask them."""
    board = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
    told = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return [query.replace("$__rate_interval", rates_over) for query in told]


def check_panels(system: LiveSystem, folder: Path) -> None:
    """Every panel's every query has a series, and every rule can be evaluated."""
    wanted = [query for query in queries() if not any(name in query for name in MAY_BE_EMPTY)]
    with running(system, folder) as url:
        until_s = time.monotonic() + PATIENCE_S
        while (missing := [query for query in wanted if not asked(url, query)]) or not judged(url):
            ask_nonsense(system)
            assert time.monotonic() < until_s, f"no series: {missing}; rules: {rules(url)}"
            time.sleep(0.5)
        assert {one["health"] for one in rules(url)} == {"ok"}, rules(url)
        down = [one["labels"] for one in asked(url, "up") if one["value"][1] != "1"]
        assert down == [] and len(asked(url, "up")) == 2


def ask_nonsense(system: LiveSystem) -> None:
    """So that there are answers that say so."""
    with suppress(OSError):
        urllib.request.urlopen(f"{system.url}/v1/recommend", data=b"{}", timeout=5)


def judged(url: str) -> bool:
    """Whether each rule was evaluated once."""
    return all(one["health"] != "unknown" for one in rules(url))


def rules(url: str) -> list[dict[str, Any]]:
    return [rule for group in get(f"{url}/api/v1/rules")["groups"] for rule in group["rules"]]


def asked(url: str, query: str) -> list[dict[str, Any]]:
    """The series that a query has now."""
    words = urllib.parse.urlencode({"query": query})
    found: list[dict[str, Any]] = get(f"{url}/api/v1/query?{words}")["result"]
    return found


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        told = json.load(answer)
    assert told["status"] == "success", told
    return told["data"]


@contextmanager
def running(system: LiveSystem, folder: Path) -> Iterator[str]:
    """Our configuration, with the ports of this system and a scrape each second; on loopback alone."""
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    ports = {"recsys-replicas": system.config.serve.port, "recsys-parts": system.config.metrics.port}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "alerts.yaml", folder)
    address = f"127.0.0.1:{next(free_ports())}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--web.listen-address={address}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    with (folder / "prometheus.log").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        _wait(f"http://{address}", process, folder / "prometheus.log")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until_s:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                return
        except OSError:  # nothing listens yet, or it doesn't answer in time
            time.sleep(0.2)
    raise AssertionError(f"prometheus isn't ready: {log.read_text()[-2000:]}")
