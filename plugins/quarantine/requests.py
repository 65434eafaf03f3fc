"""Quarantine of users: whom detectors name, whom verdicts on the log hold, and unlearning them."""

import uuid
from contextlib import closing

from plugins.quarantine.cohorts import Accounts
from plugins.quarantine.sentinel_loop import SentinelLoop
from recsys.config.system_config import Config
from recsys.events.control_records import Unlearning
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from recsys.process.clock_file import clock_of
from recsys.process.open_log import open_log
from recsys.process.part_snapshot import quarantined_users
from runtime.jobs.user_deletion import Refused, await_unlearned, is_running, unlearn_stopped
from training.lines.control import append_control


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


def unlearn(log: Log, config: Config, offsets: dict[str, int]) -> str:
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
