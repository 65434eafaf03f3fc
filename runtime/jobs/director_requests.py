"""Requests of an operator to the director, over the log's control topic. The director alone decides."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from experiments.assignment.definition import Experiment, read_experiment
from experiments.promotion.epoch_model import with_size
from experiments.promotion.lifecycle import Lifecycle
from experiments.promotion.line_kinds import reserved
from experiments.statistics.revision import apply_request, parse_each
from recsys.app.logged_sets import defined
from recsys.app.set_loops import SetsInUse
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.control_records import (
    REQUEST_MS,
    Candidate,
    Control,
    Decision,
    ExperimentRequest,
    Experiments,
    Live,
    ModelSize,
    OperatorRequest,
)
from recsys.events.records import CONTROL
from recsys.features.feature_set import set_text
from recsys.features.feature_set_file import feature_set, labels_of
from recsys.log.protocol import Log
from recsys.model.wider_set import covers
from recsys.process.clock_file import clock_of
from recsys.process.log_consumer import readable
from training.candidates import rollback_impact
from training.candidates.promoter import answers_request
from training.candidates.registry import Refused, Registry, model_size_of
from training.lines.control import ControlReader, append_control, lifecycle_of
from training.lines.line import spec_of

ANSWER_S: Final = REQUEST_MS / 1000 + 5.0  # how long to wait for the director
_POLL_S: Final = 0.05


def await_answer(find: Callable[[], Any]) -> Any:
    """Polls ``find`` until it returns the director's answer. Raises Refused after ``ANSWER_S``."""
    until_s = time.monotonic() + ANSWER_S
    while time.monotonic() < until_s:
        if (answer := find()) is not None:
            return answer
        time.sleep(_POLL_S)
    raise Refused(
        f"the director didn't answer in {ANSWER_S:.0f} s: check that it runs (`recsys status`), then ask "
        "again; this request has no effect any more"
    )


def propose(config: Config, log: Log, name: str, folder: Path, frozen: bool = False) -> None:
    """Proposes a registry's candidate for evaluation. Raises Refused where it doesn't fit the system."""
    if reason := reserved(name):
        raise Refused(reason)
    registry, first = Registry(folder.resolve()), feature_set(config)
    provenance = registry.provenance(name)
    size = model_size_of(provenance, config.model)
    features = defined(log).get(provenance.feature_set, first)
    if features != first:
        model = config.model
        size = size or ModelSize(model.dim, model.hidden, ranker=model.ranker)
        size = msgspec.structs.replace(size, features=set_text(features))
    resized = with_size(config, size)
    spec_of(resized, name)  # its tables must split into as many shards as the system has
    if not covers(logged := SetsInUse.of(log, first).answers, features):
        raise Refused(
            f"{name} reads feature set {features.digest}, and {logged.digest} is logged since `recsys app "
            "apply`, without some of its columns: it can't answer"
        )
    lifecycle, now_ms = lifecycle_of(log), clock_of(config)()
    registry.check(
        name, features, resized.model, holdout_from_ms=now_ms, log_id=log.id, or_data=True,
        unlearned=lifecycle.unlearned,
    )  # fmt: skip
    if name in lifecycle.candidates:
        stage = lifecycle.candidates[name].stage
        raise Refused(f"{name} was proposed before, and is {stage}: a name is used once")
    candidate = Candidate(
        line=name, registry=str(folder.resolve()), kind=provenance.kind, learns=not frozen,
        time_ms=now_ms, size=size,
    )  # fmt: skip
    append_control(log, candidate)


def approve(log: Log, name: str) -> None:
    """Approves a candidate, where ``promotion.manual`` requires it. Raises Refused for any other name."""
    candidate = lifecycle_of(log).candidates.get(name)
    if candidate is None or not candidate.active or not candidate.is_candidate:
        stage = candidate.stage if candidate else "not known"
        raise Refused(f"{name} is {stage}: nothing to approve")
    append_control(log, OperatorRequest(what="approve", line=name, time_ms=machine_ms()))


class RollbackResult(NamedTuple):
    """Outcome of a rollback. ``served_by``: line/epoch of the model that was taken back."""

    answer: Decision | Live
    served_by: str
    seconds: float


