"""The suite of ``recsys check PACKAGE``: runs the contracts of a group on each plug-in of a package."""

from importlib.metadata import EntryPoint
from typing import Any, Final

import msgspec

from recsys import plugins
from runtime.contracts import answering, data, models
from runtime.contracts.determinism import Contract

# Contracts by group and name. A plug-in of any other group must only be importable.
CONTRACTS: Final[dict[str, dict[str, Contract]]] = {
    plugins.MODELS: models.CONTRACTS,
    plugins.OPERATORS: data.OPERATORS,
    plugins.READERS: data.READERS,
    plugins.SOURCES: answering.SOURCES,
    plugins.STAGES: answering.STAGES,
}


class Outcome(msgspec.Struct):
    """A contract checked on a plug-in. ``reason``: why it is broken; empty if it is kept."""

    group: str
    plugin: str
    contract: str
    reason: str = ""

    def __str__(self) -> str:
        status = f"BROKEN: {self.reason}" if self.reason else "kept"
        return f"{self.group} {self.plugin}, {self.contract}: {status}"


def check_plugin(entry: EntryPoint) -> list[Outcome]:
    """Outcomes of all contracts of the plug-in's group."""
    try:
        plugin = plugins.load(entry.group, entry.name)
    except ValueError as error:
        return [Outcome(entry.group, entry.name, "import", str(error))]
    contracts = CONTRACTS.get(entry.group, {"import": lambda _: None})
    return [
        Outcome(entry.group, entry.name, name, _fault(contract, plugin))
        for name, contract in contracts.items()
    ]


def _fault(contract: Contract, plugin: Any) -> str:
    try:
        contract(plugin)
    except Exception as error:  # a plug-in may raise anything
        return f"{type(error).__name__}: {error}"
    return ""
