"""Candidates of a system: ``recsys shadow`` shows them; the others ask something of the director.

All of it is read from, and asked on, the system's log; the director alone decides.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from experiments.promotion.epoch_model import with_size
from experiments.promotion.lifecycle import CandidateState, Lifecycle, is_guard_name
from experiments.statistics.significance import AnytimeEstimate
from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Candidate, Control, Decision, Live, OperatorRequest
from recsys.events.records import CONTROL, pack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log, LogLost, LogUnavailable
from recsys.process.open_log import open_log
from runtime.supervision import launch_plan as plans
from runtime.supervision.acceptance_file import check_accepted
from training.candidates import rollback_impact as affected
from training.candidates.candidate_evidence import numbers
from training.candidates.model_size_check import size_of
from training.candidates.promoter import Promoter, answers_request
from training.candidates.registry import Refused, Registry
from training.lines.control import ControlReader
from training.lines.line import spec_of

StateOption = Annotated[Path, typer.Option(help="The state folder.")]
_ANSWER_S: Final = 30.0
_LOOK_S: Final = 0.05
_EVERY_S: Final = 2.0


class View:
    """What the director knows of candidates, folded from the log by somebody who only looks. ``clock``:
    milliseconds, by which the log's records have their times."""

    def __init__(self, log: Log, config: Config, clock: Callable[[], int] = wall_ms) -> None:
        self._control = ControlReader(log)
        self.promoter = Promoter(log, config, feature_set(config), clock)

    def turn(self) -> list[dict[str, Any]]:
        """One row for each candidate, the newest last."""
        for said in self._control.turn():
            self.promoter.fold(said)
        self.promoter.read()
        return [self._row(its) for its in self.promoter.lifecycle.candidates.values()]

    def _row(self, its: CandidateState) -> dict[str, Any]:
        evidence = self.promoter.evidence(its)
        return {
            "line": its.line,
            "kind": its.candidate.kind,
            "stage": its.stage,
            "share": its.share,
            "step": self.promoter.cases[its.line].step,
            "failed": list(evidence.failed),
            "why": self.promoter.opinion(its) if its.active else its.why,
            **numbers(evidence),
        }


def shadow(
    state: StateOption = Path("state"),
    watch: Annotated[bool, typer.Option(help="Show it again every two seconds.")] = False,
    json: Annotated[bool, typer.Option(help="As JSON, for programs.")] = False,
) -> None:
    """Shows each candidate beside live on the same examples, and while a new live line is guarded, what it
    replaced. Differences are the candidate's gain; the bounds hold however often one looks."""
    with with_system(state) as (config, log):
        view, console = View(log, config), Console()
        while True:
            rows = view.turn()
            if json:
                typer.echo(msgspec.json.format(msgspec.json.encode(rows), indent=1))
            else:
                console.print(drawn(rows, view.promoter))
            if not watch:
                return
            time.sleep(_EVERY_S)


def drawn(rows: list[dict[str, Any]], promoter: Promoter) -> Table:
    """The candidates as a table."""
    live = promoter.lifecycle.live
    title = f"live: {live.line}, epoch {live.epoch}" if live else "nothing is live yet"
    table = Table(title=title, box=None, pad_edge=False, header_style="bold")
    for column in (
        "candidate",
        "stage",
        "examples",
        "log loss gained",
        "AUC gained",
        "within users",
        "calibration",
    ):
        table.add_column(column)
    table.add_column("said", overflow="fold")
    for row in rows:
        its = promoter.evidence(promoter.lifecycle.candidates[row["line"]]).compared
        stage = f"{row['stage']} {row['share']:.0%}" if row["share"] else row["stage"]
        why = "; ".join(row["failed"]) or row["why"]
        calibration = f"{its.candidate_calibration:.3f} (live {its.live_calibration:.3f})"
        table.add_row(
            row["line"], stage, f"{its.examples:,}", _bounds(its.loss), _bounds(its.auc),
            _bounds(its.user_auc), calibration if its.examples else "–", why,
        )  # fmt: skip
    return table


def _bounds(its: AnytimeEstimate) -> str:
    return f"{its.mean:+.4f} ({its.low:+.4f} to {its.high:+.4f})" if its.weight else "–"


def propose(
    name: Annotated[str, typer.Argument(help="A candidate in the registry.")],
    registry: Annotated[
        Path | None, typer.Option(help="The registry's folder: STATE/registry without.")
    ] = None,
    state: StateOption = Path("state"),
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Judge it as it is: it doesn't learn from the stream.")
    ] = False,
) -> None:
    """Has a candidate scored on the current traffic; the director promotes it once it has proved itself."""
    propose_to(state, name, registry or state / "registry", frozen)
    typer.echo(f"{name} is proposed: watch it with `recsys shadow --state {state} --watch`")


