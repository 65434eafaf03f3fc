"""``recsys bench access``: processor time that keys, tokens and quotas add to an answer and to an event.

The added calls alone, in a loop: the layer around an app that does nothing, the check of the user's quota,
the token of ten items; then the proof of engagements, thirteen with each list.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config
from recsys.events.control_records import ApiKey
from recsys.events.event_types import Engagement
from serving.access.access_control import AccessControl
from serving.access.access_layer import AccessLayer, caller_of
from serving.access.audit import AuditTrail
from serving.access.caller import DOOR
from serving.access.keyring import Keyring, digest_of_secret, text_of
from serving.access.proofs import Proofs
from serving.access.quotas import Quotas

_ITEMS: Final = tuple(f"v{n}" for n in range(10))
_EVENTS: Final = 13  # engagements with a list
_USERS: Final = 1_000
_SECRET: Final = "s" * 43
_DOOR_KEY: Final = "d" * 43
_REPEATS: Final = 5  # the least of them counts: other load only adds


def measure_access(answers: int) -> dict[str, Any]:
    """Microseconds an answer by credential, and an event, beside an app without the layer."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(answers, Path(folder)))


async def _measure(answers: int, folder: Path) -> dict[str, Any]:
    config = replace(
        Config(), access=AccessConfig(mode="keys", key_rate=1e9, user_lists=1e6, user_events=1e6)
    )
    quotas, private = Quotas(config), Ed25519PrivateKey.generate()
    keyring = _keyring(private)
    control = AccessControl(
        config, keyring, quotas, lambda: "admin", lambda: ("source",), lambda: (_DOOR_KEY,), _now_ms
    )
    proofs = Proofs(config, lambda _secrets=("first", "second"): _secrets)  # type: ignore[misc]
    layer = AccessLayer(_nothing, control, AuditTrail(folder, "bench"), _NoMetrics(), _now_ms)
    key = text_of("abcd1234", _SECRET)
    tokens = [_user_token(private, f"u{n}") for n in range(_USERS)]
    request = "5b0c6e6f2f1e4b0f9d6c0a1b2c3d4e5f"

    async def answer(credential: str, user_id: str) -> None:
        scope = _scope(credential)
        await layer(scope, _receive, _send)
        quotas.list(caller_of(scope), user_id, time.time())
        proofs.mint(request, user_id, _ITEMS, "a policy", _now_ms())

    async def bare(n: int) -> None:
        await _nothing(_scope(key), _receive, _send)

    async def by_key(n: int) -> None:
        await answer(key, f"u{n % _USERS}")

    async def by_user(n: int) -> None:
        await answer(tokens[n % _USERS], f"u{n % _USERS}")

    caller = control.admit(_scope(key))
    token = proofs.mint(request, "u1", _ITEMS, "a policy", _now_ms())

    async def events(n: int) -> None:
        for event in _views(request, token):
            proofs.prove(event, caller, _now_ms())
            quotas.event(caller, "u1", time.time())

    async def unproven(n: int) -> None:
        _views(request, token)

    none_us = await _us(bare, answers)
    events_us = await _us(events, answers // _EVENTS) - await _us(unproven, answers // _EVENTS)
    began = time.thread_time()
    for text in tokens:
        control._tokens._verify(text, _now_ms())
    first_us = 1e6 * (time.thread_time() - began) / _USERS
    return {
        "answer_us": {
            "key": round(await _us(by_key, answers) - none_us, 1),
            "user_token": round(await _us(by_user, answers) - none_us, 1),
        },
        "first_sight_of_a_user_token_us": round(first_us, 1),
        "events_of_a_list_us": round(events_us, 1),
        "bar_us": 60,
    }


def _keyring(private: Ed25519PrivateKey) -> Keyring:
    """One API key, whose user tokens this private key signs."""
    keyring = Keyring()
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    keyring.fold(
        ApiKey(id="abcd1234", digest=digest_of_secret(_SECRET), scopes=["recommend", "events"],
               user_keys=[public.decode()])
    )  # fmt: skip
    return keyring


def _views(request: str, token: str) -> list[Engagement]:
    """Engagements with one list."""
    return [
        Engagement(
            time_ms=_now_ms(),
            request_id=request,
            user_id="u1",
            item_id=_ITEMS[rank % 10],
            kind="view",
            token=token,
        )  # fmt: skip
        for rank in range(_EVENTS)
    ]


async def _us(act: Callable[[int], Coroutine[Any, Any, None]], times: int) -> float:
    """Microseconds of processor time a call."""
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.thread_time()
        for n in range(times):
            await act(n)
        best = min(best, 1e6 * (time.thread_time() - began) / times)
    return best


def _user_token(private: Ed25519PrivateKey, user_id: str) -> str:
    claims = {"sub": user_id, "exp": int(time.time()) + 3_600}
    return jwt.encode(claims, private, "EdDSA", headers={"kid": "abcd1234"})


def _scope(credential: str) -> dict[str, Any]:
    """A request as the proxy passes it on."""
    return {
        "type": "http", "method": "POST", "path": "/v1/recommend", "client": ("127.0.0.1", 40_000),
        "headers": [
            (b"host", b"feed.example.org"), (b"user-agent", b"bench"), (b"accept", b"*/*"),
            (b"authorization", b"Bearer " + credential.encode()), (b"content-length", b"30"),
            (b"content-type", b"application/json"), (b"x-forwarded-for", b"203.0.113.7"),
            (DOOR.encode(), _DOOR_KEY.encode()),
        ],
    }  # fmt: skip


async def _nothing(scope: Any, receive: Any, send: Any) -> None: ...


async def _receive() -> dict[str, Any]:
    return {"type": "http.request"}


async def _send(message: Any) -> None: ...


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class _NoMetrics:
    def observe_request(self, route: str, status: int, seconds: float) -> None: ...

    def count_refused(self, route: str, reason: str) -> None: ...
