"""The suite of ``recsys contracts PACKAGE``: runs the contracts of a group on each plug-in of a package."""

from importlib.metadata import EntryPoint
from typing import Final

from plugins.plugin_contracts import answering, data, models
from plugins.plugin_contracts.determinism import Contract
from recsys import plugins

# Contracts by group and name. A plug-in of any other group must only be importable.
CONTRACTS: Final[dict[str, dict[str, Contract]]] = {
    plugins.MODELS: models.CONTRACTS,
    plugins.OPERATORS: data.OPERATORS,
    plugins.READERS: data.READERS,
    plugins.SOURCES: answering.SOURCES,
    plugins.STAGES: answering.STAGES,
}


def check_plugin(entry: EntryPoint) -> dict[str, str]:
    """Contracts of the plug-in's group with the reason why it breaks each; empty if it keeps it."""
    try:
        plugin = plugins.load(entry.group, entry.name)
    except ValueError as error:
        return {"import": str(error)}
    reasons = {"import": ""}
    for name, contract in CONTRACTS.get(entry.group, {}).items():
        try:
            contract(plugin)
            reasons[name] = ""
        except Exception as error:  # a plug-in may raise anything
            reasons[name] = f"{type(error).__name__}: {error}"
    return reasons
