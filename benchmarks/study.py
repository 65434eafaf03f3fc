"""``recsys study NAME``: measures the effect of parts of the design, mostly in the simulated world."""

import typer

from benchmarks.studies.experiments.study_experiments import experiments
from benchmarks.studies.league.study_league import league
from benchmarks.studies.poisoning.study_narrowed import narrowed
from benchmarks.studies.poisoning.study_poisoning import poisoning
from benchmarks.studies.promotion.study_promotion import promotion
from benchmarks.studies.promotion.study_student import student
from benchmarks.studies.quality.study_freshness import freshness
from benchmarks.studies.quality.study_quality import quality

study = typer.Typer(add_completion=False, no_args_is_help=True)
for command in (freshness, quality, league, promotion, student, experiments, poisoning, narrowed):
    study.command()(command)


@study.callback()
def _study() -> None:
    """Measures the effect of a part of the design."""
