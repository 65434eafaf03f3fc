"""``recsys merge``: the plug-in command."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from examples.merging.merge import Blend, Blends
from examples.merging.merge_live import LiveMerge
from recsys.clock import wall_ms
from recsys.features.feature_set_file import feature_set
from runtime.cli.candidates import propose_to
from runtime.cli.common import RegistryOption, StateOption, with_system
from training.candidates.registry import Registry, new_name
from training.lines.control import ControlReader


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
    candidates = Registry((registry or state / "registry").resolve())
    with with_system(state) as (config, log):
        control, now_ms = ControlReader(log), wall_ms()
        control.turn()
        blends = Blends(Blend(rare, frequent, half), dense)
        live = LiveMerge(log, config, feature_set(config), control.lifecycle, now_ms)
        new = new_name("merged", now_ms)
        live.merge(candidates, name, blends, new)
    typer.echo(f"{new}: {name} with main, epoch {live.live.epoch}, as of step {live.live.step}")
    if propose:
        propose_to(state, new, candidates.folder)
