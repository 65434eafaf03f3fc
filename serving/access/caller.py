"""The caller of a request, as its credentials prove it, and the address it comes from. Pure."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from typing import Final

from msgspec import UNSET, UnsetType

from recsys.events.hashing import Id
from serving.access.hosts import address_in, name_of
from serving.access.scopes import ADMIN, ATTRIBUTE, SCOPES

MOST_SCOPES: Final = frozenset(SCOPES)


class Denied(Exception):
    """A refusal of a caller: HTTP status, and a message with the remedy, never with a secret."""

    def __init__(self, status: int, reason: str, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.reason, self.wait_s = status, reason, wait_s


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller. ``key_id``: of its API key, empty without one. ``user_id``: with a user token, the only user
    that it may read and write as. ``source``: 32-bit hash of the key, or of the network without one; unset in
    code of this process."""

    key_id: str = ""
    scopes: frozenset[str] = frozenset()
    user_id: str | None = None
    source: int | UnsetType = UNSET

    @property
    def attributes(self) -> bool:
        """Whether its engagements count without impression tokens."""
        return ATTRIBUTE in self.scopes

    def check_scope(self, needed: str, route: str) -> None:
        """Raises Denied where the caller lacks the scope that a route needs."""
        if needed in self.scopes:
            return
        key = "the admin key" if needed == ADMIN else f"a key with the scope {needed}"
        text = f"{route[:80]} needs {key}"
        if not self.key_id:
            raise Denied(401, "key", f"{text}, sent as X-API-Key or Bearer: see `recsys keys add`")
        names = ", ".join(sorted(self.scopes)) or "none"
        raise Denied(403, "scope", f"{text}; the scopes of the key {self.key_id}: {names}")

    def check_user(self, user_id: Id) -> None:
        """Raises Denied where the caller's token is another user's."""
        if self.user_id is not None and self.user_id != str(user_id):
            raise Denied(403, "user", "the user token is of another user than user_id")


DOOR: Final = "x-recsys-door"  # header with the key of HAProxy, which replaces any that a client sent

ANONYMOUS: Final = Caller()
SERVER: Final = Caller("server", MOST_SCOPES)  # code of this process, such as a benchmark


def address_of(peer: str, forwarded: Sequence[bytes], proxies: tuple[str, ...], at_door: bool = False) -> str:
    """Address of a client: the peer, or behind proxies the last address that isn't one of them. ``proxies``:
    their addresses and networks. ``at_door``: the peer is the system's own HAProxy.

    ``forwarded``: values of X-Forwarded-For; a caller may have written all but what our proxies appended.
    """
    peer = _bare(peer)
    if not at_door and not _is_proxy(peer, proxies):
        return peer
    for hop in reversed(b",".join(forwarded).decode("latin-1").split(",")):
        if (address := _bare(hop.strip())) and not _is_proxy(address, proxies):
            return address
    return peer


@lru_cache(10_000)
def _bare(hop: str) -> str:
    """Address of a hop without port and brackets, which some proxies write; IPv4 within IPv6 as IPv4."""
    if (ip := address_in(hop) or address_in(name_of(hop))) is None:
        return hop
    return str(getattr(ip, "ipv4_mapped", None) or ip)


@lru_cache(10_000)
def _is_proxy(address: str, proxies: tuple[str, ...]) -> bool:
    if (ip := address_in(address)) is None:
        return False
    return any(ip in ip_network(proxy) for proxy in proxies)


def source_of(address: str, key_id: str, secret: bytes) -> int:
    """32-bit hash of a key, or of the network (/24 or /48) of an address; without the secret it can't be
    turned back."""
    name = f"key {key_id}" if key_id else network_of(address, 24, 48)
    return int.from_bytes(hmac.digest(secret, name.encode(), "sha256")[:4], "big")


@lru_cache(10_000)
def network_of(address: str, bits: int, bits_of_ipv6: int) -> str:
    """Network of an address; any other text as it is."""
    if (ip := address_in(_bare(address))) is None:
        return address
    return str(ip_network((ip, bits if ip.version == 4 else bits_of_ipv6), strict=False))
