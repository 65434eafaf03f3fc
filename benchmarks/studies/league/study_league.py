"""`recsys study league LOG…`: our system beside simple and common recommenders, log by log, on the same rows.

Each log is replayed once. Beside it online linear learners and nightly trees score the lists that the log
has, and simple lists name the items that a viewer engages with next (replay/judging).
"""

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import ArrayLike, NDArray
from rich.console import Console

from benchmarks.harness.commands import study_command
from benchmarks.studies.league.league_logs import LOGS
from benchmarks.studies.league.sequence_baselines import SEQUENCE_MODELS, SequenceModel
from benchmarks.studies.quality.study_linear import Linear, linear_learners
from benchmarks.studies.quality.study_quality import LoopBeside, PlayerBeside
from recsys.app.app_file import read_app
from recsys.config.loader import load
from recsys.events.event_types import Engagement, FeatureBlock, Impression
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from recsys.model.prediction_metrics import auc_by_group, days
from replay.datasets.app_dataset import feature_set_of
from replay.datasets.dataset import Dataset
from replay.datasets.open_dataset import open_dataset
from replay.judging.answers import AT_LEAST, HIT, OURS, QuestionedAnswers, user_intervals, verdict_of
from replay.judging.questions import FIRST, NEXT
from replay.judging.retrieval_recall import RetrievalRecall, probe_for
from replay.judging.simple_lists import SimpleList
from replay.player import Player
from replay.predictions import Predictions, build_report, compare
from replay.replay_report import judged_rows, with_bar
from replay.replay_run import Outputs, Progress, ReplayOptions, config_for, replay_with
from runtime.jobs.time_option import parse_time
from runtime.reports.retrieval_tables import plus_minus, print_questions, retrieval_table
from runtime.reports.tables import plain_table

RANKED: Final = "lists"  # the order of the log's lists
SCORED: Final = "items"  # the chance of each shown item
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
    """Learners to compare with, as far as their packages are installed. None where the log has no lists."""
    if dataset.schema.shown_by == "click":
        return []
    trees = importlib.util.find_spec("lightgbm") is not None and features.kind == "all"
    return [*linear_learners(features), *([NightlyTrees(dataset.utc_offset_h)] if trees else [])]


@dataclass(frozen=True)
class Measured:
    """Figures of a log, and what they are of: our scores and the others' of the judged rows, and all answers
    to the questions."""

    figures: dict[str, Any]
    judged: Predictions
    answers: QuestionedAnswers | None


def measure_log(
    dataset: Dataset,
    options: ReplayOptions,
    *,
    share: float = 1.0,
    cases: int | None = None,
    others: Sequence[SimpleList] = (),
    progress: Progress = iter,
) -> Measured:
    """Metrics of the judged rows by learner, those of retrieval by source and list, and ``contests``: what
    our system is compared in, with the best other. ``others``: further lists."""
    config = load("laptop", lambda base: config_for(dataset, options, base))
    features = feature_set_of(dataset, config)
    learners = learners_for(features, dataset)
    loop = LoopBeside(features, config)
    loop.others = learners
    player = PlayerBeside(features, config, loop, others=learners)
    made, probes = probe_for(dataset, options, share, cases, others), list[RetrievalRecall]()

    def probe(player: Player) -> RetrievalRecall:
        assert made is not None
        probes.append(made(player))
        return probes[0]

    outputs = Outputs(probe=probe if made else None)
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
    figures = {
        "data": dataset.name,
        "label": label,
        "rows": report["rows"],
        "ranking": report["labels"],
        "retrieval": replayed.retrieval,
        "contests": [
            *_question_contests(replayed.retrieval or {"questions": {}}),
            *_ranking_contests(judged, report["labels"]),
        ],
    }
    return Measured(figures, judged, probes[0].answers if probes else None)


