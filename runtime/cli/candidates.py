"""``recsys shadow``, ``propose``, ``merge``, ``approve`` and ``rollback``: candidates of a running system."""

import time
from pathlib import Path
from typing import Annotated, Final

import typer
from typer import Argument, Option

from recsys.events.control_records import Decision
from recsys.features.feature_set_file import feature_set
from recsys.process.clock_file import clock_of
from runtime.cli.common import JsonOption, RegistryOption, StateOption, show, with_system
from runtime.jobs import director_requests
from runtime.reports.candidate_table import CandidateView
from training.candidates import rollback_impact
from training.candidates.registry import Registry, new_name
from training.lines.control import lifecycle_of

_REFRESH_S: Final = 2.0


def shadow(
    state: StateOption = Path("state"),
    watch: Annotated[bool, Option(help="Refresh every two seconds.")] = False,
    json: JsonOption = None,
) -> None:
    """Compares each candidate with the live model on the same examples.

    After a promotion the replaced model is shown as a guard. Differences are the candidate's gain; the
    intervals are valid at every look.
    """
    with with_system(state) as (config, log):
        view = CandidateView(log, config, clock_of(config))
        while True:
            rows = view.turn()
            show(rows, json, lambda rows: [view.table(rows)])
            if not watch:
                return
            time.sleep(_REFRESH_S)


def propose(
    name: Annotated[str, Argument(help="Name of a candidate in the registry.")],
    registry: RegistryOption = None,
    state: StateOption = Path("state"),
    frozen: Annotated[bool, Option("--frozen", help="Evaluate it without online learning.")] = False,
) -> None:
    """Proposes a candidate: it scores live traffic, and is promoted once its evidence suffices."""
    propose_to(state, name, registry or state / "registry", frozen)


def propose_to(state: Path, name: str, registry: Path, frozen: bool = False) -> None:
    """Proposes a candidate to a system. Exits with status 2 where it is refused."""
    with with_system(state) as (config, log):
        director_requests.propose(config, log, name, registry, frozen)
    # Beside the result of `recsys offline --json -`, which stdout has alone.
    hint = f"watch it with `recsys shadow --state {state} --watch`"
    typer.echo(f"{name} is proposed: {hint}", err=True)


def merge(
    name: Annotated[str, Argument(help="Candidate that started from a snapshot of live.")],
    rare: Annotated[float, Option(help="Live's weight in rows without examples.")] = 0.5,
    frequent: Annotated[float, Option(help="Live's weight in rows with many examples.")] = 0.9,
    half: Annotated[float, Option(help="Examples at which the weight is halfway.")] = 20.0,
    dense: Annotated[float, Option(help="Live's weight in dense parameters.")] = 0.5,
    state: StateOption = Path("state"),
    registry: RegistryOption = None,
    propose: Annotated[bool, Option(help="Propose the new candidate at once.")] = False,
) -> None:
    """Interpolates an offline candidate with what the live model has learned since.

    Several weightings may be proposed: all are evaluated on the same examples.
    """
    from training.merging.merge import Blend, Blends
    from training.merging.merge_live import LiveMerge  # imports torch

    candidates = Registry((registry or state / "registry").resolve())
    with with_system(state) as (config, log):
        now_ms = clock_of(config)()
        blends = Blends(Blend(rare, frequent, half), dense)
        live = LiveMerge(log, config, feature_set(config), lifecycle_of(log), now_ms)
        new = new_name("merged", now_ms)
        live.merge(candidates, name, blends, new)
    typer.echo(f"{new}: {name} with main, epoch {live.live.epoch}, as of step {live.live.step}")
    if propose:
        propose_to(state, new, candidates.folder)


def approve(
    name: Annotated[str, Argument(help="Name of the candidate.")], state: StateOption = Path("state")
) -> None:
    """Approves a candidate; needed where `promotion.manual` is set."""
    with with_system(state) as (_, log):
        director_requests.approve(log, name)
    typer.echo(f"{name} is approved: it is promoted once its evidence suffices")


def rollback(
    name: Annotated[
        str, Argument(help="Active candidate or guard; by default the canary, else the live model.")
    ] = "",
    reason: Annotated[str, Option(help="Reason for the decision record.")] = "",
    state: StateOption = Path("state"),
) -> None:
    """Ends a canary, or returns the live line to its state before the newest promotion.

    Lists the affected requests and training steps.
    """
    with with_system(state) as (_, log):
        answer, served_by, seconds = director_requests.roll_back(log, name, reason)
        if isinstance(answer, Decision) and answer.verdict != "rollback":
            typer.echo(f"{answer.line} has ended: the live model stays, without a guard")
            return
        epoch = "" if isinstance(answer, Decision) else f", epoch {answer.epoch}"
        typer.echo(f"rolled back in {seconds:.1f} s: {answer.line}{epoch}")
        file = rollback_impact.impact_file(state, served_by)
        typer.echo(f"affected requests: {file}, in about ten seconds")
        impact = director_requests.await_impact(state, served_by)
    if impact is not None:
        learned = [step for step in impact.steps if step.learned]
        typer.echo(
            f"it answered {len(impact.requests)} requests; {sum(step.learned for step in learned)} of their "
            f"examples were learned in {len(learned)} steps"
        )
