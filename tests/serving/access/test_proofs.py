"""Which lists prove little, since the viewer's side left few items to choose from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from recsys.config.log_config import LogConfig
from recsys.config.system_config import Config, JoinConfig
from recsys.events.event_types import Engagement
from serving.access.caller import ANONYMOUS
from serving.access.impression_token import OLD
from serving.access.proofs import Proofs
from tests.support.serving.service_harness import World, living, view


async def liked(w: World, asked: dict[str, Any], headers: dict[str, str]) -> Engagement:
    """An engagement with the first item of a list, as it stands on the log."""
    answer = (await w.client.post("/v1/recommend", json=asked, headers=headers)).json()
    about = {"kind": "like", "token": answer["token"], "narrowed": True}
    event = view(answer["request_id"], answer["items"][0]["item_id"], "e", **about)
    receipt = (await w.client.post("/v1/events", json={"events": [event]})).json()
    assert (receipt["accepted"], receipt["unproven"]) == (1, 0), receipt
    await w.written()
    (engagement,) = [e for e in w.events() if isinstance(e, Engagement)]
    return engagement


@pytest.mark.parametrize(
    ("asked", "narrowed"),
    [
        ({}, False),
        ({"exclude_ids": [f"v{n}" for n in range(25)]}, False),
        ({"exclude_ids": [f"v{n}" for n in range(40)]}, True),
        ({"n": 1, "exclude_ids": [f"v{n}" for n in range(59)]}, True),
        ({"n": 1, "filters": {"author": "a1"}}, True),
        ({"n": 50}, True),
    ],
)
async def test_a_list_that_the_viewer_narrowed_says_so_in_its_token(
    tmp_path: Path, asked: dict[str, Any], narrowed: bool
) -> None:
    async with living(World(tmp_path)) as w:
        engagement = await liked(w, {"user_id": "u1"} | asked, {})
        assert engagement.narrowed is (True if narrowed else UNSET)


@pytest.mark.parametrize(
    ("asked", "narrowed"),
    [
        ({"exclude_ids": [f"v{n}" for n in range(20)]}, False),
        ({"exclude_ids": [f"v{n}" for n in range(21)]}, True),
        ({"filters": {"author": "a1"}}, False),
        ({"filters": {"author": ["a1"]}}, True),
    ],
)
async def test_pages_that_are_read_on_and_large_categories_are_not_narrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], narrowed: bool
) -> None:
    monkeypatch.setattr("serving.answer_tokens._READ_ON", 2)
    monkeypatch.setattr("serving.answer_tokens._PAGE", 5)

    async with living(World(tmp_path)) as w:
        engagement = await liked(w, {"user_id": "u1", "n": 2} | asked, {})
        assert engagement.narrowed is (True if narrowed else UNSET)


def test_a_token_lives_no_longer_than_the_log_has_its_list() -> None:
    config = replace(Config(), log=LogConfig(retention_hours=2.0), join=JoinConfig(horizon_s=10 * 3600))
    secrets = ["a secret"]
    proofs = Proofs(config, lambda: secrets)
    token = proofs.mint("r1", "u1", ["v1"], "", 0)
    like = {"request_id": "r1", "user_id": "u1", "item_id": "v1", "kind": "like", "token": token}
    for hours, fault in ((1.9, ""), (2.1, OLD)):
        now_ms = round(hours * 3_600_000)
        event = Engagement(time_ms=now_ms, **like)
        assert proofs.prove(event, ANONYMOUS, now_ms)[1] == fault


async def test_a_servers_key_narrows_no_list(tmp_path: Path) -> None:
    async with living(World(tmp_path)) as w:
        key = await w.add_key("recommend")
        asked = {"user_id": "u1", "n": 1, "filters": {"author": "a1"}}
        assert (await liked(w, asked, {"X-API-Key": key})).narrowed is UNSET