def roll_back(log: Log, name: str, reason: str) -> RollbackResult:
    """Ends a canary or guard, or takes the live line back to before its newest promotion.

    Raises Refused where the director refuses or doesn't answer.
    """
    control = ControlReader(log)
    control.turn()
    lives, began_s = list(control.lifecycle.lives), time.monotonic()
    request = OperatorRequest(
        what="rollback", line=_rollback_target(control.lifecycle, name), reason=reason, time_ms=machine_ms()
    )
    append_control(log, request)

    def find() -> Decision | Live | None:
        for record in control.turn():
            if isinstance(record, Live | Decision) and answers_request(request, record):
                return record
        return None

    answer: Decision | Live = await_answer(find)
    if isinstance(answer, Decision) and answer.verdict != "rollback" and not answer.final:
        raise Refused(answer.why)
    served_by = f"{answer.line}/0"
    if isinstance(answer, Live):
        served_by = f"{lives[-1].line}/{lives[-1].epoch}"
    return RollbackResult(answer, served_by, time.monotonic() - began_s)


def await_impact(state: Path, served_by: str) -> rollback_impact.RollbackImpact | None:
    """Waits for the report on requests that a rolled-back model answered; None where it doesn't come."""
    file, until_s = rollback_impact.impact_file(state, served_by), time.monotonic() + ANSWER_S
    while (impact := rollback_impact.read_impact(file)) is None and time.monotonic() < until_s:
        time.sleep(_POLL_S)
    return impact


def _rollback_target(lifecycle: Lifecycle, name: str) -> str:
    """The active candidate of a name, or the live line with its epoch. Raises Refused for other names."""
    candidate, live = lifecycle.candidates.get(name), lifecycle.live
    version = None if live is None else f"{live.line}/{live.epoch}"
    if not name:
        return lifecycle.canary.line if lifecycle.canary else version or ""
    if candidate is not None and candidate.active:
        return name
    if version and (name == version or (live is not None and live.candidate == name)):
        return version
    stage = candidate.stage if candidate else "not known"
    raise Refused(f"{name} is {stage}; the live version is {version}")


def newest_experiments(log: Log) -> Experiments:
    """Newest readable revision; an empty one where there is none."""
    newest = Experiments(revision=0)
    for control in readable(log, CONTROL, Control):
        if isinstance(control, Experiments):
            newest = control
    return newest


def find_experiment(name: str, revision: Experiments, config: Config) -> Experiment:
    """The system's experiment of this name, or the one in a file. Raises ValueError without one."""
    labels = labels_of(config)
    experiments, unreadable = parse_each(revision, config.policy, labels)
    if name in unreadable:
        raise ValueError(f"{name} can't be read: {unreadable[name]}")
    for experiment in experiments:
        if experiment.name == name:
            return experiment
    if Path(name).is_file():
        return read_experiment(Path(name).read_text("utf-8"), name, config.policy, labels)
    names = ", ".join(experiment.name for experiment in experiments) or "none"
    raise ValueError(f"no experiment {name!r}, and no such file; there are {names}")


def check_startable(texts: dict[str, str], revision: Experiments, config: Config) -> tuple[Experiment, ...]:
    """Parses experiment files as if they were started one after the other, next to the running ones.

    A file that already runs counts as itself. Raises ValueError for one that can't be started.
    """
    labels = labels_of(config)
    experiments: list[Experiment] = []
    for file, text in texts.items():
        experiments.append(read_experiment(text, file, config.policy, labels))
        if text not in revision.configs.values():
            request = ExperimentRequest(what="start", name=file, text=text)
            revision = apply_request(revision, request, config, labels, clock_of(config)())
    return tuple(experiments)


def request_experiment(log: Log, config: Config, request: ExperimentRequest) -> Experiments:
    """Has the director start or stop an experiment; returns the new revision.

    Raises ValueError where it refuses or doesn't answer.
    """
    apply_request(newest_experiments(log), request, config, labels_of(config), clock_of(config)())
    (offset,) = append_control(log, request)

    def find() -> Experiments | None:
        for control in readable(log, CONTROL, Control):
            if isinstance(control, Experiments) and control.answers == offset:
                return control
        return None

    answer: Experiments = await_answer(find)
    if answer.refused:
        raise ValueError(answer.refused)
    return answer
