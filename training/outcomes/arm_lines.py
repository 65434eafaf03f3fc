"""Which lines of arms there are to be: those of the experiments that run. Pure; the director appends."""

from collections.abc import Iterable, Mapping

from experiments.assignment.arm_line import line_of
from experiments.assignment.definition import Experiment
from experiments.promotion.lifecycle import Lifecycle
from recsys.events.control_records import ArmLine, Candidate, Control, Decision

KIND = "arm"  # of their candidate records


def due(
    running: Iterable[Experiment], lifecycle: Lifecycle, refused: Mapping[str, str], now_ms: int
) -> list[Control]:
    """What is to be told so that each arm that trains has its line, and no other has one. ``refused``: why
    lines couldn't go on, by their names."""
    wanted = {
        line_of(its.name, arm.name): ArmLine(experiment=its.name, arm=arm.name, trains=arm.trains)
        for its in running
        for arm in its.arms
        if arm.trains
    }
    live = lifecycle.live
    found: list[Control] = [
        Candidate(
            line=line, registry="", kind=KIND, time_ms=now_ms, arm=arm,
            size=None if live is None else live.size,
        )
        for line, arm in wanted.items()
        if line not in lifecycle.standings
    ]  # fmt: skip
    for line in lifecycle.arms:
        why = refused.get(line) or ("" if line in wanted else "its experiment is over")
        if why:
            found.append(Decision(line=line, said="hold", final=True, why=why, time_ms=now_ms))
    return found


def lost(lifecycle: Lifecycle) -> dict[str, str]:
    """Experiments with an arm whose line is over, and why: they can't go on without it."""
    return {
        its.candidate.arm.experiment: f"the line {its.line} ended: {its.why}"
        for its in lifecycle.standings.values()
        if its.candidate.arm is not None and not its.at_work
    }
