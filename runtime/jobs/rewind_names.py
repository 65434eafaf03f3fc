"""Reads the texts of ``recsys rewind --without``: users, API keys, networks, requests."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from recsys.log.protocol import Log
from recsys.process.part_process import run_folder
from runtime.jobs.key_requests import read_keys
from serving.access.caller import source_of
from serving.access.key_files import SOURCE_KEY, SecretFile
from training.deletion.rewind_scope import ACCOUNT, EVERYTHING, NETWORK, REQUESTS, USER, Named

_KINDS: Final = (USER, ACCOUNT, NETWORK, REQUESTS)
_MOST_NETWORKS: Final = 65_536
_BITS: Final = {4: 24, 6: 48}  # of networks that sources are hashes of


def read_names(texts: Sequence[str], log: Log, state: Path) -> list[Named]:
    """Reads the texts. One without a kind before a colon is a network or a file of request ids if it can be
    one; otherwise a user, a key or request ids, as the events tell. Raises ValueError."""
    secret = b"".join(map(str.encode, SecretFile(run_folder(str(state)) / SOURCE_KEY)()))
    return [_read(text, log, secret) for text in dict.fromkeys(texts)]


def check_seen(names: Iterable[Named]) -> list[str]:
    """Returns notes on texts that the events have only in part. Raises ValueError for those that they don't
    have, and for those that mean several things."""
    notes = list[str]()
    for name in names:
        kinds = sorted(name.seen)
        if not kinds:
            raise ValueError(
                f"--without {name.text}: no event since that time is of it, nothing is left out; "
                "name a user, an API key (`recsys keys list`), a network such as 10.1.2.0/24 or request ids, "
                "or an earlier time"
            )
        if len(kinds) > 1:
            texts = " or ".join(f"{kind}:{name.text}" for kind in kinds)
            raise ValueError(f"--without {name.text} may be several things: say {texts}")
        missing = len(name.requests - name.requests_seen) if kinds == [REQUESTS] else 0
        if missing:
            notes.append(
                f"{missing} of {len(name.requests)} requests in {name.text} have no event since that time"
            )
    return notes


def _read(text: str, log: Log, secret: bytes) -> Named:
    if text == EVERYTHING:
        return Named(text, everything=True)
    kind, _, value = text.partition(":")
    if kind not in _KINDS:
        kind, value = _guess(text), text
    if not value:
        raise ValueError(f"--without {text} names nothing: expected {kind}: and an id, or a file")
    if kind == USER:
        return Named(text, users=frozenset([value]))
    if kind == REQUESTS:
        return Named(text, requests=_requests(value))
    if kind:
        if not secret:
            raise ValueError(
                f"--without {text}: {SOURCE_KEY} in the run folder can't be read, and no key or network is "
                "known without it: bring it back from a backup, or name users or requests"
            )
        sources = _keys(value, log, secret) if kind == ACCOUNT else _networks(text, value, secret)
        return Named(text, sources=sources)
    keys = _keys(value, log, secret) if secret else {}
    return Named(text, frozenset([value]), keys, _requests(value))


def _guess(text: str) -> str:
    """The kind of a text without one; empty: a user, a key or requests."""
    if _network(text) is not None:
        return NETWORK
    return REQUESTS if Path(text).is_file() else ""


def _requests(text: str) -> frozenset[str]:
    """Ids in a file, one a line; without such a file, those between commas."""
    file = Path(text)
    ids = file.read_text("utf-8").splitlines() if file.is_file() else text.split(",")
    return frozenset(id_.strip() for id_ in ids if id_.strip())


def _keys(text: str, log: Log, secret: bytes) -> dict[int, str]:
    """The sources of the keys of an id or name."""
    ids = {text, *(key.id for key in read_keys(log) if key.name == text)}
    return {source_of("", id_, secret): ACCOUNT for id_ in ids}


def _networks(text: str, value: str, secret: bytes) -> dict[int, str]:
    """The sources of a network, or of the network of an address."""
    network = _network(value)
    if network is None:
        raise ValueError(f"--without {text}: expected an address or a network, e.g. 10.1.2.0/24")
    bits = _BITS[network.version]
    if network.prefixlen > bits:
        if network.prefixlen != network.max_prefixlen:
            raise ValueError(
                f"--without {text}: events know only the /{bits} that an address is of; name that, "
                f"{network.supernet(new_prefix=bits)}"
            )
        network = network.supernet(new_prefix=bits)
    if 1 << (bits - network.prefixlen) > _MOST_NETWORKS:
        raise ValueError(
            f"--without {text} has more than {_MOST_NETWORKS} networks of /{bits}: name smaller ones"
        )
    subnets = network.subnets(new_prefix=bits)
    return {source_of(str(net.network_address), "", secret): NETWORK for net in subnets}


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None
