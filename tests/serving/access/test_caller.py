"""Addresses and sources of callers."""

import pytest

from serving.access.caller import address_of, source_of

PROXIES = ("10.0.0.9", "192.168.0.0/24", "fd00::/8")
HAPROXY = "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [("1.2.3.4", [b"6.6.6.6"], "1.2.3.4"), (HAPROXY, [], "127.0.0.1"),
     (HAPROXY, [b"1.2.3.4"], "1.2.3.4"), (HAPROXY, [b"6.6.6.6, 1.2.3.4"], "1.2.3.4"),
     (HAPROXY, [b"6.6.6.6", b"1.2.3.4, 10.0.0.9"], "1.2.3.4"),
     (HAPROXY, [b"1.2.3.4, 192.168.0.7"], "1.2.3.4"), ("fd00::1", [b"1.2.3.4"], "1.2.3.4"),
     ("192.168.1.7", [b"1.2.3.4"], "192.168.1.7"), ("::ffff:192.168.1.7", [], "192.168.1.7"),
     (HAPROXY, [b"6.6.6.6, 1.2.3.4:5678, ::ffff:10.0.0.9"], "1.2.3.4"),
     (HAPROXY, [b"[2001:DB8::1]:5678, [fd00::1]:90"], "2001:db8::1"), ("a name", [b"1.2.3.4"], "a name"),
     (HAPROXY, [b"10.0.0.9"], "127.0.0.1"), (HAPROXY, [b" , "], "127.0.0.1")],
)  # fmt: skip
def test_only_what_a_listed_proxy_appended_is_believed(
    peer: str, forwarded: list[bytes], address: str
) -> None:
    assert address_of(peer, forwarded, PROXIES, at_door=peer == HAPROXY) == address


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_a_program_of_this_machine_is_believed_only_where_it_is_listed(peer: str) -> None:
    assert address_of(peer, [b"1.2.3.4"], PROXIES) == peer.removeprefix("::ffff:")
    assert address_of(peer, [b"1.2.3.4"], ("127.0.0.0/8", "::1")) == "1.2.3.4"


def test_a_source_is_a_network_or_a_key_and_can_not_be_turned_back() -> None:
    def source(address: str, key: str = "", secret: bytes = b"s") -> int:
        return source_of(address, key, secret)

    assert source("1.2.3.4") == source("1.2.3.250") == source("::ffff:1.2.3.9")
    assert source("1.2.3.4") != source("1.2.4.4")
    assert source("2001:db8:1:2::1") == source("2001:db8:1:ffff::9") != source("2001:db8:2::1")
    assert source("1.2.3.4", "k") == source("9.9.9.9", "k") != source("9.9.9.9", "l")
    assert source("1.2.3.4") != source("1.2.3.4", secret=b"t")
    assert 0 <= source("a name") < 2**32
