"""API keys: which text opens, and what a wrong one learns."""

import pytest

from recsys.events.control_records import ApiKey
from serving.access.caller import Denied
from serving.access.keyring import Keyring, digest_of_secret, text_of

NOW_MS = 1_790_000_000_000
SECRET = "s" * 43
KEY = ApiKey(id="abcd1234", digest=digest_of_secret(SECRET), scopes=["read"])
TEXT = text_of(KEY.id, SECRET)


def ring(*keys: ApiKey) -> Keyring:
    keyring = Keyring()
    for key in keys:
        keyring.fold(key)
    return keyring


def refusal_of(keyring: Keyring, text: str) -> str:
    with pytest.raises(Denied) as denied:
        keyring.check(text, NOW_MS)
    assert denied.value.status == 401 and SECRET not in str(denied.value)
    return str(denied.value)


def test_a_key_opens_by_its_secret() -> None:
    assert ring(KEY).check(TEXT, NOW_MS) is KEY


def test_an_unknown_id_a_wrong_secret_and_no_key_at_all_are_told_apart_by_nothing() -> None:
    texts = [text_of(KEY.id, "x" * 43), text_of("zzzz9999", SECRET), "", "rk_", TEXT + " ", "é" * 30]
    revoked = ring(ApiKey(id=KEY.id, digest=KEY.digest, scopes=[], revoked=True))
    said = {refusal_of(ring(KEY), text) for text in texts}
    said |= {refusal_of(revoked, texts[0])}
    assert len(said) == 1


def test_its_owner_learns_that_a_key_is_revoked_or_expired() -> None:
    revoked = ApiKey(id=KEY.id, digest=KEY.digest, scopes=[], revoked=True)
    assert "abcd1234 is revoked" in refusal_of(ring(KEY, revoked), TEXT)
    expired = ApiKey(id=KEY.id, digest=KEY.digest, scopes=[], until_ms=NOW_MS)
    assert "abcd1234 expired on 2026-09-21" in refusal_of(ring(expired), TEXT)
    later = ApiKey(id=KEY.id, digest=KEY.digest, scopes=[], until_ms=NOW_MS + 1)
    assert ring(expired, later).check(TEXT, NOW_MS) is later
    assert ring(KEY, revoked).find(KEY.id, NOW_MS) is None and ring(KEY).find("", NOW_MS) is None
