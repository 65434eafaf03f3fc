"""Confirmation of a list over HTTP: by `seen` with ``shown: list``, and by a key with ``rendered``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import UNSET

from recsys.app.app_file import app_of
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Impression
from recsys.features.feature_set_file import write_feature_set
from tests.support.serving.service_harness import ADMIN, NOW_MS, World, living, view

PRIVATE = ed25519.Ed25519PrivateKey.generate()
PEM = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def world_of(folder: Path, definition: str) -> World:
    """A service of an app, by the text of its definition."""
    app = app_of(definition)
    config = app.config(replace(Config(), state=str(folder)))
    write_feature_set(config, app.feature_set())
    return World(folder, serve=config.serve)


def seen_of(answer: dict[str, Any]) -> dict[str, Any]:
    item_id = answer["items"][-1]["item_id"]  # any item of the list
    return view(answer["request_id"], item_id, "e1", kind="seen", watch_ms=None, token=answer["token"])


@pytest.mark.parametrize("shown", ["view", "clicks"])
async def test_only_an_app_whose_lists_are_shown_as_a_whole_takes_seen(tmp_path: Path, shown: str) -> None:
    async with living(world_of(tmp_path, f"shown: {shown}")) as w:
        event = seen_of(await w.recommend(n=3))
        answer = (await w.client.post("/v1/events", json={"events": [event]})).json()
        assert answer["results"][0]["status"] == "rejected"
        error = answer["results"][0]["error"]
        assert (error["field"], error["value"]) == ("kind", '"seen"')
        assert "click" in error["expected"] and "seen" not in error["expected"]


async def test_seen_counts_with_the_token_of_its_list_and_without_it_for_nothing(tmp_path: Path) -> None:
    async with living(world_of(tmp_path, "shown: list")) as w:
        event = seen_of(await w.recommend(n=3))
        forged = event | {"token": "x", "event_id": "e2"}
        answer = (await w.client.post("/v1/events", json={"events": [event, forged]})).json()
        assert (answer["accepted"], answer["unproven"]) == (2, 1)
        stored = [e for e in w.events() if isinstance(e, Engagement)]
        assert [(e.kind, e.attributed) for e in stored] == [("seen", True), ("seen", False)]


async def test_a_choice_that_a_client_names_is_left_out(tmp_path: Path) -> None:
    async with living(world_of(tmp_path, "shown: list")) as w:
        event = seen_of(await w.recommend(n=3)) | {"choice": "clicked:1"}
        assert (await w.client.post("/v1/events", json={"events": [event]})).json()["accepted"] == 1
        (stored,) = [e for e in w.events() if isinstance(e, Engagement)]
        assert stored.choice is UNSET


@pytest.mark.parametrize("rendered", [True, False])
async def test_lists_of_a_key_are_shown_at_once_where_the_app_renders_them(
    tmp_path: Path, rendered: bool
) -> None:
    async with living(world_of(tmp_path, f"shown: list\nrendered: {str(rendered).lower()}")) as w:
        key = await w.add_key("recommend", user_keys=[PEM])
        claims = {"sub": "u1", "exp": NOW_MS // 1000 + 600}
        user = jwt.encode(claims, PRIVATE, "EdDSA", headers={"kid": key.split("_")[1]})
        callers = {
            "nobody": {},
            "user": {"Authorization": f"Bearer {user}"},
            "key": {"X-API-Key": key},
            "admin": ADMIN,
        }
        requests = dict[str, str]()
        for caller, headers in callers.items():
            for path, more in (("recommend", {"n": 3}), ("rank", {"candidate_ids": ["v1", "v2"]})):
                body = {"user_id": "u1"} | more
                answer = await w.client.post(f"/v1/{path}", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                requests[answer.json()["request_id"]] = caller
        unlogged = {"user_id": "u1", "candidate_ids": ["v1"], "log": False}
        await w.client.post("/v1/rank", json=unlogged, headers=ADMIN)
        await w.written()
        lists = [e for e in w.events() if isinstance(e, Impression)]
        assert len(lists) == len(requests) == 8
        shown = {(requests[e.request_id], e.shown) for e in lists}
        by_key = {("key", True), ("admin", True)} if rendered else {("key", UNSET), ("admin", UNSET)}
        assert shown == {("nobody", UNSET), ("user", UNSET)} | by_key
        sources = {requests[e.request_id]: e.source for e in lists}
        has_source = {caller for caller, source in sources.items() if isinstance(source, int)}
        assert has_source == ({"key", "admin"} if rendered else set())
        assert not rendered or sources["key"] != sources["admin"]
