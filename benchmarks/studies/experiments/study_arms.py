"""`recsys study arms`: bias of experiments whose arms change the training data."""

import json
from typing import Annotated, Any, Final

import numpy as np
import typer

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.experiments.arms_world import (
    ALONE,
    ESTIMATES,
    SHARED,
    ArmsWorld,
    Setting,
    biases,
)
from experiments.assignment.arm_line import DIVERTED, WEIGHTED

SETTINGS: Final = {
    "the same, 5 %": Setting(share=0.05, boost=0.0, users=800),
    "fresh first, 5 %": Setting(share=0.05, boost=0.3, users=800),
    "fresh first, 50 %": Setting(share=0.5, boost=0.3),
}


@study_command
def arms(
    seeds: Annotated[int, typer.Option(help="Worlds of each setting.")] = 6,
) -> dict[str, Any]:
    """Bias of an effect when arms share a line, and when each learns its own."""
    check_at_least(2, seeds=seeds)
    figures = measure(SETTINGS, seeds)
    typer.echo(f"\n{'bias of':<24}" + "".join(f"{how:>20}" for how in ESTIMATES))
    for name, setting_figures in figures["settings"].items():
        cells = [
            f"{setting_figures[how]['bias']:+.4f} ± {setting_figures[how]['error']:.4f}"
            for how in ESTIMATES
        ]
        typer.echo(f"{name:<24}" + "".join(f"{cell:>20}" for cell in cells))
    return figures


def measure(settings: dict[str, Setting], seeds: int) -> dict[str, Any]:
    """Means over worlds with standard errors. ``ratios``: bias of a corrected estimate relative to that of
    each naive one; None when the latter is 0."""
    figures: dict[str, Any] = {"seeds": seeds, "settings": {}}
    for name, setting in settings.items():
        runs = []
        for seed in range(seeds):
            runs.append(biases(ArmsWorld(seed, setting)))
            typer.echo(f"{name}, world {seed}: {json.dumps(runs[-1])}")
        setting_figures: dict[str, Any] = {"true": float(np.mean([run["true"] for run in runs]))}
        for how in ESTIMATES:
            values = [run[how] for run in runs]
            error = float(np.std(values, ddof=1) / len(values) ** 0.5)
            setting_figures[how] = {"bias": float(np.mean(values)), "error": error}
        for how in (DIVERTED, WEIGHTED):
            setting_figures[how]["ratios"] = {
                naive: abs(setting_figures[how]["bias"] / setting_figures[naive]["bias"])
                if setting_figures[naive]["bias"]
                else None
                for naive in (SHARED, ALONE)
            }
        figures["settings"][name] = setting_figures
    return figures
