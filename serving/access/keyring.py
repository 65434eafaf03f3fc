"""API keys, folded from `control`. A key's text is ``rk_ID_SECRET``; only a hash of the secret is stored.

Pure. A check takes the same time for an unknown id as for a wrong secret, and only the owner of the secret
learns that a key is revoked or expired.
"""

import hmac
import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from recsys.events.control_records import ApiKey
from serving.access.caller import Denied

PREFIX: Final = "rk_"
ID_LENGTH: Final = 8
_KEY: Final = re.compile(rf"{PREFIX}([a-z0-9]{{{ID_LENGTH}}})_([\w-]{{20,128}})", re.ASCII)
_NO_DIGEST: Final = "0" * 64


def text_of(id: str, secret: str) -> str:
    """Text of a key, as its owner sends it."""
    return f"{PREFIX}{id}_{secret}"


def digest_of_secret(secret: str) -> str:
    """Digest under which a secret is stored. It has 256 random bits, so a fast hash is enough."""
    return sha256(secret.encode()).hexdigest()


class Keyring:
    """Keys by id; the newest record of an id wins. ``complete``: whether `control` has been read."""

    def __init__(self, complete: bool = True) -> None:
        self.complete, self._keys = complete, dict[str, ApiKey]()

    def fold(self, key: ApiKey) -> None:
        self._keys[key.id] = key

    def keys(self) -> list[ApiKey]:
        """All keys, oldest first."""
        return list(self._keys.values())

    def check(self, text: str, now_ms: int) -> ApiKey:
        """The valid key of this text. Raises Denied, which names the id alone."""
        match = _KEY.fullmatch(text)
        id, secret = match.groups() if match else ("", "")
        key = self._keys.get(id)
        right = hmac.compare_digest(digest_of_secret(secret), key.digest if key else _NO_DIGEST)
        if key is None or not right:
            raise Denied(401, "key", "the key is wrong: see `recsys keys list`, or state/run/admin.key")
        return self.valid(key, now_ms)

    def find(self, id: str, now_ms: int) -> ApiKey | None:
        """The key of an id if it is valid now, whoever asks."""
        key = self._keys.get(id)
        try:
            return key and self.valid(key, now_ms)
        except Denied:
            return None

    @staticmethod
    def valid(key: ApiKey, now_ms: int) -> ApiKey:
        """The key. Raises Denied if it is revoked or expired."""
        if key.revoked:
            raise Denied(401, "key", f"the API key {key.id} is revoked: ask for a new one")
        if 0 < key.until_ms <= now_ms:
            day = datetime.fromtimestamp(key.until_ms / 1000, UTC).date()
            raise Denied(401, "key", f"the API key {key.id} expired on {day}: ask for a new one")
        return key
