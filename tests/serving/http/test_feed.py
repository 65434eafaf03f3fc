"""The class behind the deployment, without Serve: its health, and its last spans."""

from types import SimpleNamespace

import pytest

from recsys.observability.spans import Span, request_span
from recsys.observability.tracer import Tracer

app = pytest.importorskip("serving.app")


def test_a_replica_is_replaced_only_if_it_stopped_following_the_log() -> None:
    deployed = app.Feed.__new__(app.Feed)
    deployed.service = SimpleNamespace(failure="")
    with pytest.raises(StopIteration):
        deployed.check_health().send(None)
    deployed.service.failure = "the log ends"
    with pytest.raises(RuntimeError, match="the log ends"):
        deployed.check_health().send(None)


def test_the_newest_spans_go_out_at_the_end() -> None:
    sent: list[Span] = []
    deployed = app.Feed.__new__(app.Feed)
    deployed._tracer = Tracer(1.0, [sent.extend])
    deployed._tracer.record(Span(request_span("r1", "feed"), "feed", 1, 2))
    deployed.__del__()
    assert len(sent) == 1
    app.Feed.__new__(app.Feed).__del__()  # whose constructor raised
