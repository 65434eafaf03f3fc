"""Quarantine of users: named by the detectors, held and lifted by verdicts in each user's partition."""

import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing

from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Unlearning
from recsys.events.event_types import Rejected, Verdict, decode, encode
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log, read_range
from recsys.process.open_log import open_log
from runtime.jobs.director_requests import send
from runtime.jobs.user_deletion import Refused, await_unlearned, is_running, unlearn_stopped
from serving.sessions.counter_loop import quarantined_users
from training.poisoning.cohorts import Accounts, Cohort


def read_accounts(log: Log, from_ms: int = 0) -> Accounts:
    """Judgements of all accounts, from the events since a time that the log still has."""
    accounts = Accounts()
    for partition in range(log.partitions(EVENTS)):
        begin, end = log.begin(EVENTS, partition), log.end(EVENTS, partition)
        for record in read_range(log, EVENTS, partition, begin, end):
            try:
                event = decode(record.value)
            except Rejected:
                continue
            if event.time_ms >= from_ms or isinstance(event, Verdict):
                accounts.feed(event)
    return accounts


def held_users(log: Log, config: Config, accounts: Accounts) -> list[str]:
    """Users in quarantine: by the counters' snapshot, and by the verdicts on the log, which are newer."""
    held = quarantined_users(config.state, log.id)
    return sorted((held - accounts.judged_users) | set(accounts.quarantined))


def judge(
    log: Log, users: Iterable[str], quarantined: bool, why: str, now_ms: int
) -> dict[str, int]:
    """Appends a verdict among each user's events; returns their offsets."""
    users = list(dict.fromkeys(users))
    partitions = log.partitions(EVENTS)
    verdicts = [
        Verdict(time_ms=now_ms, user_id=user, quarantined=quarantined, why=why) for user in users
    ]
    appends = [
        Append(partition_of(user, partitions), user.encode(), encode(verdict))
        for user, verdict in zip(users, verdicts, strict=True)
    ]
    return dict(zip(users, log.append(EVENTS, appends), strict=True))


def unlearn(log: Log, config: Config, offsets: dict[str, int]) -> str:
    """Unlearns held users, on a running or a stopped system; returns the line about it. Raises Refused.
    ``offsets``: of their verdicts, up to which nothing stays of their examples."""
    if is_running(config):
        name = uuid.uuid4().hex[:12]
        send(log, Unlearning(id=name, users=offsets, time_ms=wall_ms()))
        return await_unlearned(log, name, config)
    with closing(open_log(config)) as second_reader:
        try:
            return unlearn_stopped(log, second_reader, config, feature_set(config), offsets)
        except (ValueError, OSError) as error:  # CantUnlearn, or an unreadable file
            raise Refused(f"the users are held, but can't be unlearned: {error}") from error


def over(cohorts: Sequence[Cohort], nats: float) -> list[Cohort]:
    """The cohorts that the rule holds."""
    return [cohort for cohort in cohorts if nats and cohort.nats >= nats]
