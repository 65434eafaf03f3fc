"""``recsys accept int8 DATA``: measures the AUC cost of int8 rows, and decides whether to serve them."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from typer import Argument, Option

from plugins.row_formats.acceptance import Refuse, decide, write_accepted
from plugins.row_formats.measure import FORMATS, ROWS_PER_REQUEST, measure
from replay.datasets.dataset import DataError
from replay.datasets.open_dataset import open_dataset
from replay.replay_report import with_bar
from replay.replay_run import ReplayOptions
from runtime.cli.common import ConfigOption, JsonOption, StateOverride, exit_on, fail, show
from runtime.cli.up import with_definition
from runtime.supervision.acceptance_file import RowFormEvidence


def accept(
    form: Annotated[str, Argument(help="Row format: int8.")],
    data: Annotated[Path, Argument(help="Data set folder: KuaiRand or an event log.")],
    state: StateOverride = None,
    config: ConfigOption = "laptop",
    at_most: Annotated[float, Option(help="Largest accepted loss of AUC.")] = 0.001,
    app: Annotated[Path | None, Option(help="Definition; default: STATE's, if any.")] = None,
    json: JsonOption = None,
) -> None:
    """Measures the cost of a smaller row format, and accepts or refuses it for a state folder."""
    with exit_on(DataError, ValueError):
        if form != "int8":
            raise ValueError(f"the format is {form!r}, expected int8: there is no other to accept")
        if not at_most >= 0:
            raise ValueError(f"--at-most is {at_most}, expected 0 or more")
        base, definition, app = with_definition(config, state, app)
        options = ReplayOptions(base.model.features)
        evidence = measure(open_dataset(data, definition, app), options, base, with_bar)
        decision = decide(form, evidence, at_most)
    kind = {"decision": type(decision).__name__.lower()}
    show(kind | msgspec.to_builtins(decision), json, lambda _: _lines(evidence))
    if isinstance(decision, Refuse):
        fail(f"refused: {decision.why}")
        raise typer.Exit(1)
    file = write_accepted(base.state, decision)
    typer.echo(f"accepted, at most {at_most}: {file}")


def _lines(evidence: RowFormEvidence) -> list[str]:
    lines = [f"{evidence.data}: {evidence.rows:,} rows of {evidence.users:,} users"]
    for name in FORMATS:
        line = f"{name:>8}  AUC {evidence.auc[name]:.5f}  {evidence.bytes_a_row[name]:6.1f} bytes a row"
        if name in evidence.lookup_us:
            line += f"  {evidence.lookup_us[name]:6.1f} µs a lookup of {ROWS_PER_REQUEST}"
        lines.append(line)
    return [*lines, f"cost {evidence.cost:+.6f} ({evidence.low:+.6f} to {evidence.high:+.6f})"]
