"""``recsys quarantine``: users whose events don't count, named by detectors, held by a person or a rule."""

import uuid
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer import Argument, Option

from plugins.quarantine.cohorts import Accounts
from plugins.quarantine.sentinel_loop import SentinelLoop, append_verdicts
from recsys.config.system_config import Config
from recsys.events.control_records import Unlearning
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from recsys.process.clock_file import clock_of
from recsys.process.open_log import open_log
from recsys.process.part_snapshot import quarantined_users
from runtime.cli.common import JsonOption, StateOption, exit_on, show, with_system
from runtime.jobs.user_deletion import Refused, await_unlearned, is_running, unlearn_stopped
from training.lines.control import append_control

_STATE: Final = Path("state")
Users = Annotated[list[str], Argument(metavar="USER...", help="Ids of users.")]
Why = Annotated[str, Option(help="Reason, stored with the verdict.")]
Hours = Annotated[float, Option(help="Hours of events to look at, as far as the log has them.")]
quarantine = typer.Typer(no_args_is_help=True, help="Users whose events don't count.")


def read_sentinel(log: Log, config: Config, hours: float, nats: float = 0.0) -> SentinelLoop:
    """A sentinel that has read all events; judgements are those of the last hours."""
    sentinel = SentinelLoop(log, nats, clock_of(config), int(hours * 3_600_000))
    while sentinel.read():
        pass
    return sentinel


def held_users(log: Log, config: Config, accounts: Accounts) -> list[str]:
    """Users in quarantine: by the counters' snapshot, and by the verdicts on the log, which are newer."""
    held = quarantined_users(config.state, log.id)
    return sorted((held - accounts.judged_users) | set(accounts.quarantined))


def unlearn_held(log: Log, config: Config, offsets: dict[str, int]) -> str:
    """Unlearns held users, on a running or a stopped system; returns the line about it. Raises Refused.
    ``offsets``: of their verdicts, up to which nothing stays of their examples."""
    if is_running(config):
        name = uuid.uuid4().hex[:12]
        append_control(log, Unlearning(id=name, users=offsets, time_ms=clock_of(config)()))
        return await_unlearned(log, name, config)
    with closing(open_log(config)) as second_reader:
        try:
            return unlearn_stopped(log, second_reader, config, feature_set(config), offsets)
        except (ValueError, OSError) as error:  # CantUnlearn, or an unreadable file
            raise Refused(f"the users are held, but can't be unlearned: {error}") from error


@quarantine.command("list")
def list_users(hours: Hours = 24.0, state: StateOption = _STATE, json: JsonOption = None) -> None:
    """Lists users in quarantine, and cohorts that the detectors name."""
    with with_system(state) as (config, log):
        accounts = read_sentinel(log, config, hours).accounts
        held, cohorts = held_users(log, config, accounts), accounts.cohorts()
    rows: list[dict[str, Any]] = [{"state": "held", "users": [user]} for user in held]
    rows += [
        {"state": "named", "users": [*c.users], "items": [*c.items], "pushes": c.pushes,
         "nats": round(c.nats, 1), "marks": [*c.marks]}
        for c in cohorts
    ]  # fmt: skip
    show(rows, json, _lines)


@quarantine.command()
def hold(
    users: Users,
    why: Why = "",
    unlearn: Annotated[
        bool, Option("--unlearn", help="Also replay the model's history without them; waits for it.")
    ] = False,
    state: StateOption = _STATE,
) -> None:
    """Holds users: from now on their events don't count, and what they counted is taken back."""
    with exit_on(), with_system(state) as (config, log):
        offsets = append_verdicts(log, users, True, why or "held by a person", clock_of(config)())
        typer.echo(f"{len(offsets)} users are held")
        if unlearn:
            typer.echo(unlearn_held(log, config, offsets))


@quarantine.command()
def lift(users: Users, why: Why = "", state: StateOption = _STATE) -> None:
    """Ends the quarantine of users: from now on their events count again."""
    with with_system(state) as (config, log):
        why = why or "lifted by a person"
        lifted = append_verdicts(log, users, False, why, clock_of(config)())
    typer.echo(f"{len(lifted)} users count again")


@quarantine.command()
def apply(
    nats: Annotated[float, Option(help="Evidence to hold with; 0: bounds.hold_nats.")] = 0.0,
    hours: Hours = 24.0,
    state: StateOption = _STATE,
) -> None:
    """Applies the rule once: holds the cohorts that the detectors name with enough evidence."""
    with exit_on(), with_system(state) as (config, log):
        least = nats or config.bounds.hold_nats
        if not least:
            raise ValueError("bounds.hold_nats is 0: give --nats, or set it in the configuration")
        for cohort in read_sentinel(log, config, hours, least).hold():
            typer.echo(f"held {' '.join(cohort.users)} ({', '.join(cohort.marks)})")


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = [] if rows else ["no user is in quarantine, and none is named"]
    for row in rows:
        text = f"{row['state']:<6} {' '.join(row['users'])}"
        if row["state"] == "named":
            verb = "push" if row["pushes"] else "sink"
            text += f": {verb} {' '.join(row['items'][:5])}, {row['nats']} nats above chance"
            text += f" ({', '.join(row['marks'])})"
        lines.append(text)
    return lines
