"""``recsys contracts``: checks the plug-ins of an installed package."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from typing import Annotated

import typer
from typer import Argument

from runtime.cli.common import JsonOption, exit_on, show


def contracts(
    package: Annotated[str, Argument(help="Package with plug-ins.")], json: JsonOption = None
) -> None:
    """Checks the plug-ins of a package. Exit status 0: all contracts are kept; 1: one is broken; 2: the
    package has none."""
    from plugins.plugin_contracts.suite import check_plugin  # imports what answers are made with

    with exit_on(ValueError):
        entries = _offered(package)
    checked = {f"{entry.group} {entry.name}": check_plugin(entry) for entry in entries}
    show(checked, json, _lines)
    raise typer.Exit(int(any(any(reasons.values()) for reasons in checked.values())))


def _offered(package: str) -> list[EntryPoint]:
    """Plug-ins of an installed package. Raises ValueError if there are none."""
    try:
        entries = list(distribution(package).entry_points)
    except (PackageNotFoundError, ValueError):  # ValueError: not the name of a package
        entries = []
    if offered := [entry for entry in entries if entry.group.startswith("recsys.")]:
        return offered
    raise ValueError(f"{package} is no package with plug-ins here: pip install it")


def _lines(checked: dict[str, dict[str, str]]) -> Iterator[str]:
    for plugin, reasons in checked.items():
        for contract, reason in reasons.items():
            yield f"{plugin}, {contract}: {f'BROKEN: {reason}' if reason else 'kept'}"
