"""``recsys forget USER``: asks a running or a stopped system to forget a user, and unlearns them if asked to.

What goes when stands in docs/how-to/operations.md. Running: the request goes through the API. Stopped: it is written
to the log, and what runs next acts on it.
"""

from pathlib import Path
from typing import Annotated

import typer

from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.log.protocol import Log, LogLost, LogUnavailable
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file as runs
from runtime.supervision.processes import alive


class Refused(ValueError):
    """Forgetting can't be done so; says how it can."""


def forget(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    state: Annotated[Path, typer.Option(help="The state folder.")] = Path("state"),
    unlearn: Annotated[
        bool,
        typer.Option(
            "--unlearn",
            help="Replay what was learned without the user's examples, too: on a stopped system.",
        ),
    ] = False,
) -> None:
    """Erases a user: session and rows at once, log and archive when they are next compacted."""
    from recsys.client import ApiError

    try:
        for line in forget_user(user, state, unlearn):
            typer.echo(line)
    except (Refused, FileNotFoundError, ApiError, LogLost, LogUnavailable) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def forget_user(user: str, state: Path, unlearn: bool) -> list[str]:
    """Does it, and says what was done and what is still to come. Raises Refused, FileNotFoundError where
    nothing was ever started, and what the API, the log or unlearning raises."""
    config, plan = plans.read(state)
    running = runs.read(state)
    if running is not None and any(map(alive, [running.supervisor, *running.processes])):
        if unlearn:
            raise Refused(
                f"--unlearn replays the model's history, and the system in {state.resolve()} runs: stop it "
                f"with `recsys down --state {state}`, unlearn, and start it again"
            )
        return _ask(user, state, config)
    if "broker" in plan.embedded:
        raise Refused(
            f"the log of {state.resolve()} was in the memory of a broker that ended with the system: nothing "
            "of it is left but the archive and the model. Remove the folder to have these gone too"
        )
    with runs.held(state):  # nobody starts it meanwhile
        return _on_disk(user, config, unlearn)


def _ask(user: str, state: Path, config: Config) -> list[str]:
    from recsys.client import Client

    key = (state / "run" / "admin.key").read_text().strip()
    with Client(plans.feed_url(config), admin_key=key) as client:
        client.delete_user(user)
    return [
        f"{user} is being forgotten: the session within a second, their rows with the next steps",
        _later(config),
    ]


def _on_disk(user: str, config: Config, unlearn: bool) -> list[str]:
    from recsys.features.feature_set_file import feature_set
    from recsys.process.open_log import open_log
    from training.deletion.unlearn import unlearn as unlearn_user
    from training.steps.drain import finish

    log, again = open_log(config), open_log(config)
    try:
        before = ask_on_log(log, user, wall_ms())
        said = [
            f"{user} will be forgotten: session and rows when the system runs again",
            _later(config),
        ]
        if not unlearn:
            return said
        features = feature_set(config)
        try:
            finish(log, config, features, again)
            done = unlearn_user(log, config, features, user, before, wall_ms())
        except (ValueError, OSError) as error:  # CantUnlearn, or a file that is no good
            raise Refused(f"{user} will be forgotten, but can't be unlearned: {error}") from error
    finally:
        again.close()
        log.close()
    if done is None:
        return [*said, "no step of the live model has learned from them: it stays as it is"]
    said.append(
        f"unlearned {done.examples} examples of theirs that the log still had, and what may have been theirs "
        f"before: steps {done.since + 1} to {done.step} were replayed and are "
        f"epoch {done.epoch} now, SHA-256 {done.digest}"
    )
    if done.other_config:
        said.append(
            f"{done.other_config} of these steps had been learned with another configuration: they were "
            "learned with that of today, as all are from now on"
        )
    return said


def ask_on_log(log: Log, user: str, time_ms: int) -> int:
    """Appends what the API would: a tombstone among the user's events, and an erasure. Returns the offset of
    the tombstone."""
    from recsys.events.control_records import Erasure
    from recsys.events.event_types import User, encode
    from recsys.events.hashing import partition_of
    from recsys.events.records import CONTROL, EVENTS, pack
    from recsys.log.protocol import Append

    partition = partition_of(user, log.partitions(EVENTS))
    tombstone = User(time_ms=time_ms, user_id=user, removed=True)
    (offset,) = log.append(EVENTS, [Append(partition, user.encode(), encode(tombstone))])
    erasure = Erasure(user_id=user, time_ms=time_ms, offset=offset)
    log.append(CONTROL, [Append(0, b"", pack(erasure))])
    return offset


def _later(config: Config) -> str:
    if config.log.url == "sqlite":
        return (
            "log and archive: once no part has to read the records a second time, about an hour "
            "(`recsys status --json` counts who waits as archive's to_forget)"
        )
    return (
        "archive: when it is next compacted; the records on Kafka stay until its retention drops them "
        f"(log.retention_hours, {config.log.retention_hours})"
    )
