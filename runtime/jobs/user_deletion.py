"""Deletes users from a running or stopped system, and unlearns their examples on request.

See docs/how-to/operations.md for when each kind of data is deleted. A running system is asked over the API,
to unlearn over the log; for a stopped one the request is written to the log, and takes effect at the next
start.
"""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from experiments.promotion.unlearning_requests import DONE, REFUSED
from recsys.client import Client
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Erasure, Unlearning
from recsys.events.event_types import User
from recsys.events.records import CONTROL, EVENTS, record_of
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from recsys.process.clock_file import clock_of
from recsys.process.open_log import open_log
from runtime.supervision import launch_plan, run_file
from training.deletion.unlearn import unlearn as unlearn_users
from training.lines.control import ControlReader, append_control
from training.steps.drain import drain

_POLL_S: Final = 0.2
_UNCHANGED: Final = "no step of the live model has learned from them: it stays unchanged"


class Refused(ValueError):
    """The users can't be deleted this way; the message names the remedy."""


def forget_users(users: Sequence[str], state: Path, unlearn: bool) -> list[str]:
    """Deletes users; returns lines on what was done and what is pending.

    Raises Refused, FileNotFoundError where nothing was ever started, and the errors of API, log and
    unlearning.
    """
    users = list(dict.fromkeys(users))
    config, plan = launch_plan.read(state)
    if is_running(config):
        when = "the session within a second, the rows with the next steps"
        lines = [f"{_named(users)} being deleted: {when}", _pending(config)]
        if unlearn:
            return [*lines, _unlearn_live(users, config)]
        url, headers = launch_plan.local_api_url(config), launch_plan.admin_headers(state)
        with Client(url, headers=headers) as client:
            for user in users:
                client.delete_user(user)
        return lines
    if "broker" in plan.embedded:
        raise Refused(
            f"the log of {state.resolve()} was in the memory of a broker that ended with the system: only "
            "the archive and the model are left. Remove the folder to delete these too"
        )
    with run_file.lock(state):  # prevents a start meanwhile
        return _delete_on_log(users, config, unlearn)


def _named(users: Sequence[str]) -> str:
    return f"{users[0]} is" if len(users) == 1 else f"{len(users)} users are"


def _unlearn_live(users: Sequence[str], config: Config) -> str:
    """Asks a running system, and waits until its live line is without the users."""
    with closing(open_log(config)) as log:
        name = uuid.uuid4().hex[:12]
        request_deletion(log, users, clock_of(config)(), name)
        return await_unlearned(log, name, config)


def is_running(config: Config) -> bool:
    """Whether a process of the system runs."""
    running = run_file.read(Path(config.state))
    return running is not None and running.any_alive()


def await_unlearned(log: Log, name: str, config: Config) -> str:
    """Waits until an unlearning is over, or live; returns the line about it. Raises Refused."""
    request = await_request(log, name, config)
    if request is None:
        return "the system ended meanwhile: unlearning goes on once it runs again"
    if request.state == REFUSED:
        raise Refused(f"they will be deleted, but can't be unlearned: {request.why}")
    if request.state == DONE and not request.first:
        return _UNCHANGED
    return (
        f"unlearned: steps {request.base_step + 1} to {request.step} were replayed beside the live model "
        f"and are epoch {request.epoch} now, {request.why}"
    )


def await_request(log: Log, name: str, config: Config) -> Unlearning | None:
    """Waits until a request is over, or live, and returns its newest record; None if the system ended."""
    control = ControlReader(log)
    while True:
        control.turn()
        request, lives = control.lifecycle.unlearnings.by_id[name], control.lifecycle.lives
        is_live = request.epoch and request.epoch in {live.epoch for live in lives}
        if is_live or request.state in (DONE, REFUSED):
            return request
        if not is_running(config):
            return None
        log.wait(CONTROL, _POLL_S)


def _delete_on_log(users: Sequence[str], config: Config, unlearn: bool) -> list[str]:
    with closing(open_log(config)) as log, closing(open_log(config)) as second_reader:
        before = request_deletion(log, users, clock_of(config)())
        when = "session and rows when the system runs again"
        lines = [f"{_named(users)} going to be deleted: {when}", _pending(config)]
        if not unlearn:
            return lines
        features = feature_set(config)
        try:
            return [*lines, unlearn_stopped(log, second_reader, config, features, before)]
        except (ValueError, OSError) as error:  # CantUnlearn, or an unreadable file
            why = f"{_named(users)} going to be deleted, but can't be unlearned: {error}"
            raise Refused(why) from error


def unlearn_stopped(
    log: Log, second_reader: Log, config: Config, features: FeatureSet, before: Mapping[str, int]
) -> str:
    """Unlearns users on a stopped system; returns what was done. ``before``: offsets of their removals."""
    drain(log, config, features, second_reader)
    result = unlearn_users(log, config, features, before, clock_of(config)())
    if result is None:
        return _UNCHANGED
    line = (
        f"unlearned {result.examples} of the users' examples that were left on the log, and earlier ones "
        f"that may have been theirs: steps {result.base_step + 1} to {result.step} were replayed and are "
        f"epoch {result.epoch} now, SHA-256 {result.digest}"
    )
    if result.other_config:
        line += (
            f"\n{result.other_config} of these steps had been learned with another configuration: they were "
            "replayed with the current one, as all later steps are"
        )
    return line


def request_deletion(log: Log, users: Sequence[str], time_ms: int, unlearning: str = "") -> dict[str, int]:
    """Appends the API's records: a tombstone among each user's events, and an erasure; before these a request
    to unlearn the users, if it has a name.

    Returns the offsets of the tombstones.
    """
    partitions = log.partitions(EVENTS)
    removed = (User(time_ms=time_ms, user_id=user, removed=True) for user in users)
    appends = [record_of(tombstone, partitions) for tombstone in removed]
    offsets = dict(zip(users, log.append(EVENTS, appends), strict=True))
    records: list[Control] = [
        Erasure(user_id=user, time_ms=time_ms, offset=offset) for user, offset in offsets.items()
    ]
    if unlearning:
        records.insert(0, Unlearning(id=unlearning, users=offsets, time_ms=time_ms))
    append_control(log, *records)
    return offsets


def _pending(config: Config) -> str:
    if config.log.url == "sqlite":
        return (
            "log and archive: once no part has to reread the records, in about an hour (`recsys status "
            "--json -` counts pending users as archive's to_forget)"
        )
    return (
        "archive: at its next compaction; the records on Kafka stay until its retention drops them "
        f"(log.retention_hours, {config.log.retention_hours})"
    )
