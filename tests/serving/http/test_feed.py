"""The class behind the deployment, without Serve: telemetry that fails replaces no replica."""

from types import SimpleNamespace
from typing import Any

import pytest

from recsys.observability.log_lines import LogThrottle
from recsys.observability.spans import Span, request_span
from recsys.observability.tracer import Tracer

app = pytest.importorskip("serving.app")


def feed(failure: str, tell: Any) -> Any:
    its = app.Feed.__new__(app.Feed)
    its._complaints, its._metrics = LogThrottle(60.0), SimpleNamespace(tell=tell)
    its.service = SimpleNamespace(failure=failure, replica=SimpleNamespace(version=("main", 0, 3)))
    return its


def drive(coroutine: Any) -> None:
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_metrics_that_fail_are_no_reason_to_be_replaced(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("tags don't fit")

    its = feed("", fail)
    for _ in range(3):
        drive(its.check_health())
    assert [said.getMessage() for said in caplog.records] == ["Ray's metrics aren't told"]
    told: list[Any] = []
    drive(feed("", lambda *version: told.append(version)).check_health())
    assert told == [("main", 0, 3)]
    with pytest.raises(RuntimeError, match="the log ends"):
        feed("the log ends", fail).check_health().send(None)


def test_the_newest_spans_go_out_at_the_end() -> None:
    sent: list[Span] = []
    its = feed("", None)
    its._tracer = Tracer(1.0, sent.extend)
    its._tracer.record(Span(request_span("r1", "feed"), "feed", 1, 2))
    its.__del__()
    assert len(sent) == 1
    app.Feed.__new__(app.Feed).__del__()  # whose constructor raised
