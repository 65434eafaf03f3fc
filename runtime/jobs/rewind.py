"""Rewinds the live line of a running or stopped system: back to a time, then forward again without some
events, which item counters no longer count either. All of it is on the log: a withdrawal among the events of
each user concerned, and one request on ``control``.
"""

import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from experiments.promotion.lifecycle import Lifecycle
from experiments.promotion.unlearning_requests import REFUSED
from recsys.config.system_config import Config
from recsys.events.control_records import Unlearning
from recsys.events.records import EVENTS, record_of
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log, read_range
from recsys.process.log_consumer import decoded
from recsys.process.open_log import open_log
from runtime.jobs.rewind_names import check_seen, read_names
from runtime.jobs.user_deletion import Refused, await_request, is_running
from runtime.supervision import launch_plan, run_file
from training.candidates.registry import iso
from training.deletion.log_without import LogWithout
from training.deletion.rewind_scope import LoggedEvent, RewindScope, ServedList
from training.deletion.unlearn import find_start, oldest_rewind_ms, unlearn
from training.deletion.user_history import CantUnlearn
from training.lines.control import append_control, lifecycle_of
from training.lines.offset_lookup import first_at, served_ms_of
from training.steps.drain import drain

_MARGIN_MS: Final = 600_000  # clocks of several servers differ
_UNCHANGED: Final = "no step of the live model has learned from that: the model stays unchanged"


class Rewound(NamedTuple):
    """Result of a rewind: ``lines`` for people. ``answers``: lists of the live line since that time."""

    lines: list[str]
    answers: list[ServedList]


def rewind(state: Path, rewind_ms: int, without: Sequence[str], now_ms: int) -> Rewound:
    """Returns the live line of a system to a time, and learns again what came since, but for what ``without``
    names. Raises Refused or ValueError, with the remedy, before anything is changed; FileNotFoundError where
    nothing was started; the errors of the log."""
    config, plan = launch_plan.read(state)
    if not 0 < rewind_ms <= now_ms:
        raise Refused(f"TIME is {rewind_ms}, expected one up to now, {now_ms}: name a past time")
    if is_running(config):
        with closing(open_log(config)) as log:
            return rewind_running(log, config, rewind_ms, without, now_ms)
    if "broker" in plan.embedded:
        raise Refused(
            f"the log of {state.resolve()} was in the memory of a broker that ended with the system: "
            "nothing is left to learn again"
        )
    # The lock prevents a start meanwhile.
    with run_file.lock(state), closing(open_log(config)) as log, closing(open_log(config)) as again:
        return rewind_stopped(log, again, config, rewind_ms, without, now_ms)


def rewind_stopped(
    log: Log, again: Log, config: Config, rewind_ms: int, without: Sequence[str], now_ms: int
) -> Rewound:
    """Rewinds a stopped system. ``again``: another client of its log."""
    features = feature_set(config)
    scope, lines = _prepare(log, config, features, rewind_ms, without)
    users = request_rewind(log, scope, now_ms)
    drain(log, config, features, again)
    result = unlearn(log, config, features, users, now_ms, rewind_ms)
    if result is None:
        return Rewound([*lines, _UNCHANGED], scope.answers)
    lines.append(
        f"steps {result.base_step + 1} to {result.step} were learned again without {result.examples} "
        f"examples and are epoch {result.epoch} now, SHA-256 {result.digest}"
    )
    if result.other_config:
        lines.append(
            f"{result.other_config} of these steps had been learned with another configuration: they were "
            "learned with the current one, as all later steps are"
        )
    return Rewound(lines, scope.answers)


def rewind_running(log: Log, config: Config, rewind_ms: int, without: Sequence[str], now_ms: int) -> Rewound:
    """Asks a running system to rewind, and waits until its live line is the result."""
    scope, lines = _prepare(log, config, feature_set(config), rewind_ms, without)
    name = uuid.uuid4().hex[:12]
    request_rewind(log, scope, now_ms, name)
    request = await_request(log, name, config)
    if request is None:
        lines.append("the system ended meanwhile: the rewind goes on once it runs again")
    elif request.state == REFUSED:
        counters = "the item counters no longer count what you named, but the model stays as it was"
        raise Refused(f"{counters}: {request.why}" if scope.users else request.why)
    elif not request.first:
        lines.append(_UNCHANGED)
    else:
        lines.append(
            f"steps {request.base_step + 1} to {request.step} were learned again beside the live model and "
            f"are epoch {request.epoch} now, {request.why}"
        )
    return Rewound(lines, scope.answers)


