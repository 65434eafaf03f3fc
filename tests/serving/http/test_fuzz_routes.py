"""Generated requests, valid and invalid, to every route: none is a server error, and each answer is one that
the route's description names.

``RECSYS_FUZZ_S`` is for how many seconds of processor time to go on (4), so that what else runs takes no
request away; each route is tried once at least.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serving.control_room.hub import Hub
from serving.control_room.room_app import build_room
from serving.http_app import build_app
from tests.support.seeds import seeds
from tests.support.serving.service_harness import COMPAT, KEY, World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.steady,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.testclient"),
]

SECONDS = float(os.environ.get("RECSYS_FUZZ_S", "4"))
FIRST = 2 * seeds("fuzz", 1, 100_000)[0]  # even: the first round is valid
EXAMPLES = 4  # requests of a route in one round
FOREIGN = ("/api/", "/feedback", "/rank/", "/recommend/", "/train/", "/flush", "/inference/", "/health")
HEADERS = st.sampled_from(
    [
        {"X-Admin-Key": KEY, "X-API-Key": KEY},
        {"X-Admin-Key": KEY},
        {},
        {"Authorization": "Bearer rk_00000000_no"},
    ]
)
NAMES = st.sampled_from(
    ["ItemId", "UserId", "FeedbackType", "Timestamp", "Labels", "Categories", "IsHidden", "event", "id",
     "items", "fields", "user", "session", "timestamp", "item", "type", "ranking", "name", "value"]
) | st.text(max_size=5)  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["v1", "u1", "bob", "2022-02-24", "like", "item", "user", "interaction", "ranking"])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=15,
)
BODIES = st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode())


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    world = World(tmp_path, compat=COMPAT)
    app = build_app(world.service, lambda: KEY)
    with TestClient(
        app, "http://localhost", raise_server_exceptions=False, client=("127.0.0.1", 50_000)
    ) as client:
        deadline = time.monotonic() + 30
        while not world.service.live.followers.ready and time.monotonic() < deadline:
            time.sleep(0.01)
        yield client


def rounds(seconds: float, routes: int) -> Iterator[tuple[int, int]]:
    """Seeds and places of routes: each once, then again until the time is over."""
    end, first = time.process_time() + seconds, FIRST
    for seed in itertools.count(first):
        for place in range(routes):
            if seed > first and time.process_time() >= end:
                return
            yield seed, place


def fuzz(strategy: st.SearchStrategy[Any], seed: int, judge: Callable[[Any], None]) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=EXAMPLES, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @hypothesis.given(strategy)
    def each(case: Any) -> None:
        judge(case)

    each()


def send(client: TestClient, case: Any, headers: dict[str, str], body: bytes | None) -> Any:
    """``body`` takes the place of the generated one."""
    wanted = case.as_transport_kwargs(base_url="http://localhost")
    wanted = {name: value for name, value in wanted.items() if value is not None}
    wanted["headers"] = {
        name: value
        for name, value in (dict(wanted.get("headers", {})) | headers).items()
        if value.isascii() and value.isprintable()
    }
    data = wanted.pop("data", None)
    if body is not None:
        wanted.pop("json", None)
        data = body
        wanted["headers"] |= {"Content-Type": "application/json"}
    if isinstance(data, bytes | str):
        wanted["content"] = data
    elif data is not None:
        wanted["data"] = data
    return client.request(**wanted)


def test_no_route_fails_and_answers_are_those_of_its_description(client: TestClient) -> None:
    import schemathesis  # most of a second, which a run without this test needn't take

    schema = schemathesis.openapi.from_dict(client.app.openapi())  # type: ignore[attr-defined]
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 50
    tried, findings = set[str](), dict[str, str]()

    for seed, place in rounds(SECONDS, len(operations)):
        operation = operations[place]
        mode = list(schemathesis.GenerationMode)[seed % 2]  # valid, invalid
        strategy = operation.as_strategy(generation_mode=mode)
        bodies = st.none()
        if operation.method.upper() in ("POST", "PUT", "PATCH") and seed % 3 != 1:
            bodies = BODIES if operation.path.startswith(FOREIGN) else st.none() | BODIES

        def judge(asked: tuple[Any, dict[str, str], bytes | None]) -> None:
            case, headers, body = asked
            answer = send(client, case, headers, body)
            tried.add(case.operation.label)
            fault = fault_of(case, answer)
            if fault:
                findings.setdefault(f"{case.operation.label} {answer.status_code}", fault)

        try:
            fuzz(st.tuples(strategy, HEADERS, bodies), seed, judge)
        except hypothesis.errors.Unsatisfiable:  # a route without parameters can't be asked wrongly
            continue
    assert not findings, "\n".join(f"{where}: {fault}" for where, fault in sorted(findings.items()))
    assert len(tried) == len(operations), {o.label for o in operations} - tried


def fault_of(case: Any, answer: Any) -> str:
    """The first thing wrong with an answer; empty if nothing is."""
    asked = f"{answer.request.method} {answer.request.url}"
    if answer.status_code >= 500 and answer.status_code not in (501, 503):
        return f"{asked}: {answer.text[:200]}"
    from schemathesis.specs.openapi import checks

    documented = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    try:
        case.validate_response(answer, checks=documented)
    except (AssertionError, BaseExceptionGroup) as error:
        return f"{asked}: {summary(error)}"
    return ""


def summary(error: BaseException) -> str:
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    return "; ".join(" ".join(f"{type(part).__name__}: {part}".split())[:300] for part in parts)


def test_no_route_of_the_control_room_fails() -> None:
    room = build_room(Hub(lambda: b"{}"), lambda: b"{}", lambda kind, name: (200, b"{}"), KEY)
    segment = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
        ["control", "api", "items", "users", "healthz", "..", "%00", "room.js", "a/b"]
    )
    path = st.lists(segment, max_size=5).map("/".join)
    methods = st.sampled_from(["GET", "POST", "HEAD", "DELETE", "PATCH"])
    keys = st.sampled_from([{}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": "Bearer no"}])
    with TestClient(room, raise_server_exceptions=False, follow_redirects=False) as client:

        def judge(case: tuple[str, str, dict[str, str]]) -> None:
            method, where, headers = case
            if where == "control/api/stream":
                return  # without an end
            answer = client.request(method, f"http://testserver/{quote(where, safe='/')}", headers=headers)
            assert answer.status_code < 500, (case, answer.text[:200])
            if where.startswith("control/api/items/") and "Authorization" not in headers:
                assert answer.status_code in (401, 403, 404, 405), (case, answer.status_code)

        for seed, _ in rounds(SECONDS / 10, 1):
            fuzz(st.tuples(methods, path, keys), seed, judge)
