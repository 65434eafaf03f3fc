"""The suite of ``recsys check PACKAGE``: runs the contracts of a group on each plug-in of a package."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Final

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
        status = (
            f"BROKEN {self.contract}: {self.reason}" if self.reason else f"kept   {self.contract}"
        )
        return f"{self.group} {self.plugin}  {status}"


def check_plugin(entry: EntryPoint) -> Iterator[Outcome]:
    """Checks a plug-in against all contracts of its group."""
    try:
        plugin = plugins.load(entry.group, entry.name)
    except ValueError as error:
        yield Outcome(entry.group, entry.name, "import", str(error))
        return
    yield Outcome(entry.group, entry.name, "import")
    for name, contract in CONTRACTS.get(entry.group, {}).items():
        try:
            contract(plugin)
        except Exception as error:  # a plug-in may raise anything
            reason = f"{type(error).__name__}: {error}"
            yield Outcome(entry.group, entry.name, name, reason)
        else:
            yield Outcome(entry.group, entry.name, name)