def request_rewind(log: Log, scope: RewindScope, now_ms: int, name: str = "") -> dict[str, int]:
    """Appends a withdrawal among the events of each user, and with a name the request of a running system;
    returns the offsets of the withdrawals."""
    withdrawals = list(scope.withdrawals(now_ms))
    partitions = log.partitions(EVENTS)
    offsets = log.append(EVENTS, [record_of(event, partitions) for event in withdrawals])
    users = {str(event.user_id): at for event, at in zip(withdrawals, offsets, strict=True)}
    if name:
        append_control(log, Unlearning(id=name, users=users, rewind_ms=scope.from_ms, time_ms=now_ms))
    return users


def _prepare(
    log: Log, config: Config, features: FeatureSet, rewind_ms: int, without: Sequence[str]
) -> tuple[RewindScope, list[str]]:
    """Reads the scope of the rewind; returns it with lines about it. Raises Refused or ValueError."""
    lifecycle = lifecycle_of(log)
    _check_lifecycle(lifecycle)
    _check_start(log, config, features, lifecycle, rewind_ms)
    names = read_names(without, log, Path(config.state))
    scope = RewindScope(names, rewind_ms, features.schema.shown_by == "impression")
    is_complete = read_events(log, scope)
    if without and not is_complete:
        raise Refused(
            f"the log no longer has all events since {iso(rewind_ms)} (log.retention_hours is "
            f"{config.log.retention_hours}): name a later time"
        )
    lines = check_seen(scope.names)
    if without:
        lines.append(f"events of {len(scope.users)} users since {iso(rewind_ms)} are left out")
    return scope, lines


def _check_lifecycle(lifecycle: Lifecycle) -> None:
    if lifecycle.canary is not None:
        name = lifecycle.canary.line
        raise Refused(
            f"candidate {name} answers a share of the users, and may become live meanwhile: wait until it is "
            f"decided, or end it with `recsys rollback {name}`"
        )
    if (pending := lifecycle.unlearnings.pending) is not None:
        what = "a rewind" if pending.rewind_ms else "unlearning users"
        raise Refused(
            f"{what} is {pending.state}, and one runs at a time: wait for its end "
            "(recsys_shadow_unlearn_behind counts the steps left), then ask again"
        )


def _check_start(
    log: Log, config: Config, features: FeatureSet, lifecycle: Lifecycle, rewind_ms: int
) -> None:
    """Raises Refused where the line can't return to that time."""
    view = LogWithout(log, lifecycle.unlearnings.done)
    request = Unlearning(id="", rewind_ms=rewind_ms)
    try:
        find_start(view, config, features, lifecycle, request)
    except CantUnlearn as error:
        oldest_ms = oldest_rewind_ms(view, config, features, lifecycle)
        oldest = f"; the oldest time that it can return to is {iso(oldest_ms)}" if oldest_ms else ""
        raise Refused(f"the line can't return to {iso(rewind_ms)}: {error}{oldest}") from error


def read_events(log: Log, scope: RewindScope) -> bool:
    """Hands the scope the events of the log since its time; returns whether the log has all of them."""
    is_complete = True
    for partition in range(log.partitions(EVENTS)):
        begin, end = log.begin(EVENTS, partition), log.end(EVENTS, partition)
        first = first_at(log, EVENTS, partition, scope.from_ms, served_ms_of)
        is_complete = is_complete and (begin == 0 or first > begin)
        start = first_at(log, EVENTS, partition, scope.from_ms - _MARGIN_MS, served_ms_of)
        records = read_range(log, EVENTS, partition, start, end)
        scope.take(event for _, event in decoded(records, LoggedEvent))
    scope.answers.sort(key=lambda served: (served.time_ms, served.request_id))
    return is_complete


def write_answers(file: Path, answers: Sequence[ServedList]) -> None:
    """Writes answers as JSON, one a line."""
    file.write_bytes(b"".join(msgspec.json.encode(served) + b"\n" for served in answers))
