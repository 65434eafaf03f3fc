"""Revisions of the set of experiments, and the ramp of each: begin, grow, stop.

The users of an experiment are those below a bound of the layer's hash, so a larger share keeps all earlier
users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from experiments.assignment.definition import Experiment, name_in, read_experiment, read_experiments
from experiments.assignment.design import Ramp
from experiments.assignment.policy import Policies
from experiments.statistics.readout import BROKEN, HARM, Readout
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config
from recsys.events.control_records import ExperimentRequest, Experiments, ExperimentState

WAITING: Final = "waiting"
RUNNING: Final = "running"
STOPPED: Final = "stopped"
_HOUR_MS: Final = 3_600_000


def begin(
    experiment: Experiment, now_ms: int, *, by_request: bool = True, at_once: bool = False
) -> ExperimentState:
    """State of a new experiment. ``at_once``: with all of its traffic, without a ramp."""
    step = 0 if experiment.ramp.steps and not at_once else len(experiment.ramp.steps)
    waiting = ExperimentState(state=WAITING, step=step, by_request=by_request)
    return move(experiment, waiting, now_ms, None)


def stop(current: ExperimentState, now_ms: int, why: str) -> ExperimentState:
    """State after a stop: no arms from the next request on."""
    return msgspec.structs.replace(current, state=STOPPED, traffic=0.0, since_ms=now_ms, why=why)


def move(
    experiment: Experiment, current: ExperimentState, now_ms: int, seen: Readout | None
) -> ExperimentState:
    """The next state; the same object if nothing changes. Without a readout (``seen``) the ramp doesn't
    grow."""
    if current.state == STOPPED:
        return current
    if experiment.stop and now_ms >= experiment.stop:
        return stop(current, now_ms, "its time is over")
    if current.state == WAITING:
        if now_ms < experiment.start:
            return current
        return msgspec.structs.replace(
            current, state=RUNNING, traffic=_traffic_at(experiment, current.step), since_ms=now_ms,
            started_ms=now_ms, why="",
        )  # fmt: skip
    if seen is not None and seen.verdict in (BROKEN, HARM):
        return stop(current, now_ms, f"{seen.verdict}: {'; '.join(seen.why)}")
    if current.step < len(experiment.ramp.steps) and seen is not None:
        hours = (now_ms - current.since_ms) / _HOUR_MS
        users = seen.users / seen.counted  # only a share of very many is counted
        if hours >= experiment.ramp.hours and users >= experiment.ramp.users:
            step, traffic = current.step + 1, _traffic_at(experiment, current.step + 1)
            return msgspec.structs.replace(current, step=step, traffic=traffic, since_ms=now_ms)
    return current


def _traffic_at(experiment: Experiment, step: int) -> float:
    """Share of the layer's users at a step of the ramp."""
    return (*experiment.ramp.steps, experiment.traffic)[step]


def parse_each(
    revision: Experiments, policy: PolicyConfig, labels: Sequence[str] | None = None, stopped: bool = True
) -> tuple[list[Experiment], dict[str, str]]:
    """Readable experiments, and errors of the others by name: texts from another version of the code or the
    schema may be invalid today. ``stopped``: include these."""
    experiments, errors, over = list[Experiment](), dict[str, str](), _stopped(revision)
    for file, text in sorted(revision.configs.items()):
        name = name_in(text) or file.removesuffix(".yaml")
        if name in over and not stopped:
            continue
        try:
            experiments.append(read_experiment(text, file, policy, labels))
        except ValueError as error:
            errors[name] = str(error)
    return experiments, errors


def running(
    revision: Experiments, policy: PolicyConfig, labels: Sequence[str] | None = None
) -> tuple[Experiment, ...]:
    """Experiments that assign arms, with their current traffic. Raises YamlError."""
    experiments = []
    for experiment in read_experiments(_not_stopped(revision), policy, labels, judged=False):
        current = revision.states.get(experiment.name)
        if current is not None:
            experiment = replace(experiment, traffic=current.traffic, ramp=Ramp())
        if current is None or current.traffic > 0:
            experiments.append(experiment)
    return tuple(experiments)


