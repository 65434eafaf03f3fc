"""Plug-ins: objects of other packages, found by a group and a name.

A package offers them as entry points, in its ``pyproject.toml``::

    [project.entry-points."recsys.routes"]
    shop = "shop_recsys.routes:routes"

The module that uses a group describes what its objects must be: docs/how-to/plugins.md lists the groups.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

ROUTES: Final = "recsys.routes"
COMMANDS: Final = "recsys.commands"
PARTS: Final = "recsys.parts"
MODELS: Final = "recsys.models"
SOURCES: Final = "recsys.sources"
STAGES: Final = "recsys.stages"
OPERATORS: Final = "recsys.operators"
READERS: Final = "recsys.readers"
DATASETS: Final = "recsys.datasets"
PAGES: Final = "recsys.pages"
Load = Callable[[str, str], Any]  # as ``load_version``


def names(group: str) -> list[str]:
    """Names of the plug-ins that installed packages offer."""
    return sorted(entry_points(group=group).names)


def find(group: str, name: str) -> EntryPoint:
    """Entry point of a name, not imported yet; ``module:attribute`` needs none. Raises ValueError unless
    exactly one package offers the name."""
    if ":" in name:
        return EntryPoint(name, name, group)
    matches = {entry.value: entry for entry in entry_points(group=group).select(name=name)}
    if len(matches) == 1:
        return next(iter(matches.values()))
    if matches:
        raise ValueError(
            f"plug-in {name!r} of the group {group!r} is offered twice, as {' and '.join(sorted(matches))}: "
            "pip uninstall one of the packages, or name the module:attribute"
        )
    raise ValueError(
        f"there is no plug-in {name!r} of the group {group!r}; installed are "
        f"{', '.join(names(group)) or 'none'}: pip install the package that offers it (ours of a "
        "checkout: .venv/bin/pip install --no-deps --no-build-isolation -e .), or name its module:attribute"
    )


def load(group: str, name: str) -> Any:
    """Imports and returns a plug-in. Raises ValueError if it can't be found or imported."""
    entry = find(group, name)
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # its module may do anything
        raise ValueError(
            f"plug-in {name!r} of the group {group!r} can't be imported from {entry.value} "
            f"({type(error).__name__}: {error}): pip install its package again, or what it needs"
        ) from error


def load_version(group: str, call: str) -> Any:
    """Imports and returns the plug-in ``name@version``. Raises ValueError if another version is installed.

    Its attribute ``version`` changes with its results; a ``module:attribute`` may lack it."""
    name, _, version = call.partition("@")
    plugin = load(group, name)
    has = str(getattr(plugin, "version", version if ":" in name else ""))
    if not version or has != version or not callable(plugin):
        remedy = f"declare {name}@{has}" if has else "its package must give it a version"
        raise ValueError(
            f"plug-in {call!r} of the group {group!r}: its version is {has!r}: {remedy} (another version is "
            "another model, feature set or policy), or pip install the declared version"
        )
    return plugin
