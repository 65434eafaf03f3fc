"""Impression tokens: what they prove, and that nobody else can make or change one."""

import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.events.event_types import Engagement
from serving.access.impression_token import FORGED, MALFORMED, OLD, Shown, Signer

NOW_MS = 1_790_000_000_000
ITEMS = tuple(f"v{n}" for n in range(10))
REQUEST = "5b0c6e6f2f1e4b0f9d6c0a1b2c3d4e5f"
SIGNER = Signer(["first", "second"], 7_200)
TOKEN = SIGNER.mint(REQUEST, "u1", ITEMS, "policy", NOW_MS)
LIKE = Engagement(time_ms=NOW_MS, request_id=REQUEST, user_id="u1", item_id="v3", kind="like")


def shown_by(token: str, now_ms: int = NOW_MS, signer: Signer = SIGNER) -> Shown:
    shown = signer.verify(token, now_ms)
    assert isinstance(shown, Shown)
    return shown


def test_a_token_proves_each_item_of_its_list_to_its_user() -> None:
    assert len(TOKEN) == 174
    shown = shown_by(TOKEN)
    assert all(shown.proves(msgspec.structs.replace(LIKE, item_id=item_id)) for item_id in ITEMS)


@pytest.mark.parametrize(
    "change",
    [{"request_id": uuid.UUID(int=8).hex}, {"request_id": ""}, {"request_id": REQUEST.upper()},
     {"user_id": "u2"}, {"user_id": 1}, {"item_id": "v10"}],
)  # fmt: skip
def test_it_proves_nothing_else(change: dict[str, Any]) -> None:
    assert not shown_by(TOKEN).proves(msgspec.structs.replace(LIKE, **change))


@pytest.mark.parametrize("request_id", [REQUEST, REQUEST.replace("0", "A"), "feed:7", "x" * 256])
def test_a_request_id_of_any_form_is_bound(request_id: str) -> None:
    shown = shown_by(SIGNER.mint(request_id, 7, ["v3", 9], "", NOW_MS))
    event = msgspec.structs.replace(LIKE, request_id=request_id, user_id="7", item_id="9")
    assert shown.proves(event)
    other = msgspec.structs.replace(event, request_id=request_id.swapcase() + "0")
    assert not shown.proves(other)


@given(st.integers(0, 8 * len(TOKEN) - 1))
def test_every_flipped_bit_is_seen(bit: int) -> None:
    signer = Signer(["first"], 7_200)  # without a memory of what it verified
    raw = bytearray(TOKEN.encode())
    raw[bit // 8] ^= 1 << bit % 8
    assert signer.verify(raw.decode("latin-1"), NOW_MS) in (MALFORMED, FORGED)


@given(st.text(max_size=300))
def test_any_text_is_no_token(text: str) -> None:
    assert SIGNER.verify(text, NOW_MS) in (MALFORMED, FORGED)


def test_the_token_of_another_system_is_forged() -> None:
    other = Signer(["third"], 7_200).mint(REQUEST, "u1", ITEMS, "policy", NOW_MS)
    assert SIGNER.verify(other, NOW_MS) == FORGED
    assert Signer([], 7_200).verify(TOKEN, NOW_MS) == FORGED


@pytest.mark.parametrize(
    ("later_s", "valid"), [(0, True), (7_200, True), (7_201, False), (-60, True), (-61, False)]
)
def test_a_token_has_a_lifetime(later_s: int, valid: bool) -> None:
    for _ in range(2):  # the second time from memory
        found = SIGNER.verify(TOKEN, NOW_MS + 1000 * later_s)
        assert isinstance(found, Shown) if valid else found == OLD


def test_after_a_rotation_the_secret_before_still_verifies_and_no_older_one() -> None:
    once = Signer(["new", "first", "second"], 7_200)
    twice = Signer(["newer", "new", "first"], 7_200)
    assert shown_by(TOKEN, signer=once) and twice.verify(TOKEN, NOW_MS) == FORGED
    fresh = once.mint(REQUEST, "u1", ITEMS, "", NOW_MS)
    assert shown_by(fresh, signer=twice) and SIGNER.verify(fresh, NOW_MS) == FORGED


def test_without_a_secret_or_a_list_there_is_no_token() -> None:
    assert Signer([], 7_200).mint(REQUEST, "u1", ITEMS, "", NOW_MS) == ""
    assert SIGNER.mint(REQUEST, "u1", [], "", NOW_MS) == ""


def test_the_longest_list_has_a_token() -> None:
    token = SIGNER.mint(REQUEST, "u1", range(100), "policy", NOW_MS)
    assert len(shown_by(token).items) == 100
    assert SIGNER.verify(token + "A" * 2_000, NOW_MS) == MALFORMED
