"""``recsys study NAME``: measures the effect of parts of the design, mostly in the simulated world."""

import typer

from benchmarks.studies.drift.study_drift import drift
from benchmarks.studies.drift.study_forgetting import forgetting
from benchmarks.studies.experiments.study_arms import arms
from benchmarks.studies.experiments.study_counterfactual import counterfactual
from benchmarks.studies.experiments.study_experiments import experiments
from benchmarks.studies.experiments.study_interleaving import interleaving
from benchmarks.studies.league.study_league import league
from benchmarks.studies.poisoning.study_narrowed import narrowed
from benchmarks.studies.poisoning.study_poisoning import poisoning
from benchmarks.studies.promotion.study_broken import broken
from benchmarks.studies.promotion.study_compression import compression
from benchmarks.studies.promotion.study_promotion import promotion
from benchmarks.studies.promotion.study_student import student
from benchmarks.studies.quality.study_coldstart import coldstart
from benchmarks.studies.quality.study_freshness import freshness
from benchmarks.studies.quality.study_quality import quality
from benchmarks.studies.quality.study_reading import reading

study = typer.Typer(add_completion=False, no_args_is_help=True)
for command in (
    freshness, quality, league, coldstart, promotion, broken, forgetting, drift, student, arms,
    experiments, counterfactual, interleaving, poisoning, narrowed, compression, reading,
):  # fmt: skip
    study.command()(command)


@study.callback()
def _study() -> None:
    """Measures the effect of a part of the design."""
