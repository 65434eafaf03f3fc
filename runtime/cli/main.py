"""The ``recsys`` command. Each command's module is imported when it runs, so that help stays fast."""

import importlib
import importlib.util
from importlib.metadata import EntryPoint, entry_points, version
from keyword import iskeyword
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from recsys import plugins

_HELP = {
    "init": "Guesses the definition of an app from its files.",
    "import": "Writes an app's files to a state folder's log, and trains from them.",
    "app": "Checks the definition of an app; changes that of a running system.",
    "doctor": "Checks this machine and names a remedy for each problem.",
    "check": "Checks all files of a state folder (--repair repairs them).",
    "backup": "Backs up a state folder while its system runs.",
    "restore": "Restores a backup into a new state folder.",
    "serve": "Runs the whole system in this process: the API, the feed page, the control room.",
    "up": "Starts and supervises all parts of the system.",
    "down": "Stops the system that `up` started.",
    "restart": "Replaces the serving replicas without downtime.",
    "status": "Shows the state and the lag of each part.",
    "metrics": "Prints or serves the parts' Prometheus metrics.",
    "part": "Runs one part of the system in this process.",
    "node": "Starts a Ray node of a cluster, with this system's token and settings.",
    "keys": "Makes, lists and revokes API keys; shows the audit trail.",
    "shadow": "Shows how candidates do compared with the live model.",
    "propose": "Proposes a candidate for evaluation on live traffic.",
    "merge": "Merges an offline candidate with the live model.",
    "approve": "Approves a candidate for promotion.",
    "rollback": "Rolls back a canary or the newest promotion.",
    "rewind": "Returns the live model to a time, and learns again without what did harm.",
    "experiment": "Lists, checks, starts, stops and reports experiments.",
    "forget": "Deletes a user; --unlearn also retrains without them.",
    "rehearse": "Runs a whole system on the later rows of an app's files, over HTTP.",
    "replay": "Replays a data set in event time: scores each example, then learns from it.",
    "offline": "Trains a candidate from the archive or a data set.",
    "study": "Measures the value of freshness and other design choices.",
    "bench": "Benchmarks speed against common alternatives.",
}
_HELP_OF_PLUGINS = {  # those of this distribution
    "audit": "Compares logged features with features recomputed from events.",
    "backfill": "Adds missing features to archived examples.",
    "contracts": "Checks the plug-ins of a package.",
    "counterfactual": "Estimates what another policy would have earned, from the log.",
    "data": "Downloads data sets.",
    "demo": "Starts the whole system with simulated viewers and the feed page.",
    "explain": "Recomputes a past answer and explains it.",
    "models": "Lists, shows and compares candidates.",
    "quarantine": "Names users who manipulate items; holds and lifts them.",
    "trace": "Shows the timeline of one request, read from the log.",
    "viewers": "Sends simulated viewers to a running server.",
}
# Modules of commands that aren't in ``runtime.cli.NAME``.
_ELSEWHERE = {
    **{name: f"runtime.cli.data.{name}" for name in ("rehearse", "replay", "offline")},
    "init": "runtime.cli.data.import_files",
    "import": "runtime.cli.data.import_files",
    "study": "benchmarks.study",
    "bench": "benchmarks.bench",
    **dict.fromkeys(("status", "metrics", "restart", "down"), "runtime.cli.system"),
    **dict.fromkeys(("check", "backup", "restore"), "runtime.cli.state_files"),
    **dict.fromkeys(("shadow", "propose", "merge", "approve", "rollback"), "runtime.cli.candidates"),
}
# name → (module:attribute, help). The attribute is a function with typer annotations, or a typer.Typer with
# commands of its own; `import` is a keyword, so its function is `import_`.
COMMANDS = {
    name: (f"{_ELSEWHERE.get(name, f'runtime.cli.{name}')}:{name}{'_' * iskeyword(name)}", help)
    for name, help in _HELP.items()
}
_PLUGINS = entry_points(group=plugins.COMMANDS)  # read once: it looks at every installed package
for _entry in _PLUGINS:
    if "." not in _entry.name:  # else ``load`` adds it to one of our groups
        _text = _HELP_OF_PLUGINS.get(_entry.name, f"Command of the plug-in {_entry.module}.")
        COMMANDS.setdefault(_entry.name, (_entry.value, _text))


def load(where: str, name: str) -> Any:
    """Imports the command at ``module:attribute``, ready to be invoked as ``name``. A group gets the commands
    that plug-ins add to it."""
    module, _, attribute = where.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False)
        target.command(name)(function)
    command: Any = typer.main.get_command(target)
    command.name = name
    for entry in _PLUGINS:
        group, _, inner = entry.name.partition(".")
        if inner and group == name:
            _add(command, inner, entry)
    return command


def _add(group: Any, name: str, entry: EntryPoint) -> None:
    """Adds a plug-in's command to a group, if it can be imported and no other command has its name."""
    if name in getattr(group, "commands", (name,)):
        reason = f"{group.name} {name} exists, or {group.name} is no group"
    else:
        try:
            group.add_command(load(entry.value, name))
            return
        except ImportError as error:
            reason = str(error)
    typer.secho(f"recsys: plug-in {entry.name} ({entry.value}) is left out: {reason}", err=True)


class _LazyGroup(TyperGroup):
    """Lists the commands of ``COMMANDS``; imports the real command when it is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(COMMANDS[str(name)][0], str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            from recsys.config.loader import ConfigError

            if not isinstance(error, ConfigError):
                raise
            typer.secho(f"recsys: {error}", fg="red", err=True)
            raise typer.Exit(2) from error


# Tracebacks leave out local variables, which may hold a token or a URL with a password.
app = typer.Typer(
    cls=_LazyGroup, help="A recommender that learns continually, from every swipe.", no_args_is_help=True,
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"recsys {version('recsys-swipe')}")
        raise typer.Exit


@app.callback()
def _recsys(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version, and end."),
    ] = False,
) -> None:
    """Makes the app a group; typer would otherwise run a single command directly."""


def _placeholder() -> None:
    """Holds a command's place in the help; ``_LazyGroup`` runs the real command."""


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it, which find_spec imports
        return False


for _name, (_where, _help) in COMMANDS.items():
    if _is_installed(_where.partition(":")[0]):
        app.command(_name, help=_help)(_placeholder)
