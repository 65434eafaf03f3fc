"""The short way reads what the careful way reads, and refuses nothing by words of its own."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from serving.http import api_models, fast_bodies
from serving.http.fast_route import FastLane
from serving.http_app import build_app
from tests.support.service_harness import World, run

PAIRS = [
    (api_models.RecommendIn, fast_bodies.RecommendIn),
    (api_models.EventsIn, fast_bodies.EventsIn),
]
LIMITS = ("minLength", "maxLength", "minItems", "maxItems", "maxProperties", "default", "type")


def rules(schema: dict[str, Any]) -> dict[str, Any]:
    """What a JSON schema demands, without its words; limits of numbers as the least and the most integer."""
    out: dict[str, Any] = {name: schema[name] for name in LIMITS if name in schema}
    if "minimum" in schema:
        out["least"] = schema["minimum"]
    if "maximum" in schema or "exclusiveMaximum" in schema:
        out["most"] = schema.get("maximum", schema.get("exclusiveMaximum", 0) - 1)
    if "items" in schema and schema["items"]:
        out["items"] = rules(schema["items"])
    if "anyOf" in schema:
        out["any"] = sorted((rules(one) for one in schema["anyOf"]), key=json.dumps)
    return out


def fields_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: rules(its) for name, its in schema["properties"].items()}


@pytest.mark.parametrize(("model", "body"), PAIRS)
def test_both_definitions_agree_field_by_field(
    model: type[BaseModel], body: type[msgspec.Struct]
) -> None:
    documented = model.model_json_schema()
    reference = msgspec.json.schema(body)
    read = reference["$defs"][body.__name__]
    its = fields_of(documented)
    for name, schema in its.items():  # pydantic leaves out defaults that it makes by a function
        field = model.model_fields[name]
        schema.setdefault("default", field.get_default(call_default_factory=True))
        if field.is_required():
            del schema["default"]
    assert fields_of(read) == its
    assert read["required"] == documented["required"]
    assert read["additionalProperties"] is documented["additionalProperties"] is False


def test_what_docs_show_is_what_the_short_way_reads(tmp_path: Path) -> None:
    app = build_app(World(tmp_path).service, lambda: "")
    lanes = {r.path: r.app for r in app.routes if isinstance(getattr(r, "app", None), FastLane)}  # type: ignore[attr-defined]
    assert set(lanes) == {"/v1/recommend", "/v1/events"}
    schemas = app.openapi()["components"]["schemas"]
    for model, body in PAIRS:
        fields = msgspec.json.schema(body)["$defs"][body.__name__]["properties"]
        assert schemas[model.__name__]["properties"].keys() == fields.keys()


ids = st.one_of(
    st.text(max_size=3), st.just("x" * 256), st.just("x" * 257), st.booleans(), st.none(), st.floats(),
    st.sampled_from([0, 7, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1]),
)  # fmt: skip
anything = st.recursive(
    st.one_of(ids, st.integers()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)  # fmt: skip
deep = st.integers(6, 10).map(lambda levels: json.loads('{"a":' * levels + "1" + "}" * levels))
bodies = st.fixed_dictionaries(
    {"user_id": ids},
    optional={
        "n": st.one_of(st.sampled_from([-1, 0, 1, 100, 101]), anything),
        "surface": st.one_of(st.text(max_size=3), anything),
        "context": st.one_of(st.dictionaries(st.text(max_size=2), anything, max_size=3), anything, deep),
        "exclude_ids": st.one_of(st.lists(ids, max_size=3), anything),
        "candidate_ids": st.one_of(st.none(), st.lists(ids, max_size=3), anything),
        "explain": anything,
        "more": anything,
    },
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(bodies)
def test_they_take_and_refuse_the_same_bodies(asked: dict[str, Any]) -> None:
    try:
        body = msgspec.json.encode(asked)
        plain = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, OverflowError):
        return  # no JSON: neither sees it
    try:
        careful = api_models.RecommendIn.model_validate(plain).model_dump()
    except ValidationError:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(body, type=fast_bodies.RecommendIn)
        return
    quick = msgspec.json.decode(body, type=fast_bodies.RecommendIn)
    assert msgspec.structs.asdict(quick) == careful


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "APPLICATION/JSON"}, 200),
        ({"content-type": "application/problem+json"}, 200),
        ({"content-type": "text/plain"}, 422),  # a page of another origin sends that unasked
        ({}, 422),
    ],
)
def test_the_type_of_content_matters(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async def scenario(w: World) -> None:
        request = w.client.build_request("POST", "/v1/recommend", content=b'{"user_id": "u"}')
        request.headers.pop("content-type", None)
        request.headers.update(headers)
        answer = await w.client.send(request)
        assert answer.status_code == status, answer.text

    run(World(tmp_path), scenario)


def test_a_body_in_pieces_is_read_whole(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        async def pieces() -> Any:
            for piece in (b'{"user_', b'id": ', b'"u", "n": 2}'):
                yield piece
                await asyncio.sleep(0)

        headers = {"content-type": "application/json"}
        answer = await w.client.post("/v1/recommend", content=pieces(), headers=headers)
        assert answer.status_code == 200 and len(answer.json()["items"]) == 2

    run(World(tmp_path), scenario)


def test_a_body_that_never_comes_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.http.fast_route.BODY_TIMEOUT_S", 0.01)
    app = build_app(World(tmp_path).service, lambda: "")
    scope = {
        "type": "http", "method": "POST", "path": "/v1/recommend", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    said: list[Any] = []

    async def scenario() -> None:
        async def silent() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            said.append(message)

        await app(scope, silent, send)

    asyncio.run(scenario())
    assert said[0]["status"] == 408
    assert "didn't come within" in json.loads(said[1]["body"])["error"]
