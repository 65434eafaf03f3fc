"""Plug-ins are found by group and name; the errors name the remedy."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from recsys import plugins
from recsys.plugins import find, load, load_version

GROUP = "recsys.routes"


def offer(patched: pytest.MonkeyPatch, **values: str) -> None:
    entries = [EntryPoint(name.rstrip("_"), value, GROUP) for name, value in values.items()]
    patched.setattr(plugins, "entry_points", lambda group: EntryPoints(entries).select(group=group))


def test_a_plug_in_is_found_by_name_and_a_module_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, join="os.path:join", path="os.path")
    assert load(GROUP, "join") is load(GROUP, "os.path:join") is __import__("os").path.join
    assert load(GROUP, "path") is __import__("os").path
    with pytest.raises(ValueError, match="no plug-in 'join' of the group 'recsys.models'"):
        find("recsys.models", "join")


def test_errors_name_group_name_what_is_installed_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, shop="no_such_module:f", news="os:no_such_name", twice="os:a", twice_="os:b")
    message = "'shpo' of the group 'recsys.routes'; installed are news, shop, twice: pip install the"
    with pytest.raises(ValueError, match=message):
        load(GROUP, "shpo")
    find(GROUP, "shop")  # not imported yet
    with pytest.raises(ValueError, match="'shop' .* from no_such_module:f .ModuleNotFoundError: .*pip"):
        load(GROUP, "shop")
    with pytest.raises(ValueError, match="'news' .* from os:no_such_name .AttributeError: .*pip inst"):
        load(GROUP, "news")
    with pytest.raises(ValueError, match="SystemExit: 3.: pip install"):
        load(GROUP, "tests.support.ending_plugin:f")
    with pytest.raises(ValueError, match="is offered twice, as os:a and os:b: pip uninstall"):
        find(GROUP, "twice")
    offer(monkeypatch)
    with pytest.raises(ValueError, match="installed are none: pip install"):
        find(GROUP, "shop")


def test_a_package_that_offers_the_same_twice_is_one_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, join="os.path:join", join_="os.path:join")  # a checkout installed twice
    assert find(GROUP, "join").value == "os.path:join"


def test_our_own_are_installed() -> None:
    assert find(GROUP, "gorse_and_metarank").value.startswith("plugins.gorse_and_metarank.")


def run() -> None: ...


def test_a_version_is_the_one_that_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, shop=f"{__name__}:run", path="os:path")
    module = f"{__name__}:run"
    assert load_version(GROUP, f"{module}@7") is run  # a module:attribute may have no version
    with pytest.raises(ValueError, match="'shop@1' .*: its version is ''"):
        load_version(GROUP, "shop@1")
    monkeypatch.setattr(run, "version", 2, raising=False)
    assert load_version(GROUP, "shop@2") is load_version(GROUP, f"{module}@2") is run
    for call in ("shop@1", "shop", f"{module}@3"):
        with pytest.raises(ValueError, match="its version is '2': declare .*@2 .* or pip install"):
            load_version(GROUP, call)
    monkeypatch.setattr("os.path.version", "1", raising=False)
    with pytest.raises(ValueError, match="'path@1'"):  # a module isn't a function
        load_version(GROUP, "path@1")