def propose_to(state: Path, name: str, registry: Path, frozen: bool = False) -> None:
    """Proposes a candidate to a system. Ends the command where it is refused."""
    with with_system(state) as (config, log):
        if is_guard_name(name):
            raise Refused(f"{name} is a name of a guard: add the candidate under another one")
        if "." in name:
            raise Refused(
                f"{name} has a dot, as the lines of arms have: add the candidate under another name"
            )
        folder, features = registry.resolve(), feature_set(config)
        size = size_of(Registry(folder).provenance(name), config.model)
        own = with_size(config, size)
        spec_of(own, name)  # its tables, in as many shards as the system has
        check_accepted(own, features)
        control = ControlReader(log)
        control.turn()
        its, _ = Registry(folder).check(
            name, features, own.model, holdout_from_ms=wall_ms(), log_id=log.id, or_data=True,
            unlearned=control.lifecycle.unlearned,
        )  # fmt: skip
        if name in control.lifecycle.candidates:
            stage = control.lifecycle.candidates[name].stage
            raise Refused(f"{name} was proposed before, and is {stage}: a name is used once")
        said = Candidate(
            line=name, registry=str(folder), kind=its.kind, learns=not frozen,
            time_ms=wall_ms(), size=size,
        )  # fmt: skip
        _say(log, said)


def approve(
    name: Annotated[str, typer.Argument(help="The candidate.")],
    state: StateOption = Path("state"),
) -> None:
    """Lets a candidate go on that has proved itself, where ``promotion.manual`` asks for people's word."""
    with with_system(state) as (_, log):
        control = ControlReader(log)
        control.turn()
        standing = control.lifecycle.candidates.get(name)
        if standing is None or not standing.active or standing.guards:
            raise Refused(
                f"{name} is {standing.stage if standing else 'not known'}: nothing to approve"
            )
        _say(log, OperatorRequest(what="approve", line=name, time_ms=wall_ms()))
        typer.echo(f"{name} is approved: it goes on once its evidence holds")


def rollback(
    name: Annotated[
        str,
        typer.Argument(
            help="A candidate or guard at work; without: the canary, else what is live."
        ),
    ] = "",
    reason: Annotated[str, typer.Option(help="What stands in the record.")] = "",
    state: StateOption = Path("state"),
) -> None:
    """Ends a canary, or takes the live line back to what it was before its newest promotion; lists the
    requests and the training steps that are affected."""
    with with_system(state) as (_, log):
        control = ControlReader(log)
        control.turn()
        before, began_s = len(control.lifecycle.lives), time.monotonic()
        wish = OperatorRequest(
            what="rollback", line=_meant(control.lifecycle, name), reason=reason, time_ms=wall_ms()
        )
        _say(log, wish)
        answer = _answer(control, wish)
        if isinstance(answer, Decision) and answer.said != "rollback":
            if not answer.final:
                raise Refused(answer.why)
            typer.echo(f"{answer.line} is at its end: what is live stays, and nothing guards it")
            return
        took_s = time.monotonic() - began_s
        what = (
            answer.line if isinstance(answer, Decision) else f"{answer.line}, epoch {answer.epoch}"
        )
        typer.echo(f"rolled back in {took_s:.1f} s: {what}")
        whose = _whose(control.lifecycle, answer, before)
        file = affected.file_of(state, whose)
        typer.echo(f"whom it answered stands in {file} in some ten seconds")
        until_s = time.monotonic() + _ANSWER_S
        while not file.exists() and time.monotonic() < until_s:
            time.sleep(_LOOK_S)
        if file.exists():
            found = msgspec.json.decode(file.read_bytes(), type=affected.Affected)
            learned = [step for step in found.steps if step.learned]
            typer.echo(
                f"{len(found.requests)} requests were answered by it, {sum(s.learned for s in learned)} of "
                f"their examples learned in {len(learned)} steps"
            )


def _meant(lifecycle: Lifecycle, name: str) -> str:
    """What is to be rolled back: a candidate at work, or the live line in its epoch. Raises Refused."""
    standing, live = lifecycle.candidates.get(name), lifecycle.live
    its = None if live is None else f"{live.line}/{live.epoch}"
    if not name:
        return lifecycle.canary.line if lifecycle.canary else its or ""
    if standing is not None and standing.active:
        return name
    if its and (name == its or (live is not None and live.candidate == name)):
        return its
    raise Refused(f"{name} is {standing.stage if standing else 'not known'}; what is live is {its}")


def _answer(control: ControlReader, wish: OperatorRequest) -> Decision | Live:
    """What the director says to a wish. Raises Refused where it doesn't answer."""
    until_s = time.monotonic() + _ANSWER_S
    while time.monotonic() < until_s:
        for said in control.turn():
            if isinstance(said, Live | Decision) and answers_request(wish, said):
                return said
        time.sleep(_LOOK_S)
    raise Refused(
        f"the director didn't answer in {_ANSWER_S:.0f} s: see that it runs (`recsys status`); the wish "
        "stands on the log, and is granted once it does"
    )


def _whose(lifecycle: Lifecycle, answer: Decision | Live, before: int) -> str:
    """Whose answers are affected, as line/epoch."""
    if isinstance(answer, Live):
        left = lifecycle.lives[before - 1]
        return f"{left.line}/{left.epoch}"
    return f"{answer.line}/0"


def _say(log: Log, said: Control) -> None:
    log.append(CONTROL, [Append(0, b"", pack(said))])


@contextmanager
def with_system(state: Path) -> Iterator[tuple[Config, Log]]:
    """A system's configuration and log; what goes wrong is told in one line."""
    try:
        config, _ = plans.read(state)
        log = open_log(config)
        try:
            yield config, log
        finally:
            log.close()
    except (ValueError, FileNotFoundError, KeyError, LogLost, LogUnavailable) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
