"""Hosts and origins that reach the API, and which modes need a key."""

from dataclasses import replace

import pytest

from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config, ServeConfig
from serving.access.hosts import host_is_allowed, is_loopback, is_open, origin_is_allowed


def config(mode: str = "auto", host: str = "127.0.0.1", hosts: tuple[str, ...] = ()) -> Config:
    return replace(Config(), serve=ServeConfig(host=host), access=AccessConfig(mode=mode, hosts=hosts))


@pytest.mark.parametrize(
    ("mode", "host", "opened"),
    [("auto", "127.0.0.1", True), ("auto", "::1", True), ("auto", "localhost", True),
     ("auto", "::ffff:127.0.0.1", True), ("auto", "0.0.0.0", False), ("auto", "10.0.0.1", False),
     ("auto", "feed.internal", False), ("open", "0.0.0.0", True), ("keys", "127.0.0.1", False)],
)  # fmt: skip
def test_calls_without_a_key_are_for_loopback(mode: str, host: str, opened: bool) -> None:
    assert is_open(config(mode, host)) is opened
    assert is_loopback("fe80::1%eth0") is False


@pytest.mark.parametrize(
    ("header", "allowed"),
    [("127.0.0.1:8000", True), ("localhost", True), ("LOCALHOST:8000", True), ("[::1]:8000", True),
     ("10.0.0.7", True), ("", True), ("feed.example.org:443", True), ("a.apps.example.org", True),
     ("apps.example.org", False), ("evil.example", False), ("127.0.0.1.evil.example", False),
     ("localhost.evil.example", False), ("[evil.example]", False), ("evil.example:8000", False)],
)  # fmt: skip
def test_a_name_that_a_page_may_have_pointed_here_is_refused(header: str, allowed: bool) -> None:
    named = config(hosts=("feed.example.org", "*.apps.example.org"))
    assert host_is_allowed(header, named) is allowed


def test_where_every_call_needs_a_key_names_need_not_be_listed() -> None:
    assert host_is_allowed("feed.example.org", config("keys"))
    assert not host_is_allowed("feed.example.org", config("keys", hosts=("other.example.org",)))
    assert host_is_allowed("feed.example.org", config("open", hosts=("*",)))


@pytest.mark.parametrize(
    ("origin", "site", "allowed"),
    [("", "", True), ("", "none", True), ("", "same-origin", True), ("", "same-site", False),
     ("", "cross-site", False), ("http://localhost:8000", "same-origin", True),
     ("https://localhost:8000", "", True), ("http://localhost:9000", "same-site", False),
     ("null", "cross-site", False), ("https://app.example.org", "cross-site", True),
     ("https://app.example.org.evil.example", "", False), ("http://app.example.org", "", False)],
)  # fmt: skip
def test_pages_of_other_origins_are_refused(origin: str, site: str, allowed: bool) -> None:
    origins = ("https://app.example.org",)
    assert origin_is_allowed(origin, site, "localhost:8000", origins) is allowed
