"""The command ``recsys``. A command's module is imported when it runs, so that help stays quick."""

import importlib
import importlib.util
from typing import Any

import typer
from typer.core import TyperGroup

# name → (where it stands, its line in the help). What stands there is a function with typer's annotations,
# or a typer.Typer with commands of its own.
COMMANDS = {
    "doctor": ("recsys.cli.doctor:doctor", "Says what is wrong with this machine, and what to do."),
    "demo": (
        "recsys.cli.demo:demo",
        "Starts everything, with simulated viewers and the feed page.",
    ),
    "up": ("recsys.cli.up:up", "Starts every part and watches it."),
    "down": ("recsys.cli.down:down", "Stops what `up` started."),
    "restart": (
        "recsys.cli.restart:restart",
        "Replaces the replicas, while requests are answered.",
    ),
    "status": ("recsys.cli.status:status", "Says how each part is, and how far behind."),
    "metrics": ("recsys.cli.metrics:metrics", "Tells what Prometheus reads of the parts."),
    "part": ("recsys.cli.part:part", "Runs one part in this process."),
    "viewers": ("recsys.cli.viewers:viewers", "Sends simulated viewers to a running server."),
    "explain": ("recsys.cli.explain:explain", "Makes a past answer again, and says why it was so."),
    "trace": ("recsys.cli.trace:trace", "Tells the life of one swipe, from the log."),
    "shadow": ("recsys.cli.shadow:shadow", "Shows candidates beside live, and how they do."),
    "propose": ("recsys.cli.shadow:propose", "Has a candidate judged on the current traffic."),
    "approve": ("recsys.cli.shadow:approve", "Lets a candidate that waits for it go on."),
    "rollback": ("recsys.cli.shadow:rollback", "Goes back to what was live before."),
    "experiment": (
        "recsys.cli.experiment:experiment",
        "Lists, checks, starts and stops experiments, and reports what they show.",
    ),
    "counterfactual": (
        "recsys.cli.counterfactual:counterfactual",
        "Says what another policy would have earned, from the log.",
    ),
    "audit": ("recsys.cli.audit:audit", "Checks logged features against the events of then."),
    "backfill": (
        "recsys.cli.backfill:backfill",
        "Fills in features that examples were logged without.",
    ),
    "forget": ("recsys.cli.forget:forget", "Erases a user, and unlearns them if asked to."),
    "data": ("recsys.cli.data:data", "Fetches data sets."),
    "replay": ("recsys.cli.replay:replay", "Scores, then learns from a data set in event time."),
    "offline": (
        "recsys.cli.offline:offline",
        "Trains a candidate from the archive or from a data set.",
    ),
    "merge": ("recsys.cli.merge:merge", "Makes a candidate between an offline one and live."),
    "models": ("recsys.cli.models:models", "Lists candidates, shows one, compares two."),
    "accept": (
        "recsys.cli.accept:accept",
        "Says what int8 rows cost, and accepts or refuses them.",
    ),
    "study": ("recsys.cli.study:study", "Measures what freshness is worth."),
    "bench": ("recsys.cli.bench:bench", "Measures speed beside what one would pick instead."),
}


def load(where: str, name: str) -> Any:
    """The command that stands at ``module:attribute``, ready to be invoked."""
    module, _, attribute = where.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False)
        found.command(name)(function)
    command = typer.main.get_command(found)
    command.name = name
    return command


class _Lazy(TyperGroup):
    """Lists the commands from the table above, and puts the real one in place of a listed one that is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(COMMANDS[str(name)][0], str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            from recsys.config.loader import BadSettings

            if not isinstance(error, BadSettings):
                raise
            typer.secho(f"recsys: {error}", fg="red", err=True)
            raise typer.Exit(2) from error


# Local variables stay out of tracebacks: they may hold a token or a URL with a password.
app = typer.Typer(
    cls=_Lazy,
    help="A recommender that learns from every swipe.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _recsys() -> None:
    """With a callback a Typer of one command still is a group."""


def _listed() -> None:
    """The command's place in the help; ``_Lazy`` runs the real one."""


for _name, (_where, _help) in COMMANDS.items():
    if importlib.util.find_spec(_where.partition(":")[0]) is not None:
        app.command(_name, help=_help)(_listed)
