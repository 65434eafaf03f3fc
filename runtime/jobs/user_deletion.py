"""Deletes a user from a running or stopped system, and unlearns their examples on request.

See docs/how-to/operations.md for when each kind of data is deleted. A running system is asked over the API;
for a stopped one the request is written to the log, and takes effect at the next start.
"""

from contextlib import closing
from pathlib import Path

from recsys.client import Client
from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Erasure
from recsys.events.event_types import User, encode
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EVENTS, pack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log
from recsys.process.open_log import open_log
from runtime.supervision import launch_plan, run_file
from training.deletion.unlearn import unlearn as unlearn_user
from training.steps.drain import drain


class Refused(ValueError):
    """The user can't be deleted this way; the message names the remedy."""


def forget_user(user: str, state: Path, unlearn: bool) -> list[str]:
    """Deletes a user; returns lines on what was done and what is pending.

    Raises Refused, FileNotFoundError where nothing was ever started, and the errors of API, log and
    unlearning.
    """
    config, plan = launch_plan.read(state)
    running = run_file.read(state)
    if running is not None and running.any_alive():
        if unlearn:
            raise Refused(
                f"--unlearn replays the model's history, and the system in {state.resolve()} runs: stop it "
                f"with `recsys down --state {state}`, unlearn, and start it again"
            )
        return _delete_over_api(user, state, config)
    if "broker" in plan.embedded:
        raise Refused(
            f"the log of {state.resolve()} was in the memory of a broker that ended with the system: only "
            "the archive and the model are left. Remove the folder to delete these too"
        )
    with run_file.lock(state):  # prevents a start meanwhile
        return _delete_on_log(user, config, unlearn)


def _delete_over_api(user: str, state: Path, config: Config) -> list[str]:
    headers = launch_plan.admin_headers(state)
    with Client(launch_plan.feed_url(config), headers=headers) as client:
        client.delete_user(user)
    return [
        f"{user} is being deleted: the session within a second, the rows with the next steps",
        _pending(config),
    ]


def _delete_on_log(user: str, config: Config, unlearn: bool) -> list[str]:
    with closing(open_log(config)) as log, closing(open_log(config)) as second_reader:
        before = request_deletion(log, user, wall_ms())
        lines = [
            f"{user} will be deleted: session and rows when the system runs again",
            _pending(config),
        ]
        if not unlearn:
            return lines
        features = feature_set(config)
        try:
            drain(log, config, features, second_reader)
            result = unlearn_user(log, config, features, user, before, wall_ms())
        except (ValueError, OSError) as error:  # CantUnlearn, or an unreadable file
            raise Refused(f"{user} will be deleted, but can't be unlearned: {error}") from error
    if result is None:
        return [*lines, "no step of the live model has learned from them: it stays unchanged"]
    lines.append(
        f"unlearned {result.examples} of the user's examples that were left on the log, and earlier ones "
        f"that may have been theirs: steps {result.since + 1} to {result.step} were replayed and are "
        f"epoch {result.epoch} now, SHA-256 {result.digest}"
    )
    if result.other_config:
        lines.append(
            f"{result.other_config} of these steps had been learned with another configuration: they were "
            "replayed with the current one, as all later steps are"
        )
    return lines


def request_deletion(log: Log, user: str, time_ms: int) -> int:
    """Appends the API's records: a tombstone among the user's events, and an erasure.

    Returns the offset of the tombstone.
    """
    partition = partition_of(user, log.partitions(EVENTS))
    tombstone = User(time_ms=time_ms, user_id=user, removed=True)
    (offset,) = log.append(EVENTS, [Append(partition, user.encode(), encode(tombstone))])
    erasure = Erasure(user_id=user, time_ms=time_ms, offset=offset)
    log.append(CONTROL, [Append(0, b"", pack(erasure))])
    return offset


def _pending(config: Config) -> str:
    if config.log.url == "sqlite":
        return (
            "log and archive: once no part has to reread the records, in about an hour (`recsys status "
            "--json` counts pending users as archive's to_forget)"
        )
    return (
        "archive: at its next compaction; the records on Kafka stay until its retention drops them "
        f"(log.retention_hours, {config.log.retention_hours})"
    )
