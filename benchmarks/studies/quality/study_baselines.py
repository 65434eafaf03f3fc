"""`recsys study baselines DATA`: our system beside simple and common recommenders, on the same rows.

It replays our system once. Beside it online linear learners and nightly trees score the same requests, and
simple lists name the items that a viewer engages with next (replay/judging).
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.harness.commands import study_command
from benchmarks.studies.quality.sequence_baselines import SEQUENCE_MODELS, SequenceModel
from benchmarks.studies.quality.study_linear import Linear, linear_learners
from benchmarks.studies.quality.study_quality import LoopBeside, PlayerBeside
from recsys.app.app_file import read_app
from recsys.config.loader import load
from recsys.events.event_types import FeatureBlock
from recsys.features.feature_set import FeatureSet, RequestFeatures
from recsys.model.prediction_metrics import days
from replay.datasets.app_dataset import feature_set_of
from replay.datasets.dataset import Dataset
from replay.datasets.open_dataset import open_dataset
from replay.judging.answers import OURS
from replay.judging.retrieval_recall import probe_for
from replay.judging.simple_lists import SimpleList
from replay.predictions import build_report
from replay.replay_report import judged_rows, with_bar
from replay.replay_run import Outputs, Progress, ReplayOptions, config_for, replay_with
from runtime.jobs.time_option import parse_time
from runtime.reports.retrieval_tables import print_questions, retrieval_table
from runtime.reports.tables import plain_table

_COLUMNS: Final = ("auc", "lists.auc", "lists.ndcg@10", "lists.mrr", "log_loss", "calibration")
_ROWS: Final = 1_000_000  # newest examples that trees are grown from
_AT_LEAST: Final = 1_000


class NightlyTrees:
    """LightGBM with default settings over our numeric features, grown anew each midnight from all examples
    whose window had closed. Before the first night it predicts the base rate."""

    name = "LightGBM each night, all numbers"

    def __init__(self, utc_offset_h: float) -> None:
        self._utc_offset_h, self._day = utc_offset_h, -1
        self._dense: list[NDArray[np.float32]] = []
        self._labels: list[bool] = []
        self._trees: Any = None

    def move(self, now_ms: int) -> None:
        day = int(days([now_ms], self._utc_offset_h)[0])
        if day != self._day and len(self._labels) >= _AT_LEAST and len(set(self._labels)) == 2:
            self._grow()
        self._day = day

    def score(self, request: RequestFeatures) -> list[float]:
        if self._trees is None:
            rate = (sum(self._labels) + 1) / (len(self._labels) + 2)
            return [rate] * len(request.dense_NF)
        scores: list[float] = self._trees.predict(request.dense_NF, num_threads=1).tolist()
        return scores

    def learn(self, features: FeatureBlock, label: bool) -> None:
        self._dense.append(np.frombuffer(features.dense, np.float32))
        self._labels.append(label)

    def _grow(self) -> None:
        import lightgbm

        self._dense, self._labels = self._dense[-_ROWS:], self._labels[-_ROWS:]
        examples = lightgbm.Dataset(np.stack(self._dense), np.array(self._labels, np.float32))
        options = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": 0}
        self._trees = lightgbm.train(options, examples, num_boost_round=100)


def learners_for(features: FeatureSet, dataset: Dataset) -> list[Linear]:
    """Learners to compare with, as far as their packages are installed."""
    trees = importlib.util.find_spec("lightgbm") is not None and features.kind == "all"
    return [*linear_learners(features), *([NightlyTrees(dataset.utc_offset_h)] if trees else [])]


def measure_baselines(
    dataset: Dataset,
    options: ReplayOptions,
    config_name: str = "laptop",
    share: float = 1.0,
    progress: Progress = iter,
    others: Sequence[SimpleList] = (),
) -> dict[str, Any]:
    """Metrics of the judged rows by learner, and of retrieval by source and list. ``others``: further
    lists."""
    config = load(config_name, lambda base: config_for(dataset, options, base))
    features = feature_set_of(dataset, config)
    learners = learners_for(features, dataset)
    loop = LoopBeside(features, config)
    loop.others = learners
    player = PlayerBeside(features, config, loop, others=learners)
    outputs = Outputs(probe=probe_for(dataset, options, share, others=others))
    replayed = replay_with(player, dataset, options, progress, loop.digest, outputs)
    predictions, label = replayed.predictions, dataset.labels[0]
    truth = predictions.labels[label]
    scores = {OURS: predictions.scores[label]} | {
        name: np.array(column, np.float32) for name, column in player.learner_scores.items()
    }
    judged = replace(predictions, scores=scores, labels=dict.fromkeys(scores, truth)).rows(
        judged_rows(dataset, predictions, options.judge_from_ms)
    )
    report = build_report(judged, utc_offset_h=dataset.utc_offset_h, k=options.k)
    return {
        "data": dataset.name,
        "label": label,
        "rows": report["rows"],
        "ranking": report["labels"],
        "retrieval": replayed.retrieval,
    }


@study_command
def baselines(
    data: Annotated[Path, typer.Argument(help="A folder: KuaiRand, or an event log.")],
    app: Annotated[Path | None, typer.Option(help="Definition of the app, app.yaml.")] = None,
    config: Annotated[str, typer.Option(help="laptop, cluster, or a YAML file.")] = "laptop",
    judge_from: Annotated[
        str | None, typer.Option(help="Event time judged from; by default the later half.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Event time to stop before.")] = None,
    retrieval: Annotated[
        float, typer.Option(help="Share of the judged engagements whose retrieval is measured.")
    ] = 1.0,
    recbole: Annotated[
        bool, typer.Option(help="Also lists of RecBole's SASRec and GRU4Rec, trained on each day.")
    ] = False,
) -> dict[str, Any]:
    """Ranking and retrieval of our system beside simple and common others, on the same rows."""
    others = [SequenceModel(model) for model in SEQUENCE_MODELS if recbole]
    dataset = open_dataset(data, None if app is None else read_app(app), app)
    zone = dataset.utc_offset_h
    options = ReplayOptions(
        until_ms=parse_time(until, zone), judge_from_ms=parse_time(judge_from, zone)
    )
    figures = measure_baselines(dataset, options, config, retrieval, with_bar, others)
    rows = [(name, *_cells(measured)) for name, measured in figures["ranking"].items()]
    title = f"{figures['rows']:,} scores of {figures['label']}"
    console = Console()
    console.print(plain_table(("ranked by", *_COLUMNS), rows, title=title, right=_COLUMNS))
    if figures["retrieval"] is not None:
        console.print(retrieval_table(figures["retrieval"]))
        print_questions(console, figures["retrieval"])
    return figures


def _cells(measured: dict[str, Any]) -> list[str]:
    lists = {f"lists.{name}": value for name, value in measured["lists"].items()}
    values = [(measured | lists).get(name) for name in _COLUMNS]
    return ["–" if value is None else f"{value:.4f}" for value in values]
