"""Writes docs/reference/cli.md from the argument parser: every command with its options."""

import inspect
from collections.abc import Iterator
from typing import Any

MARK = "<!-- commands -->"


def commands() -> Iterator[tuple[str, Any]]:
    """Yields (name, command); commands of a group follow it."""
    from runtime.cli.main import COMMANDS, load

    for name, (where, _) in COMMANDS.items():
        command = load(where, name)
        yield name, command
        for inner in getattr(command, "commands", {}).values():
            yield f"{name} {inner.name}", inner


def markdown() -> str:
    """All commands as sections, each with a table of its options."""
    return "\n\n".join(_section(name, command) for name, command in commands())


def _section(name: str, command: Any) -> str:
    context = command.make_context(f"recsys {name}", [], resilient_parsing=True)
    usage = " ".join(["recsys", name, *command.collect_usage_pieces(context)])
    records = (p.get_help_record(context) for p in command.params)
    rows = [f"| {_code(option)} | {_cell(text)} |" for option, text in filter(None, records)]
    table = "\n".join(["| | |", "|---|---|", *rows]) if rows else ""
    parts = [f"## recsys {name}", inspect.cleandoc(command.help or ""), f"```\n{usage}\n```", table]
    return "\n\n".join(part for part in parts if part)


def _code(text: str) -> str:
    return f"`{_cell(text).replace('&lt;', '<')}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def setup(app):
    def add(app, docname, source):
        if MARK in source[0] and docname == "docs/reference/cli":
            source[0] = source[0].replace(MARK, markdown())

    app.connect("source-read", add)
    return {"parallel_read_safe": True}
