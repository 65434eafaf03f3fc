"""All surfaces of a live system, read at one moment: one figure has one value. Experiments are compared
without a system: the command line and the control room read one report, and API and metrics have none."""

import json
import math
import urllib.request
from collections.abc import Mapping
from typing import Any

from click.testing import CliRunner

from runtime.cli.main import COMMANDS, load
from runtime.supervision import launch_plan as plans
from serving.control_room.exposition import name_of
from tests.support.pages.control_room_checks import scrape
from tests.support.systems.live_system import LiveSystem

# By name in the API's status: name in `recsys status --json`, series of the metrics and of the control room.
DELAYS = ("click_to_session_p95_ms", "click_to_served_p95_ms")
ANSWERS = ("answers", "answer_p50_ms", "answer_p99_ms", "failed_share", "degraded_share")
RESTARTS = "recsys_part_restarts_total"
_TRIES = 40  # the system moves on between two reads


def check_one_moment(system: LiveSystem) -> None:
    """Compares every shared figure over API, `recsys status`, metrics and control room, until no read fell
    between two moments. Of one replica."""
    differing: dict[str, list[Any]] = {}
    for _ in range(_TRIES):
        differing = {n: v for n, v in surfaces(system).items() if any(x != v[0] for x in v)}
        if not differing:
            return
    raise AssertionError(f"figures differ between surfaces: {differing}")


def surfaces(system: LiveSystem) -> dict[str, list[Any]]:
    """Values of each figure: of the API, of `recsys status`, of the metrics, of the control room."""
    room = _picture(system)
    with urllib.request.urlopen(f"{system.url}/v1/status", timeout=30) as answer:
        api = json.load(answer)
    words = ["--state", str(system.state), "--json", "-"]
    done = CliRunner().invoke(load(COMMANDS["status"][0], "status"), words)
    assert done.exit_code == 0, done.output
    status, metrics = json.loads(done.stdout), scrape(system)
    figures = {
        "step": [api["version"]["step"], status["served"]["step"]],
        "items": [api["items"], status["server"]["items"]],
    }
    figures |= {name: [api[name], status[name]] for name in DELAYS}
    figures |= {name: [api[name], status["server"][name]] for name in ANSWERS}
    for name, values in figures.items():
        values += [_value(samples, f"recsys_{name}") for samples in (metrics, room)]
    # Of each part and each route; the API of a replica knows no parts, and no other routes than its own.
    figures["restarts"] = [status["restarts"], *(_sum(s, RESTARTS) for s in (metrics, room))]
    figures["requests"] = [_requests(samples) for samples in (metrics, room)]
    return {n: [None if v is None else round(v, 1) for v in vs] for n, vs in figures.items()}


def _sum(samples: Mapping[str, float | None], name: str) -> float:
    return sum(value or 0.0 for series, value in samples.items() if name_of(series) == name)


def _requests(samples: Mapping[str, float | None]) -> float:
    """Requests for lists; those for status and metrics are what this comparison itself makes."""
    lists = {s: v for s, v in samples.items() if 'route="/v1/recommend"' in s}
    return _sum(lists, "recsys_requests_total")


def _value(samples: dict[str, float | None], name: str) -> float | None:
    """The sample of the only replica; None for none, or no number."""
    values = [value for series, value in samples.items() if name_of(series) == name]
    assert len(values) <= 1, f"{name} has {len(values)} replicas, expected one"
    value = values[0] if values else None
    return None if value is None or math.isnan(value) else value


def _picture(system: LiveSystem) -> dict[str, float | None]:
    """Samples of the control room's next picture."""
    page, _, key = plans.control_room_url(system.config).partition("#")
    request = urllib.request.Request(f"{page}/api/stream", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as lines:
        for line in lines:
            if line.startswith(b"event: picture"):
                picture: dict[str, Any] = json.loads(next(lines).removeprefix(b"data: "))
                return picture["samples"]
    raise AssertionError("the control room sent no picture")
