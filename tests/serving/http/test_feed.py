"""The class behind the deployment, without Serve: failing telemetry replaces no replica."""

from types import SimpleNamespace
from typing import Any

import pytest

from recsys.observability.log_lines import LogThrottle
from recsys.observability.spans import Span, request_span
from recsys.observability.tracer import Tracer

app = pytest.importorskip("serving.app")


def feed(failure: str, export: Any) -> Any:
    deployed = app.Feed.__new__(app.Feed)
    deployed._throttle, deployed._metrics = LogThrottle(60.0), SimpleNamespace(export=export)
    replica = SimpleNamespace(version=("main", 0, 3))
    deployed.service = SimpleNamespace(failure=failure, replica=replica)
    return deployed


def drive(coroutine: Any) -> None:
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_metrics_that_fail_are_no_reason_to_be_replaced(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("tags don't fit")

    failing = feed("", fail)
    for _ in range(3):
        drive(failing.check_health())
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["metrics can't be exported to Ray"]
    exported: list[Any] = []
    drive(feed("", lambda *version: exported.append(version)).check_health())
    assert exported == [("main", 0, 3)]
    with pytest.raises(RuntimeError, match="the log ends"):
        feed("the log ends", fail).check_health().send(None)


def test_the_newest_spans_go_out_at_the_end() -> None:
    sent: list[Span] = []
    deployed = feed("", None)
    deployed._tracer = Tracer(1.0, [sent.extend])
    deployed._tracer.record(Span(request_span("r1", "feed"), "feed", 1, 2))
    deployed.__del__()
    assert len(sent) == 1
    app.Feed.__new__(app.Feed).__del__()  # whose constructor raised
