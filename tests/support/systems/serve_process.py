"""A Serve application in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from recsys.process.slot_file import read_slots
from tests.support.paths import ROOT


class System:
    """A running system, as a client and an operator see it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        url = self.beat("serve")["addresses"]["feed"]
        key = (state / "run" / "admin.key").read_text().strip()
        self.client = httpx.Client(base_url=url, timeout=20.0)
        self.admin = {"X-Admin-Key": key}

    def beat(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(read_slots(self.state / "run" / f"{part}.json"))
        return found

    def recommend(self, user_id: str, **more: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/recommend", json={"user_id": user_id} | more)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def view(self, answer: dict[str, Any], user_id: str, watch_ms: int) -> dict[str, Any]:
        """One view of the first item, sent once."""
        event = viewed(answer, user_id, watch_ms)
        sent = self.client.post("/v1/events", json={"events": [event]})
        assert sent.status_code == 202 and sent.json()["accepted"] == 1, sent.text
        return event

    def events_of(self, user_id: str) -> int:
        """As soon as the replica answers: after a burst it may still shed."""
        for _ in range(100):
            answer = self.client.get(f"/v1/sessions/{user_id}")
            if answer.status_code != 503:
                break
            time.sleep(0.1)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["events"])

    def serves(self, process: psutil.Process) -> bool:
        """Whether a process is this system's replica."""
        if "ray::ServeReplica" not in " ".join(process.info["cmdline"] or []):
            return False
        return str(self.state) in " ".join(process.environ().values())


def viewed(answer: dict[str, Any], user_id: str, watch_ms: int) -> dict[str, Any]:
    return {
        "type": "engagement",
        "time_ms": time.time_ns() // 1_000_000,
        "request_id": answer["request_id"],
        "token": answer["token"],
        "user_id": user_id,
        "item_id": answer["items"][0]["item_id"],
        "kind": "view",
        "watch_ms": watch_ms,
        "event_id": f"{answer['request_id']}-view",
    }


def recsys(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "RECSYS__SERVE__PORT": "0",
        "RECSYS__SERVE__DASHBOARD": "false", "RECSYS__SERVE__DASHBOARD_PORT": "0",
        "RECSYS__COMPAT__GORSE": "true", "RECSYS__COMPAT__METARANK": "true",
        "RECSYS__ACCESS__USER_LISTS": "0", "RECSYS__DOORS__PER_SOURCE": "1000",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    command = [str(Path(sys.executable).with_name("recsys")), *arguments, "--state", str(state)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)


def until(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it didn't come to that in time"
        time.sleep(0.05)
