"""``recsys counterfactual``: the plug-in command."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from plugins.off_policy.report import estimate_lines, estimate_policy
from runtime.cli.common import JsonOption, exit_on, show


def counterfactual(
    file: Annotated[Path, Argument(metavar="POLICY.yaml", help="The policy: overrides, reward.")],
    state: Annotated[Path | None, Option(help="State folder; default: the file's.")] = None,
    lists: Annotated[int, Option(help="Maximum number of lists, hashed by user.")] = 5_000,
    alpha: Annotated[float, Option(help="Confidence level of intervals is 1 - α.")] = 0.05,
    json: JsonOption = None,
) -> None:
    """Estimates what another policy would have earned.

    Exit status 0: estimated; 1: the log can't answer, and why; 2: invalid input.
    """
    with exit_on():
        if lists < 1:
            raise ValueError(f"--lists is {lists}, expected 1 or more")
        if not 0 < alpha < 0.5:
            raise ValueError(f"--alpha is {alpha}, expected a probability between 0 and 0.5")
        values = estimate_policy(file, state, lists, alpha)
    show(values, json, estimate_lines)
    raise typer.Exit(1 if values["refused"] else 0)
