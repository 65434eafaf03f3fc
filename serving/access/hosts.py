"""Checks of the Host and Origin headers: a web page of another origin must not reach the API through a
browser, by a request of its own or by a name that it points to this machine. Pure."""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

from recsys.config.system_config import Config


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    address = address_in(host.partition("%")[0])
    if address is None:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def address_in(text: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a text is; None for any other text."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def is_open(config: Config) -> bool:
    """Whether calls without a key have ``OPEN_SCOPES``."""
    mode = config.access.mode
    return mode == "open" or (mode == "auto" and is_loopback(config.serve.host))


def host_is_allowed(header: str, config: Config) -> bool:
    """Whether the API answers to a Host header.

    A page that attacks by DNS sends a name, so addresses are always allowed, as is a missing header. So is
    any name where every call needs a key and no names are configured.
    """
    host = name_of(header)
    if host in ("", "localhost", config.serve.host) or address_in(host) is not None:
        return True
    hosts = config.access.hosts
    if not hosts:
        return not is_open(config)
    return any(
        host == allowed or allowed == "*" or (allowed[:2] == "*." and host.endswith(allowed[1:]))
        for allowed in map(str.lower, hosts)
    )


def name_of(header: str) -> str:
    """Host of a Host header in lower case, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def origin_is_allowed(origin: str, site: str, host: str, origins: Collection[str]) -> bool:
    """Whether a browser's page may call. ``site``: Sec-Fetch-Site; ``host``: the Host header. Programs send
    neither header of a browser. An image or a form has no Origin, but its site."""
    if origin:
        return origin in origins or "*" in origins or origin.partition("://")[2] == host
    return site in ("", "same-origin", "none")