def apply_request(
    revision: Experiments, request: ExperimentRequest, config: Config, labels: Sequence[str], now_ms: int
) -> Experiments:
    """The set after a request to start or stop an experiment. Raises ValueError if refused."""
    if request.what == "start":
        return _start(revision, request, config, labels, now_ms)
    if request.what != "stop":
        raise ValueError(f"the request is {request.what!r}, expected 'start' or 'stop'")
    # By name alone: unreadable experiments most need to be stopped.
    names = _names(revision)
    if request.name not in revision.states and request.name not in names:
        raise ValueError(f"no experiment {request.name!r}; there are {', '.join(names) or 'none'}")
    current = revision.states.get(request.name, ExperimentState(state="running"))
    if current.state == STOPPED:
        raise ValueError(f"{request.name} is stopped already: {current.why}")
    stopped = stop(current, now_ms, request.reason or "stopped by request")
    return msgspec.structs.replace(revision, states={**revision.states, request.name: stopped})


def _start(
    revision: Experiments, request: ExperimentRequest, config: Config, labels: Sequence[str], now_ms: int
) -> Experiments:
    experiment = read_experiment(request.text, request.name or "<text>", config.policy, labels)
    name, file = experiment.name, f"{experiment.name}.yaml"
    if name in (*_names(revision), *revision.states):  # its file may be gone
        raise ValueError(
            f"an experiment {name!r} is there already; a name is used once, since its former users have seen "
            "it: give it another name"
        )
    if file in revision.configs:
        raise ValueError(
            f"the file name {file!r} is held by the experiment {name_in(revision.configs[file])!r}, which "
            f"would be overwritten: give {name!r} another name"
        )
    current = begin(experiment, now_ms, at_once=request.at_once)
    if current.state == STOPPED:
        raise ValueError(f"{name}: {current.why}; give it a later stop")
    new = msgspec.structs.replace(
        revision, configs={**revision.configs, file: request.text}, states={**revision.states, name: current}
    )
    experiments = read_experiments(_not_stopped(new), config.policy, labels)
    Policies(config.policy, experiments, config.surfaces)  # both raise for conflicts
    return new


def _names(revision: Experiments) -> list[str]:
    return sorted({name_in(text) for text in revision.configs.values()} - {""})


def _stopped(revision: Experiments) -> set[str]:
    return {name for name, current in revision.states.items() if current.state == STOPPED}


def _not_stopped(revision: Experiments) -> dict[str, str]:
    """Texts of experiments that aren't stopped; the others may be unreadable."""
    over = _stopped(revision)
    return {file: text for file, text in revision.configs.items() if name_in(text) not in over}


def with_files(
    revision: Experiments, files: Mapping[str, str], config: Config, labels: Sequence[str], now_ms: int
) -> Experiments:
    """The set with these files of the code. Experiments started by request stay. Files with a ramp, times,
    guardrails or trained lines get a state; one that runs gets the traffic that a changed file has at its
    step of the ramp. Raises ValueError."""
    own = {f"{name}.yaml" for name, current in revision.states.items() if current.by_request}
    requested = {file: text for file, text in revision.configs.items() if file in own}
    new = msgspec.structs.replace(revision, configs={**files, **requested})
    names = [name_in(text) for text in new.configs.values()]
    twice = [name for name in names if names.count(name) > 1]
    if twice:  # also stopped ones, which aren't read below
        raise ValueError(f"the experiment {twice[0]!r} is there twice; give one another name")
    before = {e.name: e for e in parse_each(revision, config.policy, labels, stopped=False)[0]}
    states = {  # one that waited, and whose file is gone, is unknown again: no user has seen it
        name: current
        for name, current in revision.states.items()
        if current.state != WAITING or name in names
    }
    experiments = read_experiments(_not_stopped(new), config.policy, labels)
    Policies(config.policy, experiments, config.surfaces)  # raises for conflicts with surfaces
    for each in experiments:
        managed = each.ramp.steps or each.start or each.stop or each.metrics.guardrails
        current, old = states.get(each.name), before.get(each.name)
        if old and old.arms != each.arms and (current is None or current.state == RUNNING):
            why = f"{BROKEN}: its arms have changed since it began: give it another name"
            states[each.name] = stop(current or ExperimentState(), now_ms, why)
        elif current is None and (managed or each.trains):
            states[each.name] = begin(each, now_ms, by_request=False)
        elif current is not None and current.state == RUNNING and not current.by_request:
            steps = len(each.ramp.steps)
            is_over = old is None or current.step >= len(old.ramp.steps)
            step = steps if is_over else min(current.step, steps)
            traffic = _traffic_at(each, step)
            states[each.name] = msgspec.structs.replace(current, step=step, traffic=traffic)
    return msgspec.structs.replace(new, states=states)