def worth_of(name: str, whole: Measured, without: Measured) -> Iterator[dict[str, Any]]:
    """Differences of our figures with a part of the definition to those without it."""
    compared = compare(_one(whole.judged, OURS), _one(without.judged, OURS), SCORED)
    yield {"part": name, "of": SCORED, "metric": "auc", "cases": compared["rows"]} | {
        key: None if compared[key] is None else round(compared[key], 4)
        for key in ("difference", "low", "high")
    }
    if whole.answers is None or without.answers is None:
        return
    for question in (NEXT, FIRST):
        one, other = (each.by_question[question] for each in (whole.answers, without.answers))
        difference, low, high = one.difference(other)
        yield {
            "part": name, "of": question, "metric": HIT, "cases": len(one),
            "difference": difference, "low": low, "high": high,
        }  # fmt: skip


def _question_contests(retrieval: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Our lists beside the best simple one, by question with enough cases."""
    for question, measured in retrieval["questions"].items():
        verdict = measured["verdict"]
        if verdict["verdict"] is not None:
            yield {"contest": question, "ours": measured["ours"][HIT]} | verdict


def _ranking_contests(judged: Predictions, ranking: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Our scores beside those of the best learner: over all rows, and within lists of several items."""
    others = [name for name in ranking if name != OURS and ranking[name]["auc"] is not None]
    if not others or ranking[OURS]["auc"] is None:
        return
    best = max(others, key=lambda name: ranking[name]["auc"])
    compared = compare(_one(judged, OURS), _one(judged, best), SCORED)
    yield _contest(
        SCORED, "auc", ranking[OURS]["auc"], best, compared["rows"],
        compared["difference"], compared["low"], compared["high"],
    )  # fmt: skip
    if ranking[OURS]["lists"]["requests"] < AT_LEAST:
        return
    best = max(others, key=lambda name: ranking[name]["lists"]["auc"])
    requests = [*map(str, judged.request_id)]
    (own, ours, _), (_, others_aucs, _) = (
        auc_by_group(judged.scores[name], judged.labels[name], requests) for name in (OURS, best)
    )
    differences = ours - others_aucs
    user_of = dict(zip(requests, map(str, judged.user_id), strict=True))
    users = np.unique([user_of[request] for request in own], return_inverse=True)[1]
    low, high = user_intervals(users, differences[:, None])
    yield _contest(
        RANKED, "AUC in a list", float(ours.mean()), best, len(own), float(differences.mean()),
        float(low[0]), float(high[0]),
    )  # fmt: skip


def _one(judged: Predictions, name: str) -> Predictions:
    def under(columns: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
        return {SCORED: columns[name]}

    return replace(judged, scores=under(judged.scores), labels=under(judged.labels))


def _contest(
    name: str, metric: str, ours: float, best: str, cases: int, difference: float, low: float, high: float
) -> dict[str, Any]:
    return {
        "contest": name, "ours": round(ours, 4), "verdict": verdict_of(low, high), "best": best,
        "metric": metric, "difference": round(difference, 4),
        "interval": [round(low, 4), round(high, 4)], "cases": cases,
    }  # fmt: skip


def options_of(
    dataset: Dataset, rows: int | None, judge_from: str | None, until: str | None
) -> ReplayOptions:
    """Options of a log's replay. ``rows``: impressions, and engagements without one, after which it stops."""
    zone = dataset.utc_offset_h
    until_ms = parse_time(until, zone)
    if rows is not None:
        own = (
            event.time_ms
            for event in dataset.events(until_ms=until_ms)
            if isinstance(event, Impression)
            or (isinstance(event, Engagement) and dataset.schema.shown_by == "click")
        )
        until_ms = next(islice(own, rows, None), until_ms)
    return ReplayOptions(until_ms=until_ms, judge_from_ms=parse_time(judge_from, zone))


@study_command
def league(
    logs: Annotated[
        list[str], typer.Argument(help=f"Folders with app.yaml, FOLDER=APP.YAML, or {', '.join(LOGS)}.")
    ],
    rows: Annotated[int | None, typer.Option(help="Rows of each log after which it stops.")] = None,
    judge_from: Annotated[
        str | None, typer.Option(help="Event time judged from; by default the later half.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Event time to stop before.")] = None,
    retrieval: Annotated[
        float, typer.Option(help="Share of the judged engagements whose retrieval is measured.")
    ] = 1.0,
    cases: Annotated[int | None, typer.Option(help="Cases of each question, at most about so many.")] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Also replays each log without this feature, e.g. near, trend or whole_list."),
    ] = None,
    recbole: Annotated[
        bool, typer.Option(help="Also lists of RecBole's SASRec and GRU4Rec, trained on each day.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of simulated logs.")] = 0,
) -> Iterator[dict[str, Any]]:
    """Ranking and retrieval of our system beside simple and common others, log by log; losses first."""
    console, figures = Console(), dict[str, Any]()
    names = [declared.name for declared in fields(Declared)]
    if unknown := set(without or ()) - set(names):
        raise ValueError(f"--without is {min(unknown)!r}, expected one of: {', '.join(names)}")
    for log in logs:
        others = [SequenceModel(model) for model in SEQUENCE_MODELS if recbole]
        with tempfile.TemporaryDirectory() if log in LOGS else nullcontext(log) as folder:
            if log in LOGS:
                LOGS[log](Path(folder), seed)
            dataset = _open(str(folder))
            options = options_of(dataset, rows, judge_from, until)
            measure = partial(measure_log, options=options, share=retrieval, cases=cases, progress=with_bar)
            whole = measure(dataset, others=others)
            figures_of_log = whole.figures | {"worth": []}
            for name in without or ():
                less = measure(_open(str(folder), name))
                figures_of_log["worth"] += worth_of(name, whole, less)
        log = log if log in LOGS else Path(log.partition("=")[0]).resolve().name
        _print_log(console, log, figures_of_log)
        figures[log] = figures_of_log
        yield {"logs": figures}
    console.print(league_table(figures))


def _open(log: str, without: str = "") -> Dataset:
    """The log of a folder, or of FOLDER=APP.YAML. ``without``: a feature's name."""
    folder, _, name = log.partition("=")
    file = Path(name) if name else Path(folder) / "app.yaml"
    app = read_app(file) if name or file.exists() else None
    if without and app is None:
        raise ValueError(f"--without is {without!r}, but {log} has no definition: name one, FOLDER=APP.YAML")
    if without and app is not None:
        app = replace(app, features=replace(app.features, **{without: getattr(Declared, without)}))
    return open_dataset(folder, app, None if app is None else file)


def _print_log(console: Console, log: str, figures_of_log: Mapping[str, Any]) -> None:
    rows = [(name, *_cells(measured)) for name, measured in figures_of_log["ranking"].items()]
    title = f"{log}: {figures_of_log['rows']:,} scores of {figures_of_log['label']}"
    console.print(plain_table(("ranked by", *_COLUMNS), rows, title=title, right=_COLUMNS))
    if figures_of_log["retrieval"] is not None:
        console.print(retrieval_table(figures_of_log["retrieval"]))
        print_questions(console, figures_of_log["retrieval"])
    rows = [
        (
            one["part"],
            one["of"],
            f"{one['cases']:,}",
            one["metric"],
            "–" if one["difference"] is None else plus_minus(one["difference"], one["low"], one["high"]),
        )
        for one in figures_of_log["worth"]
    ]
    if rows:
        console.print(plain_table(("part", "of", "cases", "metric", "worth"), rows))


def league_table(figures: Mapping[str, Any]) -> Any:
    """All contests, the greatest loss first: in shares of the best other's figure."""
    contests = [(log, one) for log, figures_of_log in figures.items() for one in figures_of_log["contests"]]
    contests.sort(key=lambda pair: _ahead(pair[1]))
    names = ("log", "of", "cases", "metric", "ours", "ahead", "difference", "best other")
    lines = [
        (log, one["contest"], f"{one['cases']:,}", one["metric"], f"{one['ours']:.3f}",
         f"{_ahead(one):+.0%}", plus_minus(one["difference"], *one["interval"]), one["best"])
        for log, one in contests
    ]  # fmt: skip
    return plain_table(names, lines, right=names[2:7:2])


def _ahead(contest: Mapping[str, Any]) -> float:
    best = contest["ours"] - contest["difference"]
    return contest["difference"] / best if best > 0 else np.inf if contest["ours"] else 0.0


def _cells(measured: dict[str, Any]) -> list[str]:
    lists = {f"lists.{name}": value for name, value in measured["lists"].items()}
    values = [(measured | lists).get(name) for name in _COLUMNS]
    return ["–" if value is None else f"{value:.4f}" for value in values]
