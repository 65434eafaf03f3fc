"""Impression tokens: signed proofs that the server made a list for a user. Pure.

A token is base64url(body + MAC). Body: version u8, which also says whether the list was narrowed; number of
the secret u8; time s u32; request id 16 bytes; hash of the user 8 bytes; digest of the policy 4 bytes; keys
of the items i64 in the order of their ranks.
MAC: the first 16 bytes of HMAC-SHA256.
"""

import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from recsys.events.event_types import Engagement
from recsys.events.hashing import Id, key_of

FORGED, MALFORMED, OLD = "forged", "malformed", "old"
_VERSION, _NARROWED = 1, 2
_HEAD: Final = struct.Struct(">BBI16s8s4s")
_MAC: Final = 16
_LONGEST: Final = 1_200  # characters: 100 items are 1,136
_AHEAD_S: Final = 60  # clocks of two machines may differ
_VERIFIED: Final = 20_000  # newest tokens that are remembered: a batch has many events of one list


class Shown(NamedTuple):
    """Contents of a genuine token."""

    time_s: int
    request: bytes
    user: bytes
    items: tuple[int, ...]  # a set would have three times the memory
    narrowed: bool = False  # see Engagement

    def proves(self, event: Engagement) -> bool:
        """Whether the list was shown to the engagement's user and holds its item."""
        return (
            self.request == _request_bytes(event.request_id)
            and self.user == _user_bytes(event.user_id)
            and key_of("item", event.item_id) in self.items
        )


class Signer:
    """Makes and verifies tokens. ``secrets``: newest first; the first one signs, the first two verify."""

    def __init__(self, secrets: Sequence[str], life_s: float) -> None:
        self._secrets = [(sha256(text.encode()).digest()[0], text.encode()) for text in secrets[:2]]
        self._life_s = life_s
        self._verified = OrderedDict[str, Shown]()

    def mint(
        self, request_id: str, user_id: Id, items: Iterable[Id], policy: str, now_ms: int,
        narrowed: bool = False,
    ) -> str:  # fmt: skip
        """Token of an answer; empty without a secret and for an empty list."""
        keys = [key_of("item", item_id) for item_id in items]
        if not self._secrets or not keys:
            return ""
        number, secret = self._secrets[0]
        version = _NARROWED if narrowed else _VERSION
        body = _HEAD.pack(
            version, number, now_ms // 1000, _request_bytes(request_id), _user_bytes(user_id),
            sha256(policy.encode()).digest()[:4],
        ) + struct.pack(f">{len(keys)}q", *keys)  # fmt: skip
        return urlsafe_b64encode(body + _mac(secret, body)).rstrip(b"=").decode()

    def verify(self, token: str, now_ms: int) -> Shown | str:
        """Contents of a token, or the reason why it proves nothing: malformed, forged, old."""
        shown = self._verified.get(token) or self._read(token)
        if isinstance(shown, str):
            return shown
        self._verified[token] = shown
        if len(self._verified) > _VERIFIED:
            self._verified.popitem(last=False)
        age_s = now_ms // 1000 - shown.time_s
        return shown if -_AHEAD_S <= age_s <= self._life_s else OLD

    def _read(self, token: str) -> Shown | str:
        signed = _decoded(token)
        body = signed[:-_MAC]
        if len(body) < _HEAD.size or (len(body) - _HEAD.size) % 8 or body[0] not in (_VERSION, _NARROWED):
            return MALFORMED
        version, number, time_s, request, user, _ = _HEAD.unpack_from(body)
        if not any(
            number == own_number and hmac.compare_digest(_mac(secret, body), signed[-_MAC:])
            for own_number, secret in self._secrets
        ):
            return FORGED
        count = (len(body) - _HEAD.size) // 8
        items = struct.unpack_from(f">{count}q", body, _HEAD.size)
        return Shown(time_s, request, user, items, version == _NARROWED)


def _decoded(token: str) -> bytes:
    """Bytes of a token; none unless it is the one text of these bytes."""
    if len(token) > _LONGEST:
        return b""
    try:
        signed = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return b""
    return signed if urlsafe_b64encode(signed).rstrip(b"=").decode() == token else b""


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, body, "sha256")[:_MAC]


def _request_bytes(request_id: str) -> bytes:
    """The id itself where it is one of the server's (32 hexadecimal digits), else a hash."""
    if len(request_id) == 32:
        try:
            raw = bytes.fromhex(request_id)
        except ValueError:
            raw = b""
        if raw.hex() == request_id:
            return raw
    return sha256(request_id.encode()).digest()[:16]


def _user_bytes(user_id: Id) -> bytes:
    """Hash without known collisions: with them one token would prove engagements of many users."""
    return sha256(str(user_id).encode()).digest()[:8]
