"""`recsys study freshness DATA|world`: AUC as a function of the sync interval of a replica."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import typer

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.quality.judged_days import judged_from_ms
from benchmarks.studies.quality.parameter_copies import Copy, SideBySide
from benchmarks.studies.quality.simulated_world_log import WorldLog
from benchmarks.studies.quality.study_figures import JudgedRows, draw_aucs, figures
from parameter_server.publish.deltas import StepDelta
from recsys.config.system_config import Config, ModelConfig
from recsys.features.feature_set import FeatureSet
from replay.datasets.dataset import Dataset
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.replay_report import with_bar
from replay.replay_run import Progress, ReplayOptions, config_for, replay_with

_SAMPLES: Final = 500  # bootstrap draws of users
_MINUTE_MS: Final = 60_000
# From the stalest to the freshest: neighbours are compared.
_EVERY_MS: Final = (
    ("1 day", 24 * 60 * _MINUTE_MS),
    ("5 h", 300 * _MINUTE_MS),
    ("1 h", 60 * _MINUTE_MS),
    ("30 min", 30 * _MINUTE_MS),
    ("1 min", _MINUTE_MS),
    ("each step", 0),
)


@dataclass(frozen=True)
class Sync:
    """Sync schedule of a copy: at multiples of ``every_ms`` (0: at each step), without steps whose examples
    closed at ``frozen_after_ms`` or later."""

    name: str
    every_ms: int = 0
    frozen_after_ms: int | None = None


class SyncedCopy(Copy):
    """Copy with the parameters that a replica with a sync schedule would have."""

    def __init__(self, features: FeatureSet, config: Config, sync: Sync) -> None:
        super().__init__(features, config)
        self._sync, self._frozen = sync, False
        self._held: list[StepDelta] = []

    def advance(self, deltas: Sequence[StepDelta], before_ms: int, now_ms: int) -> None:
        until_ms, every_ms = self._sync.frozen_after_ms, self._sync.every_ms
        for delta in deltas:
            self._frozen = self._frozen or (until_ms is not None and delta.time_ms >= until_ms)
            if not self._frozen:
                self._held.append(delta)
        if self._held and (not every_ms or before_ms // every_ms != now_ms // every_ms):
            super().advance(self._held, before_ms, now_ms)
            self._held.clear()


def syncs_of(frozen_after_ms: int) -> list[Sync]:
    """The compared sync schedules, from the stalest to the freshest."""
    return [Sync("frozen", 0, frozen_after_ms), *(Sync(name, ms) for name, ms in _EVERY_MS)]


def judge(
    dataset: Dataset, options: ReplayOptions, seed: int, progress: Progress = iter
) -> tuple[JudgedRows, int]:
    """One replay with all sync schedules side by side: the judged rows, and the number of learned steps.

    ``seed``: of the model's initial values.
    """
    from_ms = judged_from_ms(dataset)
    config = config_for(dataset, options, Config(model=ModelConfig(seed=seed)))
    features = FeatureSet(dataset.schema, options.features, config.sessions.history)
    loop = DirectLoop(features, config)
    copies = [SyncedCopy(features, config, sync) for sync in syncs_of(from_ms)]
    player = SideBySide(features, config, loop, copies=copies)
    rows = replay_with(player, dataset, options, progress, loop.digest).predictions
    judged_N = np.asarray(rows.time_ms) >= from_ms
    judged = JudgedRows(
        np.array([copy.scores()[judged_N] for copy in player.copies]),
        np.asarray(rows.labels[dataset.labels[0]])[judged_N],
        np.array([str(user) for user in rows.user_id])[judged_N],
    )
    return judged, loop.sequencer.step


@study_command
def freshness(
    data: Annotated[str, typer.Argument(help="A folder as for replay; or world, a drifting one.")],
    features: Annotated[str, typer.Option(help="ids, ids+history or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Runs with other initial values (and worlds).")] = 5,
    hours: Annotated[float, typer.Option(help="Duration of the world's log.")] = 72.0,
    step_examples: Annotated[int, typer.Option(help="Examples in a step, at most.")] = 64,
    step_every: Annotated[float, typer.Option(help="Longest wait of an example, event s.")] = 600.0,
) -> dict[str, Any]:
    """AUC as a function of the sync interval of a replica."""
    check_at_least(1, seeds=seeds)
    options = ReplayOptions(
        ModelConfig(features=features).features, step_examples=step_examples, step_every_s=step_every
    )
    result = measure(data, options, seeds, hours)
    for sync in result["syncs"]:
        typer.echo(f"{sync['sync']:>10}  AUC {sync['auc']:.4f}")
    for pair in result["pairs"]:
        typer.echo(
            f"{pair['from']} → {pair['to']}: {pair['difference']:+.4f} "
            f"({pair['low']:+.4f} to {pair['high']:+.4f}), {pair['said']}"
        )
    return result


def measure(
    data: str, options: ReplayOptions, seeds: int, hours: float, progress: Progress = with_bar
) -> dict[str, Any]:
    """Figures of all seeds. On a folder every seed is judged with the same bootstrap draws of its users."""
    drawn, steps, world = [], [], data == "world"
    dataset: Dataset = WorldLog(0, hours) if world else open_dataset(data)
    for seed in range(seeds):
        if world:
            dataset = WorldLog(seed, hours)
        judged, learned = judge(dataset, options, seed, progress)
        drawn.append(draw_aucs(judged, _SAMPLES, seed if world else 0))
        steps.append(learned)
    return {
        "data": dataset.name,
        "label": dataset.labels[0],
        "options": {"features": options.features, "step_examples": options.step_examples,
                    "step_every_s": options.step_every_s, **({"hours": hours} if world else {})},
        "seeds": list(range(seeds)),
        "steps": steps,
        "rows": judged.labels_N.size,
        "users": len(np.unique(judged.users_N)),
        "samples": _SAMPLES,
        **figures([sync.name for sync in syncs_of(0)], drawn),
    }  # fmt: skip
