"""`recsys merge`: a candidate between an offline one and what is live, for the system to judge."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.clock import wall_ms
from recsys.features.feature_set_file import feature_set
from runtime.cli.candidates import StateOption, propose_to, with_system
from training.candidates.registry import Registry, new_name
from training.lines.control import ControlReader
from training.merging.merge import Blend, Blends
from training.merging.merge_live import LiveMerge


def merge(
    name: Annotated[str, typer.Argument(help="A candidate that began from a snapshot of live.")],
    rare: Annotated[
        float, typer.Option(help="Live's share of a row that no example used since.")
    ] = 0.5,
    frequent: Annotated[
        float, typer.Option(help="Live's share of a row that many examples used since.")
    ] = 0.9,
    half: Annotated[
        float, typer.Option(help="Examples at which a row is half of the way between.")
    ] = 20.0,
    dense: Annotated[float, typer.Option(help="Live's share of the dense parameters.")] = 0.5,
    state: StateOption = Path("state"),
    registry: Annotated[
        Path | None, typer.Option(help="The registry's folder: STATE/registry without.")
    ] = None,
    propose: Annotated[bool, typer.Option(help="Have it judged at once.")] = False,
) -> None:
    """Interpolates an offline candidate with what live has learned since, into another candidate. Several
    weights may be proposed: all are judged on the same examples."""
    candidates = Registry((registry or state / "registry").resolve())
    with with_system(state) as (config, log):
        control, now_ms = ControlReader(log), wall_ms()
        control.turn()
        blends = Blends(Blend(rare, frequent, half), dense)
        live = LiveMerge(log, config, feature_set(config), control.lifecycle, now_ms)
        made = live.merge(candidates, name, blends, new_name("merged", now_ms))
        candidates.add(made.provenance, made.arrays, made.meta, made.step)
    new = made.provenance.name
    typer.echo(f"{new}: {name} with main, epoch {live.live.epoch}, as of step {made.step}")
    if propose:
        propose_to(state, new, candidates.folder)
        typer.echo(f"{new} is proposed: watch it with `recsys shadow --state {state} --watch`")
