"""`recsys study student`: loss of a narrower model, gain by its teacher, and serving cost."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, cast

import numpy as np
import torch
import typer

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.promotion.student_arms import Arms, ArmScores
from benchmarks.studies.quality.judged_days import judged_from_ms
from benchmarks.studies.quality.simulated_world_log import WorldLog
from benchmarks.studies.quality.study_figures import JudgedRows, draw_aucs, pair_of
from recsys.config.system_config import Config, ModelConfig
from recsys.features.feature_set import FeatureSet
from recsys.model.student_model import shown, student_model
from replay.datasets.dataset import Dataset
from replay.datasets.open_dataset import open_dataset
from replay.offline_examples import cache_dataset
from replay.replay_report import with_bar
from replay.replay_run import Progress, ReplayOptions, config_for
from training.offline.distill import SHARE, checked_share
from training.offline.examples import Examples, concatenated
from training.offline.loop import Plan

_SAMPLES: Final = 500  # draws of users
_REQUESTS: Final = 60
TEACHER, LARGE, ALONE, TAUGHT = "teacher", "as large, offline", "student, labels", "student, taught"
_WAYS: Final = ("learning", "frozen", "int8")  # as ``ArmScores`` names them
Found = dict[str, Any]


@study_command
def student(
    data: Annotated[str, typer.Argument(help="A folder, as for replay; or world, a drifting one.")],
    model: Annotated[
        str, typer.Option("--student", help="The student's model, as for `recsys offline`.")
    ] = "dim=8,hidden=64x32",
    share: Annotated[float, typer.Option("--teacher-share", help="Weight of the teacher's labels.")] = SHARE,
    seeds: Annotated[int, typer.Option(help="Runs with other initial values (and worlds).")] = 3,
    hours: Annotated[float, typer.Option(help="Duration of the world's log.")] = 72.0,
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs.")] = 3,
    step_examples: Annotated[int, typer.Option(help="Examples of a step.")] = 64,
) -> Found:
    """A student with and without its teacher beside models of full size: AUC, bytes, time to rank."""
    check_at_least(1, seeds=seeds, epochs=epochs, step_examples=step_examples)
    small = student_model(model, ModelConfig())
    plan = Plan(last=1, epochs=epochs, step_examples=step_examples)
    figures = measure_student(data, small, checked_share(share), plan, seeds, hours)
    for line in lines_of(figures):
        typer.echo(line)
    return figures


def measure_student(
    data: str,
    small: ModelConfig,
    share: float,
    plan: Plan,
    seeds: int,
    hours: float,
    progress: Progress = with_bar,
) -> Found:
    """Figures of all seeds. On a folder every seed is judged with the same bootstrap draws of its users."""
    torch.set_num_threads(1)  # sums and timings must not depend on the number of cores
    world, runs = data == "world", list[Found]()
    folder: Dataset | None = None if world else open_dataset(Path(data))
    examples: tuple[FeatureSet, Examples, int] | None = None
    for seed in range(seeds):
        dataset = cast(Dataset, WorldLog(seed, hours)) if folder is None else folder
        if world or examples is None:
            examples = examples_of(dataset, progress)
        runs.append(_run(*examples, small, share, plan, seed, seed if world else 0))
    return {
        "data": dataset.name,
        "label": dataset.labels[0],
        "student": {"dim": small.dim, "hidden": list(small.hidden), "share": share},
        "options": {"epochs": plan.epochs, "step_examples": plan.step_examples,
                    **({"hours": hours} if world else {})},
        "seeds": seeds,
        "rows": runs[0]["rows"],
        "learned": runs[0]["learned"],
        **_figures(runs),
    }  # fmt: skip


def examples_of(dataset: Dataset, progress: Progress) -> tuple[FeatureSet, Examples, int]:
    """All examples of a log in event time, and the number of the first that is judged."""
    options = ReplayOptions()
    config = config_for(dataset, options, Config())
    features = FeatureSet(dataset.schema, options.features, config.sessions.history)
    until_ms = 1 + max(event.time_ms for event in dataset.events())
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_dataset(dataset, Path(folder) / "examples", features, config, None, until_ms, progress)
        every = concatenated([cache.read(number) for number in range(len(cache))])
    first = int(np.searchsorted(every.time_ms, judged_from_ms(dataset)))
    if not 0 < first < len(every):
        raise ValueError(
            f"{dataset.name} has {first} examples before the judged days and {len(every) - first} on them, "
            "expected some of both: give a longer log"
        )
    return features, every, first


def _run(
    features: FeatureSet,
    every: Examples,
    first: int,
    small: ModelConfig,
    share: float,
    plan: Plan,
    seed: int,
    draws: int,
) -> Found:
    """One seed: bootstrapped scores of all arms, and their cost."""
    small = replace(small, features=features.kind, seed=seed)
    system = replace(ModelConfig(), features=features.kind, seed=seed)
    arms = Arms(features, system, every, first, plan, Config().step.lanes)
    trained = {
        LARGE: (system, arms.train(system)),
        ALONE: (small, arms.train(small)),
        TAUGHT: (small, arms.train(small, share)),
    }
    scores_by_arm = {arm: arms.judge(*model_and_arrays) for arm, model_and_arrays in trained.items()}
    names, scores = _scores(arms.teacher_NL[first:, 0], scores_by_arm)
    judged = every.take(slice(first, None))
    start = features.slot("user").start
    users = judged.user_keys.view(np.int64)[:, start].astype(str)
    labels = (judged.labels[:, 0] > 0.5).astype(np.int64)
    return {
        "names": names,
        "drawn": draw_aucs(JudgedRows(np.array(scores), labels, users), _SAMPLES, draws),
        "rows": len(judged),
        "learned": first,
        "cost": {arm: arms.cost(*trained[of], _REQUESTS) for arm, of in ((TEACHER, LARGE), (TAUGHT, TAUGHT))},
    }


def _scores(teacher_N: Any, scores_by_arm: dict[str, ArmScores]) -> tuple[list[tuple[str, str]], list[Any]]:
    """(arm, way) of each row of scores. The teacher always learns: it has no frozen scores."""
    names, scores = [(TEACHER, "learning")], [teacher_N]
    for arm, arm_scores in scores_by_arm.items():
        for way in _WAYS:
            names.append((arm, way))
            scores.append(getattr(arm_scores, way))
    return names, scores


def _figures(runs: list[Found]) -> Found:
    names = runs[0]["names"]
    points_RK = np.array([run["drawn"][0] for run in runs])
    drawn_SK = np.mean([run["drawn"][1] for run in runs], axis=0)

    def pair(a: tuple[str, str], b: tuple[str, str]) -> Found:
        i, k = names.index(a), names.index(b)
        moved = float(points_RK[:, k].mean() - points_RK[:, i].mean())
        return pair_of(", ".join(a), ", ".join(b), moved, drawn_SK[:, k] - drawn_SK[:, i])

    costs: list[Found] = []
    for arm in runs[0]["cost"]:
        arm_costs = [run["cost"][arm] for run in runs]
        costs.append(
            {
                "arm": arm,
                "bytes_a_row": round(float(np.mean([c.row_bytes for c in arm_costs])), 1),
                "mib": round(float(np.mean([c.bytes for c in arm_costs])) / 2**20, 2),
                "rank_300_us": round(float(np.median([c.rank_us for c in arm_costs]))),
            }
        )
    return {
        "aucs": [
            {"arm": arm, "way": way, "auc": round(float(points_RK[:, k].mean()), 5),
             "auc_by_seed": [round(float(x), 5) for x in points_RK[:, k]]}
            for k, (arm, way) in enumerate(names)
        ],
        "pairs": [
            pair((ALONE, "learning"), (TAUGHT, "learning")),
            pair((ALONE, "frozen"), (TAUGHT, "frozen")),
            pair((LARGE, "frozen"), (TAUGHT, "frozen")),
            pair((TEACHER, "learning"), (TAUGHT, "learning")),
            pair((TAUGHT, "frozen"), (TAUGHT, "int8")),
            pair((LARGE, "frozen"), (LARGE, "int8")),
        ],
        "costs": costs,
    }  # fmt: skip


def lines_of(figures: Found) -> list[str]:
    """The figures as lines of text."""
    student = figures["student"]
    lines = [
        f"{figures['data']}: {figures['learned']} examples learned, {figures['rows']} judged; student: dim "
        f"{student['dim']}, hidden {shown(student['hidden'])}, the teacher's share {student['share']:g}"
    ]
    aucs = {(row["arm"], row["way"]): row["auc"] for row in figures["aucs"]}
    for arm in dict.fromkeys(arm for arm, _ in aucs):
        ways = [f"{way} {aucs[arm, way]:.4f}" for way in _WAYS if (arm, way) in aucs]
        lines.append(f"{arm:>18}  AUC {', '.join(ways)}")
    lines += [
        f"  {pair['to']} − {pair['from']}: {pair['difference']:+.4f} "
        f"({pair['low']:+.4f} to {pair['high']:+.4f}), {pair['said']}"
        for pair in figures["pairs"]
    ]
    return lines + [
        f"{cost['arm']:>18}  {cost['bytes_a_row']} bytes a row, {cost['mib']} MiB, "
        f"{cost['rank_300_us']} µs to rank 300"
        for cost in figures["costs"]
    ]
