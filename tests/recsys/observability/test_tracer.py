"""Spans leave a process by a bounded queue: nothing waits, nothing is raised, what is lost is counted."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from recsys.config.part_configs import TracingConfig
from recsys.config.system_config import Config
from recsys.observability.spans import Span, request_span
from recsys.observability.tracer import Tracer, open_tracer


def span(n: int = 0) -> Span:
    return Span(request_span(f"r{n}", "feed"), "feed", n, n + 1)


def test_what_is_told_is_sent_in_order() -> None:
    sent: list[Span] = []
    tracer = Tracer(1.0, [sent.extend])
    for n in range(2_000):
        tracer.record(span(n))
    tracer.close()
    assert sent == [span(n) for n in range(2_000)] and (tracer.sent, tracer.dropped) == (2_000, 0)


def test_a_receiver_that_hangs_holds_nobody_up() -> None:
    goes_on = threading.Event()
    tracer = Tracer(1.0, [lambda spans: bool(goes_on.wait(10)) and None], queue=100)
    for n in range(5_000):
        tracer.record(span(n))
    assert tracer.dropped >= 5_000 - 100 - 512
    goes_on.set()
    tracer.close()
    assert tracer.sent + tracer.dropped == 5_000


def test_a_receiver_that_fails_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(spans: Sequence[Span]) -> None:
        raise ConnectionError("nobody listens")

    tracer = Tracer(1.0, [fail])
    for n in range(1_200):
        tracer.record(span(n))
    tracer.close()
    assert (tracer.sent, tracer.dropped) == (0, 1_200)
    assert len(caplog.records) == 1, "it complains once a minute"
    tracer.record(span())
    assert tracer.dropped == 1_201, "closed"


def test_of_two_ways_out_one_may_fail() -> None:
    sent: list[Span] = []

    def fail(spans: Sequence[Span]) -> None:
        raise ConnectionError("nobody listens")

    tracer = Tracer(1.0, [fail, sent.extend])
    tracer.record(span())
    tracer.close()
    assert sent == [span()] and (tracer.sent, tracer.dropped) == (0, 1)


def traced(**tracing: object) -> Config:
    return replace(Config(), tracing=TracingConfig(**tracing))  # type: ignore[arg-type]


def test_it_is_off_by_default() -> None:
    assert open_tracer(Config(), "serve") is None


def test_a_file_is_bounded_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "spans.jsonl"
    config = traced(file=str(file), file_mb=0.05, share=1.0)
    tracers = [open_tracer(config, f"part-{k}") for k in (0, 1)]
    for tracer in tracers:
        assert tracer is not None
        for n in range(1_000):
            tracer.record(span(n))
        tracer.close()
        assert tracer.sent == 1_000
    files = sorted(file.parent.glob("spans*"))
    assert [f.name for f in files] == ["spans.jsonl", "spans.jsonl.1"]
    for one in files:
        for line in one.read_bytes().splitlines():
            msgspec.json.decode(line)
    assert oct(file.stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"share": 0.0}, "tracing.share is 0.0, expected above 0"),
        ({"endpoint": "localhost:4318"}, "tracing.endpoint is 'localhost:4318', expected http"),
        ({"queue": 0}, "tracing.queue is 0, expected at least 1"),
        ({"file_mb": 0}, "tracing.file_mb is 0, expected more than 0"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TracingConfig(**wrong)  # type: ignore[arg-type]
