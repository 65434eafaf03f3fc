"""``recsys keys``: API keys, secrets of impression tokens, and the audit trail."""

import json as json_text
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from typer import Argument, Option

from recsys.clock import machine_ms
from recsys.events.control_records import ApiKey
from runtime.cli.common import JsonOption, StateOption, exit_on, show, with_system
from runtime.jobs import key_requests
from runtime.jobs.time_option import parse_time
from runtime.reports.tables import plain_table
from serving.access.audit import read_trail

_STATE: Final = Path("state")
keys = typer.Typer(no_args_is_help=True, help="API keys, secrets of tokens, audit trail.")


@keys.command()
def add(
    name: Annotated[str, Argument(help="Name of the key's owner, for you.")],
    scope: Annotated[
        list[str], Option(help="recommend, events, catalogue, users, control, read or attribute; repeatable.")
    ] = ["recommend", "events"],  # noqa: B006
    rate: Annotated[float, Option(help="Calls a second; 0: access.key_rate.")] = 0.0,
    daily: Annotated[int, Option(help="Calls a day (UTC); 0: no limit.")] = 0,
    days: Annotated[float, Option(help="Days until it expires; 0: never.")] = 0.0,
    user_key: Annotated[
        list[Path], Option(help="PEM file of a public key that signs user tokens; repeatable.")
    ] = [],  # noqa: B006
    state: StateOption = _STATE,
) -> None:
    """Makes a key and prints it once; only a hash of it is stored. It is valid within a second."""
    with with_system(state) as (_, log):
        pems = [file.read_text() for file in user_key]
        text = key_requests.add_key(
            log, name, scope, machine_ms(), rate=rate, daily=daily, days=days, user_keys=pems
        )
    typer.echo(text)


@keys.command("list")
def list_keys(state: StateOption = _STATE, json: JsonOption = None) -> None:
    """Lists all keys, without their secrets."""
    with with_system(state) as (_, log):
        all_keys = key_requests.read_keys(log)
    show([_row(key) for key in all_keys], json, _table)


@keys.command()
def revoke(key: Annotated[str, Argument(help="Id or name of the key.")], state: StateOption = _STATE) -> None:
    """Revokes a key, and with it the user tokens that its public keys verify, within a second."""
    with with_system(state) as (_, log):
        for revoked in key_requests.revoke_key(log, key, machine_ms()):
            typer.echo(f"{revoked.id} ({revoked.name}) is revoked")


@keys.command("rotate-tokens")
def rotate_tokens(state: StateOption = _STATE) -> None:
    """Signs impression tokens with a new secret from now on; those of the one before it stay valid.

    Twice within the lifetime of tokens makes the older ones worthless.
    """
    with exit_on():
        key_requests.rotate_token_keys(state)
    typer.echo("impression tokens have a new secret")


@keys.command()
def audit(
    since: Annotated[str | None, Option(help="First time: epoch milliseconds, or ISO UTC.")] = None,
    state: StateOption = _STATE,
    json: JsonOption = None,
) -> None:
    """Prints calls that changed items and users, inspected them, or were refused, by all replicas."""
    lines = list(read_trail(state / "run", parse_time(since, 0.0) or 0))
    show(lines, json, lambda lines: map(_audit_line, lines))


def _row(key: ApiKey) -> dict[str, Any]:
    state = "valid"
    if key.revoked:
        state = "revoked"
    elif 0 < key.until_ms <= machine_ms():
        state = "expired"
    return {
        "id": key.id, "name": key.name, "scopes": key.scopes, "state": state, "rate": key.rate,
        "daily": key.daily, "user_keys": len(key.user_keys), "until_ms": key.until_ms,
        "time_ms": key.time_ms,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> Iterable[Table]:
    columns = ("id", "name", "scopes", "state", "until")
    yield plain_table(
        columns, ((r["id"], r["name"], " ".join(r["scopes"]), r["state"], _time(r["until_ms"])) for r in rows)
    )


def _time(time_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_ms / 1000)) if time_ms else ""


def _audit_line(line: dict[str, Any]) -> str:
    fields = {name: value for name, value in line.items() if name != "time_ms" and value != ""}
    return f"{_time(line['time_ms'])}  " + " ".join(
        f"{name}={value if isinstance(value, int) else json_text.dumps(value)}"
        for name, value in fields.items()
    )
