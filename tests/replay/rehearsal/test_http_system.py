"""A running system over HTTP, behind a fake client: it is asked again while it is busy."""

from typing import Any, cast

import pytest

from recsys.client import ApiError, Client, Receipt, Recommendations
from recsys.events.event_types import Engagement
from recsys.process.clock_file import ClockKeeper
from replay.rehearsal import http_system
from replay.rehearsal.http_system import HttpSystem

T = 1_700_000_000_000


class FakeClient:
    def __init__(self, *faults: int) -> None:
        self.faults, self.sessions, self.asked = list(faults), 0, 0

    def recommend(self, user_id: str, n: int, **_: Any) -> Recommendations:
        self.asked += 1
        if self.faults:
            raise ApiError("POST", "/v1/recommend", self.faults.pop(0), "busy")
        return Recommendations(request_id="r1", items=[], degraded=["model"])

    def session(self, user_id: str) -> dict[str, Any]:
        self.sessions += 1
        recent = [{"item_id": "v1", "time_ms": T}] if self.sessions > 2 else []
        return {"recent": recent}

    def send_events(self, events: list[Engagement]) -> Receipt:
        return Receipt(accepted=len(events), results=[])


class FakeKeeper:
    """A clock that a change of the pace moves to its limit."""

    def __init__(self) -> None:
        self.now_ms = T

    def change(self, speed: float, limit_ms: float) -> float:
        self.now_ms = max(self.now_ms, int(limit_ms))
        return self.now_ms


def system(client: FakeClient) -> HttpSystem:
    keeper = FakeKeeper()
    return HttpSystem(
        cast(Client, client), cast(ClockKeeper, keeper), lambda: keeper.now_ms, 1e6, 10, ["click"]
    )


def did(item: str, kind: str = "click") -> Engagement:
    return Engagement(time_ms=T, request_id="", user_id="u", item_id=item, kind=kind)


def test_a_busy_system_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_system, "_AGAIN_S", 0.0)
    client = FakeClient(503, 0)
    asked = system(client)
    assert asked.recommend("u", "feed", {}).request_id == "r1"
    assert (client.asked, asked.counts["busy"], asked.counts["degraded"]) == (3, 2, 1)
    with pytest.raises(ApiError, match="401"):
        system(FakeClient(401)).recommend("u", "feed", {})


def test_a_list_waits_for_the_session_of_its_viewer() -> None:
    client = FakeClient()
    asked = system(client)
    asked.recommend("u", "feed", {})
    assert client.sessions == 0
    asked.send([did("v1")])
    asked.recommend("other", "feed", {})
    assert client.sessions == 0
    asked.send([did("v1", "rate")])  # no entry of the history
    asked.recommend("u", "feed", {})
    assert (client.sessions, asked.counts["unsettled"]) == (3, 0)


def test_event_time_reaches_a_row_before_its_list() -> None:
    asked = system(FakeClient())
    asked.wait(T + 5_000)
    assert asked._clock() == T + 5_000
