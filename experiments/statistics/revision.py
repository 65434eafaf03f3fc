"""What a revision of the experiments says: who is given arms now, and what a wish makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from experiments.assignment.definition import Experiment, name_in, read_experiment, read_experiments
from experiments.assignment.design import Ramp
from experiments.statistics.ramp import STOPPED, begin, stop
from recsys.config.policy_config import PolicyConfig
from recsys.events.control_records import ExperimentRequest, Experiments, ExperimentState


@dataclass(frozen=True)
class ExperimentSet:
    """Texts by file, and where their experiments stand: what a revision carries."""

    configs: Mapping[str, str] = field(default_factory=dict)
    stands: Mapping[str, ExperimentState] = field(default_factory=dict)


def parse_all(
    told: ExperimentSet | Experiments, policy: PolicyConfig, labels: Sequence[str] | None = None
) -> tuple[Experiment, ...]:
    """Its experiments as their files say, also those that give nobody an arm. Raises YamlError."""
    return read_experiments(told.configs, policy, labels, _stopped(told))


def parse_each(
    told: ExperimentSet | Experiments,
    policy: PolicyConfig,
    labels: Sequence[str] | None = None,
    stopped: bool = True,
) -> tuple[list[Experiment], dict[str, str]]:
    """Each read by itself: those that can be read, and by name why others can't, since what was told by other
    code, or under another schema, may mean nothing today. ``stopped``: also those."""
    found, unread, over = list[Experiment](), dict[str, str](), _stopped(told)
    for file, text in sorted(told.configs.items()):
        name = name_in(text) or file.removesuffix(".yaml")
        if name in over and not stopped:
            continue
        try:
            found.append(read_experiment(text, file, policy, labels))
        except ValueError as error:
            unread[name] = str(error)
    return found, unread


def running(
    told: ExperimentSet | Experiments, policy: PolicyConfig, labels: Sequence[str] | None = None
) -> tuple[Experiment, ...]:
    """Those that give arms, with the traffic that they have by now. Raises YamlError."""
    now = []
    for its in read_experiments(_going(told), policy, labels, judged=False):
        stand = told.stands.get(its.name)
        if stand is not None:
            its = replace(its, traffic=stand.traffic, ramp=Ramp())
        if stand is None or stand.traffic > 0:
            now.append(its)
    return tuple(now)


def apply_request(
    told: ExperimentSet, wish: ExperimentRequest, policy: PolicyConfig, labels: Sequence[str], now_ms: int
) -> ExperimentSet:
    """What holds once a wish is granted. Raises ValueError, saying why, where it can't be."""
    if wish.what == "start":
        return _start(told, wish, policy, labels, now_ms)
    if wish.what != "stop":
        raise ValueError(f"the wish is {wish.what!r}, expected 'start' or 'stop'")
    # By name alone: what can't be read any more is what most needs to be stopped.
    names = _names(told)
    if wish.name not in told.stands and wish.name not in names:
        raise ValueError(f"no experiment {wish.name!r}; there are {', '.join(names) or 'none'}")
    stand = told.stands.get(wish.name, ExperimentState(state="running"))
    if stand.state == STOPPED:
        raise ValueError(f"{wish.name} is stopped already: {stand.why}")
    stopped = stop(stand, now_ms, wish.reason or "asked for")
    return ExperimentSet(told.configs, {**told.stands, wish.name: stopped})


def _start(
    told: ExperimentSet, wish: ExperimentRequest, policy: PolicyConfig, labels: Sequence[str], now_ms: int
) -> ExperimentSet:
    its = read_experiment(wish.text, wish.name or "<text>", policy, labels)
    if its.name in _names(told):
        raise ValueError(
            f"an experiment {its.name!r} is there already; a name is used once, since who was in it then has "
            "seen it: give it another name"
        )
    file = f"{its.name}.yaml"
    if file in told.configs:
        raise ValueError(
            f"the file name {file!r} is held by the experiment {name_in(told.configs[file])!r}, which would "
            f"be overwritten: give {its.name!r} another name"
        )
    stand = begin(its, now_ms, at_once=wish.at_once)
    if stand.state == STOPPED:
        raise ValueError(f"{its.name}: {stand.why}; give it a later stop")
    new = ExperimentSet({**told.configs, file: wish.text}, {**told.stands, its.name: stand})
    read_experiments(_going(new), policy, labels)  # whether it fits beside the others
    return new


def _names(told: ExperimentSet | Experiments) -> list[str]:
    return sorted({name_in(text) for text in told.configs.values()} - {""})


def _stopped(told: ExperimentSet | Experiments) -> set[str]:
    return {name for name, its in told.stands.items() if its.state == STOPPED}


def _going(told: ExperimentSet | Experiments) -> dict[str, str]:
    """The texts of those that aren't stopped: of the others nothing needs to be readable."""
    over = _stopped(told)
    return {file: text for file, text in told.configs.items() if name_in(text) not in over}


def with_files(
    told: ExperimentSet, files: Mapping[str, str], policy: PolicyConfig, labels: Sequence[str], now_ms: int
) -> ExperimentSet:
    """What holds with these files beside the code. What was started by a wish stays as it is; a file that
    says when, how or by what it may be stopped, or whose arms train lines, has a place where it stands.
    Raises ValueError."""
    given = {f"{name}.yaml" for name, its in told.stands.items() if its.given}
    configs = {**files, **{file: text for file, text in told.configs.items() if file in given}}
    named = [name_in(text) for text in configs.values()]
    for name in named:
        if named.count(name) > 1:  # also where it is stopped, and not read below
            raise ValueError(
                f"the experiment {name!r} is there twice; give one of them another name"
            )
    stands = dict(told.stands)
    for its in read_experiments(_going(ExperimentSet(configs, stands)), policy, labels):
        if its.name not in stands and (
            its.ramp.steps or its.start or its.stop or its.metrics.guardrails or its.trains
        ):
            stands[its.name] = begin(its, now_ms, given=False)
    return ExperimentSet(configs, stands)
