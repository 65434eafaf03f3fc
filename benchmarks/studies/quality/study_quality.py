"""`recsys study quality DATA`: ablations of the learner, and comparators on the same log.

Our model is replayed whole, and again with one idea removed at a time. In the first replay online linear
learners score the same requests. All are judged on the same rows (docs/explanation/quality.md).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from benchmarks.harness.commands import study_command
from benchmarks.studies.quality.judged_days import judged_from_ms
from benchmarks.studies.quality.study_linear import Linear, linear_learners
from recsys.config.system_config import Config
from recsys.events.event_types import Impression
from recsys.events.records import Example
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from recsys.model.prediction_metrics import auc
from replay.datasets.dataset import Dataset
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.player import Player
from replay.predictions import Predictions, compare
from replay.replay_report import judged_rows, slices_of, with_bar
from replay.replay_run import Progress, ReplayOptions, ReplayResult, config_for, replay_with
from training.joining.joiner import Joined

WHOLE: Final = "all"
ABSENT: Final = "not installed: pip install 'recsys-swipe[bench]'"


@dataclass(frozen=True)
class Variant:
    """Our model with a change: ``options`` of the replay, ``model`` of the configuration."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def variants(frozen_after_ms: int) -> list[Variant]:
    """The whole model first, then its ablations, one at a time."""
    return [
        Variant(WHOLE),
        Variant("newest dense parameters", model={"dense_average": 0.0}),
        Variant("no warm-up", {"warm_up": False}),
        Variant("one label", model={"side_weight": 0.0}),
        Variant("frozen", {"frozen_after_ms": frozen_after_ms}),
        Variant("ids+history", {"features": "ids+history"}),
        Variant("ids", {"features": "ids"}),
        Variant("ids, frozen", {"features": "ids", "frozen_after_ms": frozen_after_ms}),
    ]


class LoopBeside(DirectLoop):
    """Loop that passes every example to the other learners as soon as the joiner emits it."""

    others: Sequence[Linear] = ()

    def _arrive(self, examples: Iterable[Joined], now_ms: int) -> None:
        arrived = list(examples)
        for example in arrived:
            if isinstance(example, Example) and example.features and not example.correction:
                for learner in self.others:
                    learner.learn(example.features, bool(example.labels[0]))
        super()._arrive(arrived, now_ms)


@dataclass
class PlayerBeside(Player):
    """Player that collects the other learners' scores when it makes an impression."""

    others: Sequence[Linear] = ()
    learner_scores: dict[str, list[float]] = field(default_factory=dict)

    def _as_served(self, event: Impression, features: RequestFeatures) -> Impression:
        for learner in self.others:
            learner.move(event.time_ms)
            self.learner_scores.setdefault(learner.name, []).extend(learner.score(features))
        return super()._as_served(event, features)


def measure_quality(
    dataset: Dataset,
    options: ReplayOptions,
    chosen: Sequence[str] = (),
    progress: Progress = iter,
    learners: Callable[[FeatureSet], list[Linear]] = linear_learners,
) -> dict[str, Any]:
    """Figures of the whole model, of the other learners, and of the ``chosen`` variants (none named: all).

    Raises ValueError for an unknown variant.
    """
    all_variants = variants(judged_from_ms(dataset))
    names = [variant.name for variant in all_variants]
    for name in chosen:
        if name not in names:
            raise ValueError(f"--only is {name!r}, expected one of: {', '.join(names)}")
    whole, learner_scores = _replay(dataset, options, all_variants[0], progress, learners)
    label, rows = dataset.labels[0], []
    rows.append(_row(WHOLE, dataset, whole, None))
    for name, scores in learner_scores.items():
        predictions = replace(whole.predictions, scores={label: np.array(scores, np.float32)},
                        labels={label: whole.predictions.labels[label]})  # fmt: skip
        rows.append(_row(name, dataset, replace(whole, predictions=predictions), whole))
    for variant in all_variants[1:]:
        if not chosen or variant.name in chosen:
            replayed, _ = _replay(dataset, options, variant, progress, lambda features: [])
            rows.append(_row(variant.name, dataset, replayed, whole))
    return {
        "data": dataset.name,
        "label": label,
        "others": "there" if learner_scores else ABSENT,
        "rows": rows,
    }


def _replay(
    dataset: Dataset,
    options: ReplayOptions,
    variant: Variant,
    progress: Progress,
    learners: Callable[[FeatureSet], list[Linear]],
) -> tuple[ReplayResult, dict[str, list[float]]]:
    own = replace(options, **variant.options)
    base = Config()
    config = config_for(dataset, own, replace(base, model=replace(base.model, **variant.model)))
    features = FeatureSet(dataset.schema, own.features, config.sessions.history)
    others = learners(features)
    loop = LoopBeside(features, config, own.frozen_after_ms)
    loop.others = others
    player = PlayerBeside(features, config, loop, others=others)
    return replay_with(player, dataset, own, progress, loop.digest), player.learner_scores


def _row(name: str, dataset: Dataset, replayed: ReplayResult, whole: ReplayResult | None) -> dict[str, Any]:
    """AUC and calibration of the judged rows and of their commonest context, with the difference to the whole
    model."""
    label = dataset.labels[0]
    scores = np.asarray(replayed.predictions.scores[label], np.float64)
    happened = np.asarray(replayed.predictions.labels[label], np.float64)
    test, *slices = slices_of(dataset, replayed).items()
    mask = test[1]
    row: dict[str, Any] = {
        "name": name,
        "rows": int(mask.sum()),
        "auc": round(auc(scores[mask], happened[mask]), 5),
        "calibration": round(float(scores[mask].sum() / happened[mask].sum()), 4),
    }
    for where, part in slices[:1]:
        row["slice"] = where
        row["slice_auc"] = round(auc(scores[part], happened[part]), 5)
    if whole is not None:
        row["to_whole"] = _difference(dataset, replayed.predictions, whole.predictions, label)
    return row


def _difference(
    dataset: Dataset, predictions: Predictions, whole: Predictions, label: str
) -> dict[str, float]:
    """AUC difference to the whole model, with its user-bootstrap interval."""
    comparison = compare(
        predictions.rows(judged_rows(dataset, predictions)), whole.rows(judged_rows(dataset, whole)), label
    )
    return {name: round(comparison[name], 5) for name in ("difference", "low", "high")}


@study_command
def quality(
    data: Annotated[Path, typer.Argument(help="A folder: KuaiRand, or an event log.")],
    only: Annotated[
        list[str] | None, typer.Option(help="Only this variant (may be given more than once).")
    ] = None,
) -> dict[str, Any]:
    """AUC of our model, of its ablations, and of online linear learners."""
    figures = measure_quality(open_dataset(data), ReplayOptions(), only or (), with_bar)
    for row in figures["rows"]:
        typer.echo(_line(row))
    if figures["others"] != "there":
        typer.echo(f"Vowpal Wabbit and River: {figures['others']}")
    return figures


def _line(row: dict[str, Any]) -> str:
    text = f"{row['name']:>27}  AUC {row['auc']:.4f}"
    if "slice" in row:
        text += f"  {row['slice']} {row['slice_auc']:.4f}"
    text += f"  calibration {row['calibration']:.3f}"
    if "to_whole" in row:
        difference = row["to_whole"]
        text += f"  {difference['difference']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
    return text
