"""Log lines: JSON or text, with what is known of the work at hand, and without secrets."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from recsys.config.system_config import Config
from recsys.observability.log_lines import (
    LOG_CONTEXT,
    LogLines,
    LogThrottle,
    keep_newest,
    log_in_worker,
    redact,
)
from tests.support.parameter_server.small_line import toy_spec

TOKEN = "s3cr3t-T0ken"


def record(message: str = "hello %s", *args: object, **extra: Any) -> logging.LogRecord:
    values = {"msg": message, "args": args or ("you",), "levelname": "INFO", "name": "serving.x"}
    return logging.makeLogRecord(values | extra)


def test_a_record_says_who_what_and_where() -> None:
    line = json.loads(LogLines("json", "serve", {"replica": "r7"}).format(record(step=7, stage="rank")))
    assert line["time_ms"] > 1e12
    del line["time_ms"]
    assert line == {
        "level": "info", "part": "serve", "replica": "r7", "logger": "serving.x",
        "message": "hello you", "step": 7, "stage": "rank",
    }  # fmt: skip


def test_text_has_the_same_for_people() -> None:
    line = LogLines("text", "serve", {"replica": "r7"}).format(record(step=7, created=1.5, msecs=500.0))
    expected = "1970-01-01T00:00:01.500Z INFO    serve serving.x: hello you replica=r7 step=7"
    assert line == expected


def test_what_is_known_goes_into_each_record_of_its_task_alone() -> None:
    form, told = LogLines("json", "serve"), dict[str, Any]()
    before = LOG_CONTEXT.set({"request_id": "r1", "step": 3})
    inner = json.loads(form.format(record(step=4)))
    outer = json.loads(form.format(record()))
    other = threading.Thread(target=lambda: told.update(json.loads(form.format(record()))))
    other.start()
    other.join()
    LOG_CONTEXT.reset(before)
    after = json.loads(form.format(record()))
    assert (inner["request_id"], inner["step"], outer["step"]) == ("r1", 4, 3)
    assert "request_id" not in after and "request_id" not in told


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize(
    "said",
    [
        {"admin_key": TOKEN},
        {"headers": {"X-Admin-Key": TOKEN}},
        {"headers": [("authorization", f"Bearer {TOKEN}")], "more": f"Authorization: Bearer {TOKEN}"},
        {"url": f"redis://user:{TOKEN}@127.0.0.1:6379/0"},
        {"why": f"GET /v1/x?token={TOKEN}&n=3 failed"},
        {"env": {"RECSYS_PASSWORD": TOKEN, "api_key": TOKEN}},
        {"msg": f"connecting with token={TOKEN}", "args": ()},
        {"msg": "connecting to %s", "args": (f"redis://a:{TOKEN}@h/0",)},
        {"msg": f'{{"admin_key": "{TOKEN}", "n": 3}}', "args": ()},
    ],
)
def test_no_secret_is_told(format: str, said: dict[str, Any]) -> None:
    try:
        raise ValueError(f"no access to redis://a:{TOKEN}@h/0 with password='{TOKEN}'")
    except ValueError as error:
        failed = (ValueError, error, error.__traceback__)
    line = LogLines(format, "serve").format(record(exc_info=failed, **said))
    assert TOKEN not in line and "***" in line and "Traceback" in line


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("authorization: Basic dXNlcjpwYXNz", "authorization: ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz', 'n': 3}", "{'authorization': '***', 'n': 3}"),
        ("OTEL_EXPORTER_OTLP_HEADERS=Authorization=Basic dXNl", "OTEL_EXPORTER_OTLP_HEADERS=***"),
        ("OTEL_EXPORTER_OTLP_HEADERS=api=abc,x-other=def", "OTEL_EXPORTER_OTLP_HEADERS=***"),
        ("Authorization=Basic%20dXNl", "Authorization=***"),
        ("password='a b c' n=3", "password='***' n=3"),
        ('password="a \\" c" n=3', 'password="***" n=3'),
        ("redis://:p@ss@h:6379/0", "redis://***@h:6379/0"),
        ("redis://u:p/w@h:6379/0", "redis://***@h:6379/0"),
        ("redis://u:p#w?@h:6379/0", "redis://***@h:6379/0"),
        ("at redis://:p@h/0, and redis://:q@h/1", "at redis://***@h/0, and redis://***@h/1"),
        ("http://a/1 and http://u:p/w@h/2", "http://a/1 and http://***@h/2"),
        (r"{\"admin_key\": \"abc\", \"n\": 3}", r"{\"admin_key\": \"***\", \"n\": 3}"),
        (r"{\\\"token\\\": \\\"a b\\\"}", r"{\\\"token\\\": \\\"***\\\"}"),
        ("X-Control-Key: abc", "X-Control-Key: ***"),
        ("x-admin-key: abc, n: 3", "x-admin-key: ***, n: 3"),
        ("at http://127.0.0.1:8001/control#aB_-3", "at http://127.0.0.1:8001/control#***"),
        ("GET /?k=rk_abcd1234_Se-cret_x 200", "GET /?k=rk_abcd1234_*** 200"),
        ("{'admin_key': None, 'token': 17}", "{'admin_key': ***, 'token': ***}"),
    ],
)
def test_each_form_of_a_secret_is_hidden_whole(said: str, shown: str) -> None:
    assert redact(said) == shown and redact(shown) == shown


@pytest.mark.parametrize(
    "said",
    [
        "step 3: key 17, 5 tokens in http://h:1/a@b",
        "item http://h/users/a@b is gone",
        "docs/how-to/control-room.md#what",
        "monkey: 3, key: 17",
        "Authorization is missing",
    ],
)
def test_what_is_no_secret_stays(said: str) -> None:
    assert json.loads(LogLines("json", "x").format(record("%s", said)))["message"] == said


def test_hiding_takes_no_longer_than_its_text() -> None:
    began_s = time.process_time()
    for hard in ("redis://" * 20_000, "token=\\" * 20_000, 'token="' * 20_000, "://a:b" * 20_000):
        redact(hard)
    assert time.process_time() - began_s < 5


def test_what_json_has_no_number_for_is_null() -> None:
    extra = {"loss": math.nan, "most": math.inf, "auc": np.float32(0.5), "n": np.int64(3)}
    text = LogLines("json", "x").format(record(**extra, bad=np.float32("nan"), ok=np.bool_(True)))
    line = msgspec.json.decode(text)
    assert (line["loss"], line["most"], line["bad"], line["ok"]) == (None, None, None, True)
    assert (line["auc"], line["n"]) == (0.5, 3)


def test_no_field_takes_the_place_of_what_every_line_has() -> None:
    said = {"level": "x", "part": "x", "time_ms": 1, "logger": "x", "exception": "x"}
    form = LogLines("json", "serve", {"part": "y"})
    line = json.loads(form.format(record(**said)))
    assert (line["level"], line["part"], line["logger"]) == ("info", "serve", "serving.x")
    assert line["time_ms"] > 1e12 and list(line)[:3] == ["time_ms", "level", "part"]


@pytest.fixture
def quiet_root() -> Iterator[None]:
    root, serve = logging.getLogger(), logging.getLogger("ray.serve")
    before = list(root.handlers), root.level, list(serve.handlers)
    libraries = [logging.getLogger(name) for name in ("httpx", "kafka")]
    levels = [library.level for library in libraries]
    yield
    for library, level in zip(libraries, levels, strict=True):
        library.setLevel(level)
    for handler in {*root.handlers, *serve.handlers} - {*before[0], *before[2]}:
        handler.close()
    root.handlers[:], serve.handlers[:] = before[0], before[2]
    root.setLevel(before[1])


def test_a_worker_of_ray_writes_a_file_of_its_own(
    tmp_path: Path, quiet_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", False)  # as in a replica
    log_in_worker("serve", tmp_path, "replica-a", "json", {"replica": "a"})
    logging.getLogger("serving.followers.follower_thread").warning("log is away", extra={"error": "gone"})
    logging.getLogger("ray.serve").error("a health check failed")
    logging.getLogger("kafka.cluster").error("Metadata refresh: failed")  # at each attempt
    logging.getLogger("httpx").info("HTTP Request: GET /readyz")
    lines = [json.loads(x) for x in (tmp_path / "run" / "replica-a.log").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["log is away", "a health check failed"]
    assert {line["replica"] for line in lines} == {"a"}


def test_without_its_folder_it_logs_to_the_error_output(tmp_path: Path, quiet_root: None) -> None:
    (tmp_path / "run").write_text("no folder")
    log_in_worker("serve", tmp_path, "replica-a")
    [handler] = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler) and handler.level == logging.NOTSET


def test_old_logs_leave(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for n in range(12):
        (tmp_path / "run" / f"replica-{n:02}.log").write_text("")
    (tmp_path / "run" / "serve.log").write_text("")
    keep_newest(tmp_path, "replica-*.log*", 3)
    assert len(list((tmp_path / "run").iterdir())) == 4


def test_logs_of_shards_that_were_left_leave(tmp_path: Path, quiet_root: None) -> None:
    actor = pytest.importorskip("parameter_server.rpc.shard_actor")
    (tmp_path / "run").mkdir()
    for epoch in range(100):
        old = tmp_path / "run" / f"shard-main-{epoch}-0.log"
        old.write_text("")
        os.utime(old, (epoch, epoch))
    actor.log_as(toy_spec(parts=1), Config(state=str(tmp_path)))
    left = {file.name for file in (tmp_path / "run").iterdir()}
    assert len(left) == 33 and {"shard-main-99-0.log", "shard-main-68-0.log"} < left


def test_what_is_frequent_is_told_seldom() -> None:
    seldom = LogThrottle(10.0)
    assert [seldom.due("rank", t) for t in (0.0, 1.0, 9.9, 10.0, 11.0)] == [1, 0, 0, 3, 0]
    assert seldom.due("session", 11.0) == 1
    assert seldom.due("session", -5.0) == 1  # the clock was set back


def test_an_exception_that_repeats_is_logged_seldom_with_its_number(caplog) -> None:
    seldom, log = LogThrottle(10.0), logging.getLogger("test")
    for now_s, stage in ((0.0, "a"), (1.0, "a"), (2.0, "b"), (3.0, "a"), (11.0, "a")):
        try:
            raise ZeroDivisionError(stage)
        except ZeroDivisionError:
            seldom.exception(log, "a stage failed", now_s, stage=stage)
    assert [(r.stage, r.times) for r in caplog.records] == [("a", 1), ("b", 1), ("a", 3)]
    assert "ZeroDivisionError" in caplog.text
