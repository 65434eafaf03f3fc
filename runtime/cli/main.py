"""The command ``recsys``. A command's module is imported when it runs, so that help stays quick."""

import importlib
import importlib.util
from typing import Any

import typer
from typer.core import TyperGroup

# name → (where it stands, its line in the help). What stands there is a function with typer's annotations,
# or a typer.Typer with commands of its own.
COMMANDS = {
    "doctor": (
        "runtime.cli.doctor:doctor",
        "Says what is wrong with this machine, and what to do.",
    ),
    "demo": (
        "runtime.demo.demo:demo",
        "Starts everything, with simulated viewers and the feed page.",
    ),
    "up": ("runtime.cli.up:up", "Starts every part and watches it."),
    "down": ("runtime.cli.down:down", "Stops what `up` started."),
    "restart": (
        "runtime.parts.restart:restart",
        "Replaces the replicas, while requests are answered.",
    ),
    "status": ("runtime.cli.status:status", "Says how each part is, and how far behind."),
    "metrics": ("runtime.parts.metrics:metrics", "Tells what Prometheus reads of the parts."),
    "part": ("runtime.cli.part:part", "Runs one part in this process."),
    "viewers": ("runtime.parts.viewers:viewers", "Sends simulated viewers to a running server."),
    "explain": (
        "runtime.cli.explain:explain",
        "Makes a past answer again, and says why it was so.",
    ),
    "trace": ("runtime.cli.trace:trace", "Tells the life of one swipe, from the log."),
    "shadow": ("runtime.cli.candidates:shadow", "Shows candidates beside live, and how they do."),
    "propose": ("runtime.cli.candidates:propose", "Has a candidate judged on the current traffic."),
    "approve": ("runtime.cli.candidates:approve", "Lets a candidate that waits for it go on."),
    "rollback": ("runtime.cli.candidates:rollback", "Goes back to what was live before."),
    "experiment": (
        "runtime.cli.experiment:experiment",
        "Lists, checks, starts and stops experiments, and reports what they show.",
    ),
    "counterfactual": (
        "runtime.cli.counterfactual:counterfactual",
        "Says what another policy would have earned, from the log.",
    ),
    "audit": ("runtime.cli.audit:audit", "Checks logged features against the events of then."),
    "backfill": (
        "runtime.cli.backfill:backfill",
        "Fills in features that examples were logged without.",
    ),
    "forget": ("runtime.cli.forget:forget", "Erases a user, and unlearns them if asked to."),
    "data": ("runtime.cli.data:data", "Fetches data sets."),
    "replay": ("runtime.cli.replay:replay", "Scores, then learns from a data set in event time."),
    "offline": (
        "runtime.cli.offline:offline",
        "Trains a candidate from the archive or from a data set.",
    ),
    "merge": ("runtime.cli.merge:merge", "Makes a candidate between an offline one and live."),
    "models": ("runtime.cli.models:models", "Lists candidates, shows one, compares two."),
    "accept": (
        "runtime.cli.accept:accept",
        "Says what int8 rows cost, and accepts or refuses them.",
    ),
    "study": ("benchmarks.study:study", "Measures what freshness is worth."),
    "bench": ("benchmarks.bench:bench", "Measures speed beside what one would pick instead."),
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
