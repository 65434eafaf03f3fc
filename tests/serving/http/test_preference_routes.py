"""Preferences over HTTP: who may set them, and what is stored."""

from pathlib import Path
from typing import Any

import pytest

from recsys.config.safety_config import AccessConfig
from recsys.events.event_types import Preference
from tests.support.serving.service_harness import World, living


def wish(**changes: Any) -> dict[str, Any]:
    body = {"user_id": "u1", "field": "author", "value": "a3", "wish": "block"} | changes
    return {"preferences": [body]}


def stored(w: World) -> list[Preference]:
    return [event for event in w.events() if isinstance(event, Preference)]


async def test_a_preference_is_an_event_of_its_user(tmp_path: Path) -> None:
    async with living(World(tmp_path)) as w:
        sent = await w.client.post("/v1/preferences", json=wish())
        assert sent.status_code == 202 and sent.json()["accepted"] == 1
        [preference] = stored(w)
        assert (preference.user_id, preference.field, preference.value, preference.wish) == (
            "u1", "author", "a3", "block",
        )  # fmt: skip


@pytest.mark.parametrize(("changes", "field"), [({"wish": "adore"}, "wish"), ({"value": "a\n3"}, "value")])
async def test_a_wrong_preference_is_rejected_by_its_field(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    async with living(World(tmp_path)) as w:
        sent = await w.client.post("/v1/preferences", json=wish(**changes))
        [result] = sent.json()["results"]
        assert result["status"] == "rejected" and result["error"]["field"] == field
        assert stored(w) == []


async def test_a_key_needs_the_scope_attribute_to_speak_for_users(tmp_path: Path) -> None:
    async with living(World(tmp_path, access=AccessConfig(mode="keys"))) as w:
        for scopes, status in ((("events",), 403), (("events", "attribute"), 202)):
            key = await w.add_key(*scopes)
            sent = await w.client.post("/v1/preferences", json=wish(), headers={"X-Api-Key": key})
            assert sent.status_code == status, sent.text
        assert (await w.client.post("/v1/preferences", json=wish())).status_code == 401
        assert len(stored(w)) == 1


async def test_a_user_s_preferences_count_as_events_of_the_quota(tmp_path: Path) -> None:
    async with living(World(tmp_path, access=AccessConfig(user_events=0.1))) as w:
        statuses = [(await w.client.post("/v1/preferences", json=wish())).status_code]
        over = await w.client.post("/v1/preferences", json=wish())
        statuses += [over.status_code]
        assert statuses == [202, 429] and int(over.headers["retry-after"]) > 0
        assert "access.user_events" in over.json()["error"]
        other = await w.client.post("/v1/preferences", json=wish(user_id="u2"))
        assert other.status_code == 202 and len(stored(w)) == 2
