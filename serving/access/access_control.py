"""Decides on the caller of a request, by its headers alone. Pure: clock and secrets are handed in."""

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from recsys.clock import timer_of
from recsys.config.system_config import Config
from serving.access.caller import ANONYMOUS, DOOR, MOST_SCOPES, Caller, Denied, address_of, source_of
from serving.access.hosts import host_is_allowed, is_open, origin_is_allowed
from serving.access.keyring import Keyring
from serving.access.quotas import Quotas
from serving.access.scopes import (
    ADMIN,
    HEALTH,
    OPEN_SCOPES,
    PUBLIC,
    USER_SCOPES,
    compiled,
    is_open_to_users,
    is_page,
    needed_scope,
)
from serving.access.user_tokens import UserTokens

ADMIN_ID: Final = "admin"  # id of the key in state/run/admin.key
_BEARER: Final = "bearer "
_DOOR: Final = DOOR.encode()
Scope = Mapping[str, Any]  # of ASGI


class Credentials(NamedTuple):
    """Headers of a request that say who asks. ``key``: the credential that was sent."""

    host: str
    origin: str
    site: str
    key: str

    @staticmethod
    def of(scope: Scope) -> "Credentials":
        """Reads them. The admin key counts before an API key, and that before Authorization."""
        headers: dict[bytes, bytes] = dict(scope["headers"])

        def text(name: bytes) -> str:
            return headers.get(name, b"").decode("latin-1").strip()

        bearer = text(b"authorization")
        key = bearer[len(_BEARER) :].strip() if bearer[: len(_BEARER)].lower() == _BEARER else ""
        key = text(b"x-admin-key") or text(b"x-api-key") or key
        return Credentials(text(b"host"), text(b"origin"), text(b"sec-fetch-site"), key)


class AccessControl:
    """Decides on callers. ``admin_key`` is read at each use; an empty one opens nothing. ``source_key``
    hashes sources; ``door_key`` is HAProxy's. ``scopes``, ``health``: rules and probes of routes that
    plug-ins add."""

    def __init__(
        self, config: Config, keyring: Keyring, quotas: Quotas, admin_key: Callable[[], str],
        source_key: Callable[[], Sequence[str]], door_key: Callable[[], Sequence[str]],
        now_ms: Callable[[], int],
        scopes: Iterable[tuple[str, str]] = (), health: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._config, self._keyring, self._quotas = config, keyring, quotas
        self._admin_key, self._source_key, self._now_ms = admin_key, source_key, now_ms
        self._door_key = door_key
        self._timer_ms = timer_of(now_ms)  # keys and tokens expire outside, too
        self._tokens = UserTokens(keyring)
        self._added, self._health = compiled(scopes), HEALTH.union(health)
        self._open_scopes = OPEN_SCOPES if is_open(config) else frozenset()

    def admit(self, scope: Scope) -> Caller:
        """The caller of a request that may go on. Raises Denied."""
        path, method = scope["path"], scope["method"]
        needed = self.needed_scope(method, path)
        sent = Credentials.of(scope)
        if path not in self._health:  # probes ask by address, from anywhere
            self._check_page(sent, path)
        if needed == PUBLIC:
            return ANONYMOUS
        caller = self._caller(sent.key, self.address(scope))
        caller.check_scope(needed, f"{method} {path}")
        if caller.user_id is not None and not is_open_to_users(path):
            raise Denied(403, "scope", f"{path} isn't open to user tokens: use an API key")
        return caller

    def needed_scope(self, method: str, path: str) -> str:
        """Scope that a route needs, of ours or of a plug-in."""
        return needed_scope(method, path, self._added)

    def address(self, scope: Scope) -> str:
        """Address that a request comes from. No caller chooses it: HAProxy proves itself by its key."""
        peer = str(scope["client"][0]) if scope.get("client") else ""
        forwarded, door = [], b""
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                forwarded.append(value)
            elif name == _DOOR:
                door = value
        at_door = any(hmac.compare_digest(door, key.encode()) for key in self._door_key())
        return address_of(peer, forwarded, self._config.access.proxies, at_door)

    def _check_page(self, sent: Credentials, path: str) -> None:
        """Raises Denied for a foreign host or origin."""
        if not host_is_allowed(sent.host, self._config):
            message = f"the host {sent.host[:80]!r} isn't this system's: add it to access.hosts"
            raise Denied(421, "host", message)
        origins = self._config.access.origins
        site = "" if is_page(path) else sent.site
        if not origin_is_allowed(sent.origin, site, sent.host, origins):
            source = f"of {sent.origin[:80]}" if sent.origin else "of another origin"
            message = f"a page {source} asks: add its origin to access.origins"
            raise Denied(403, "origin", message)

    def _caller(self, key: str, address: str) -> Caller:
        now_ms, source_key = self._timer_ms(), b"".join(map(str.encode, self._source_key()))
        if not key:
            return Caller(scopes=self._open_scopes, source=source_of(address, "", source_key))
        expected = self._admin_key()
        if expected and hmac.compare_digest(key.encode(), expected.encode()):
            source = source_of(address, ADMIN_ID, source_key)
            return Caller(ADMIN_ID, MOST_SCOPES | {ADMIN}, None, source)
        if not self._keyring.complete:
            raise Denied(503, "starting", "the replica is still reading the API keys", wait_s=1)
        if key.count(".") == 2:
            api_key, user_id = self._tokens.check(key, now_ms)
            return Caller(api_key.id, USER_SCOPES, user_id, source_of(address, "", source_key))
        api_key = self._keyring.check(key, now_ms)
        if wait_s := self._quotas.call(api_key, self._now_ms() / 1000):
            message = f"the API key {api_key.id} asks for more than its quota allows"
            raise Denied(429, "quota", message, wait_s)
        source = source_of(address, api_key.id, source_key)
        return Caller(api_key.id, frozenset(api_key.scopes) & MOST_SCOPES, None, source)
