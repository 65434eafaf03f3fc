"""Plug-ins are found by group and name; the errors name the remedy."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from recsys import plugins
from recsys.plugins import find, load

GROUP = "recsys.routes"


def offer(patched: pytest.MonkeyPatch, **values: str) -> None:
    entries = [EntryPoint(name.rstrip("_"), value, GROUP) for name, value in values.items()]
    patched.setattr(plugins, "entry_points", lambda group: EntryPoints(entries).select(group=group))


def test_a_plug_in_is_found_by_name_and_a_module_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, join="os.path:join", path="os.path")
    assert load(GROUP, "join") is load(GROUP, "os.path:join") is __import__("os").path.join
    assert load(GROUP, "path") is __import__("os").path
    with pytest.raises(ValueError, match="no plug-in 'join' of the group 'recsys.models'"):
        find("recsys.models", "join")


def test_errors_name_group_name_what_is_installed_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, shop="no_such_module:f", news="os:no_such_name", twice="os:a", twice_="os:b")
    message = (
        "'shpo' of the group 'recsys.routes'; installed are news, shop, twice: pip install the"
    )
    with pytest.raises(ValueError, match=message):
        load(GROUP, "shpo")
    find(GROUP, "shop")  # not imported yet
    with pytest.raises(ValueError, match="'shop' .* from no_such_module:f: No module .*; pip inst"):
        load(GROUP, "shop")
    with pytest.raises(ValueError, match="'news' .* from os:no_such_name: .*; pip install"):
        load(GROUP, "news")
    with pytest.raises(ValueError, match="is offered twice, as os:a and os:b: pip uninstall"):
        find(GROUP, "twice")
    offer(monkeypatch)
    with pytest.raises(ValueError, match="installed are none: pip install"):
        find(GROUP, "shop")


def test_a_package_that_offers_the_same_twice_is_one_plug_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, join="os.path:join", join_="os.path:join")  # a checkout installed twice
    assert find(GROUP, "join").value == "os.path:join"


def test_our_own_are_installed() -> None:
    assert find(GROUP, "gorse_and_metarank").value.startswith("examples.gorse_and_metarank.")
