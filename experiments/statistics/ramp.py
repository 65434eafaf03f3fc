"""How an experiment begins, grows and ends: values in, the next place where it stands out.

Its users are those whose place in the layer is below a bound, so a larger share keeps all who were in.
"""

from typing import Final

import msgspec

from experiments.assignment.definition import Experiment
from experiments.statistics.readout import BROKEN, HARM, Readout
from recsys.events.control_records import ExperimentState

WAITING: Final = "waiting"
RUNNING: Final = "running"
STOPPED: Final = "stopped"
_HOUR_MS: Final = 3_600_000


def begin(
    experiment: Experiment, now_ms: int, *, given: bool = True, at_once: bool = False
) -> ExperimentState:
    """Where it stands when it is told of. ``at_once``: with all of its traffic, without a ramp."""
    steps = () if at_once else experiment.ramp.steps
    first = ExperimentState(state=WAITING, step=0 if steps else len(experiment.ramp.steps), given=given)
    return move(experiment, first, now_ms, None)


def stop(stand: ExperimentState, now_ms: int, why: str) -> ExperimentState:
    """From the next request on, nobody is given an arm."""
    return msgspec.structs.replace(stand, state=STOPPED, traffic=0.0, since_ms=now_ms, why=why)


def move(experiment: Experiment, stand: ExperimentState, now_ms: int, seen: Readout | None) -> ExperimentState:
    """Where it stands from now on; the same object where nothing changes. ``seen``: None where nobody has
    looked yet: then it doesn't grow."""
    if stand.state == STOPPED:
        return stand
    if experiment.stop and now_ms >= experiment.stop:
        return stop(stand, now_ms, "its time is over")
    if stand.state == WAITING:
        if now_ms < experiment.start:
            return stand
        return msgspec.structs.replace(
            stand, state=RUNNING, traffic=traffic_at(experiment, stand.step), since_ms=now_ms,
            started_ms=now_ms, why="",
        )  # fmt: skip
    if seen is not None and seen.verdict in (BROKEN, HARM):
        return stop(stand, now_ms, f"{seen.verdict}: {'; '.join(seen.why)}")
    if stand.step < len(experiment.ramp.steps) and seen is not None:
        hours = (now_ms - stand.since_ms) / _HOUR_MS
        users = seen.users / seen.counted  # of very many only a share is counted
        if hours >= experiment.ramp.hours and users >= experiment.ramp.users:
            step = stand.step + 1
            return msgspec.structs.replace(
                stand, step=step, traffic=traffic_at(experiment, step), since_ms=now_ms
            )
    return stand


def traffic_at(experiment: Experiment, step: int) -> float:
    """The share of the layer's users at a step of the ramp."""
    steps = experiment.ramp.steps
    return steps[step] if step < len(steps) else experiment.traffic
