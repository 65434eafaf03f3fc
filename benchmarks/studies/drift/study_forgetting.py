"""`recsys study forgetting`: tastes are A, then B, then A again; measures what is left of A on return.

Two quantities are judged. *Memory*: a panel of examples of the first A, with their features as served, scored
at the end of A and at the end of B: the forgetting of the weights. *On return*: predictions in the first
window of the second A, where the viewers' sessions and counters are still full of B, which weights can't know
to be over. Windows differ in predictability, so beside each AUC stands that of the true probabilities on the
same rows (``ceiling``). A variant keeps past states and mixes their predictions with the live one
(``kept_states``). Lists don't depend on a model, so both are judged on the same rows.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.harness.commands import study_command
from benchmarks.studies.drift.kept_states import MOST_STATES, KeepingPlayer, mixed
from benchmarks.studies.drift.world_aba import WorldABA
from benchmarks.studies.quality.simulated_world_log import WorldLog
from examples.short_video.world import World
from parameter_server.publish.deltas import StepDelta
from recsys.config.system_config import Config, ModelConfig
from recsys.events.hashing import uniform
from recsys.events.records import EXAMPLES, Example, TrainingExample, unpack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import read_range
from recsys.model.model import build_model
from recsys.model.prediction_metrics import auc, log_loss
from replay.direct_loop import DirectLoop
from replay.predictions import Predictions
from replay.replay_run import ReplayOptions, config_for, replay_with
from training.continual.learner import Learner

_HOUR_MS: Final = 3_600_000
_KEPT: Final = 0.95  # of A's AUC, the goal on return
_OF_WINDOW: Final = 512  # examples of a window, half of them in the panel


@dataclass
class WorldABALog(WorldLog):
    """Log of a world that changes and changes back."""

    change: str = "tastes"

    def world(self) -> World:
        phase_ms = round(self.hours * _HOUR_MS / 3)
        return WorldABA(
            self.seed,
            self.users,
            self.items,
            phase_ms=phase_ms,
            change=self.change,
            publish_every_s=900.0,
            requests_per_s=self.requests_per_s,
        )


class PanelLoop(DirectLoop):
    """Loop that scores a panel of the examples before ``exams[0]``, then and at each later one."""

    def __init__(self, features: FeatureSet, config: Config, window_ms: int) -> None:
        super().__init__(features, config)
        for partition in range(config.log.partitions):
            self.log.hold("panel", EXAMPLES, partition, 0)
        self._learner = Learner(build_model(features, config.model))
        self._window_ms = window_ms
        self.exams: list[int] = []
        self.memory: list[float] = []  # AUC of the first label, at each exam
        self._panel: list[TrainingExample] = []

    def advance(self, now_ms: int) -> list[StepDelta]:
        deltas = super().advance(now_ms)
        if len(self.memory) < len(self.exams) and now_ms >= self.exams[len(self.memory)]:
            self._panel = self._panel or self._drawn()
            self.memory.append(self._score())
        return deltas

    def _drawn(self) -> list[TrainingExample]:
        """About ``_OF_WINDOW`` / 2 examples of each window so far, by the hashes of their places."""
        windows: dict[int, list[tuple[float, int, int, Example]]] = {}
        for partition in range(self.log.partitions(EXAMPLES)):
            end = self.log.end(EXAMPLES, partition)
            for record in read_range(self.log, EXAMPLES, partition, 0, end):
                example = unpack(record.value, Example)
                hashed = uniform(0, "kept", partition, record.offset)
                window = windows.setdefault(example.closed_ms // self._window_ms, [])
                window.append((hashed, partition, record.offset, example))
        return [
            example
            for _, window in sorted(windows.items())
            for _, partition, offset, example in sorted(window)[:_OF_WINDOW]
            if uniform(0, "half", partition, offset) < 0.5 and not example.correction
        ]

    def _score(self) -> float:
        if not self._panel:
            return float("nan")
        lane, step = self._learner.prepare(self._panel), self.client.applied_steps()[0]
        rows = self.client.lookup(step, lane.lookup.keys)
        scores = self._learner.learn(lane, rows, self.client.dense(step)).probabilities_BL[:, 0]
        return round(auc(scores, lane.labels_BK[:, 0]), 4)


def judge(data: WorldABALog, kind: str, window_h: float) -> dict[str, Any]:
    """One run: AUC and log loss of the last window of A, of the last of B, and of the first on return."""
    seed, options = data.seed, ReplayOptions(features=kind)
    config = config_for(data, options, Config(model=ModelConfig(seed=seed)))
    features = FeatureSet(data.schema, options.features, config.sessions.history)
    window_ms = round(window_h * _HOUR_MS)
    loop = PanelLoop(features, config, window_ms)
    world: WorldABA = data.world()  # type: ignore[assignment]
    starts_a, starts_b, returns = world.starts_ms()
    loop.exams = [starts_b, returns]
    player = KeepingPlayer(features, config, loop)
    keep = _times(starts_a, returns + window_ms, window_ms)
    player.keeps(keep, sum(at_ms <= starts_b for at_ms in keep) - 1)
    rows = replay_with(player, data, options, iter, loop.digest).predictions
    parts = {
        "a_end": (starts_b - window_ms, starts_b),
        "b_start": (starts_b, starts_b + window_ms),
        "b_end": (returns - window_ms, returns),
        "return": (returns, returns + window_ms),
        "return_later": (returns + window_ms, returns + 2 * window_ms),
    }
    label = next(iter(rows.labels))
    time_ms, labels = np.asarray(rows.time_ms), np.asarray(rows.labels[label], np.float64)
    live, truth = np.asarray(rows.scores[label], np.float64), _truth(world, rows)
    figures = _with_kept_share(
        {n: _judged(time_ms, live, labels, truth, *window) for n, window in parts.items()}
    )
    scores_NE = np.column_stack([live, player.scores_NE()])
    mix = mixed(time_ms, scores_NE, labels)
    window = {n: _judged(time_ms, mix, labels, truth, *window) for n, window in parts.items()}
    figures["mixed"] = _with_kept_share(window)
    split = player.parts()
    by = {
        "live": live,
        "weights": split.weights_N,
        "sessions": split.sessions_N,
        "both": scores_NE[:, 1 + player.split],
    }
    figures["of_the_past"] = {
        what: _judged(time_ms, scores, labels, truth, *parts["return"])["auc"] for what, scores in by.items()
    }
    figures["memory"] = loop.memory
    figures["remembered"] = round(loop.memory[1] / loop.memory[0], 4)
    return figures


def _times(from_ms: int, until_ms: int, every_ms: int) -> list[int]:
    """Multiples of an interval, or of several intervals when there are too many. They don't depend on the
    phases."""
    every_ms *= -(-(until_ms - from_ms) // (every_ms * MOST_STATES + every_ms))
    return list(range(from_ms + every_ms, until_ms, every_ms))


def _truth(world: World, rows: Predictions) -> NDArray[np.float64]:
    """Probability that the world drew each row's first label from. Rows of a list are adjacent."""
    truth, rank, before = np.empty(len(rows.request_id)), 0, ""
    columns = zip(rows.request_id, rows.user_id, rows.item_id, np.asarray(rows.time_ms), strict=True)
    for n, (request, user, item, time_ms) in enumerate(columns):
        rank = rank + 1 if request == before else 0
        truth[n] = world.true_long_view(user, item, int(time_ms), rank)
        before = request
    return truth


def _judged(
    time_ms: NDArray[np.int64],
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    truth: NDArray[np.float64],
    from_ms: int,
    until_ms: int,
) -> dict[str, float]:
    rows: NDArray[np.bool_] = (time_ms >= from_ms) & (time_ms < until_ms)
    return {
        "rows": int(rows.sum()),
        "auc": round(auc(scores[rows], labels[rows]), 4),
        "ceiling": round(auc(truth[rows], labels[rows]), 4),
        "log_loss": round(log_loss(scores[rows], labels[rows]), 4),
    }


def _with_kept_share(parts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The windows, with the share that is kept on return: of the AUC, and of its ratio to the ceiling."""
    end, back = parts["a_end"], parts["return"]
    kept_share = back["auc"] / end["auc"]
    of_ceiling = kept_share * end["ceiling"] / back["ceiling"]
    return {**parts, "kept": round(kept_share, 4), "kept_of_ceiling": round(of_ceiling, 4)}


@study_command
def forgetting(
    seeds: Annotated[int, typer.Option(min=1, help="Worlds and initial values.")] = 5,
    hours: Annotated[float, typer.Option(help="Hours of all three phases together.")] = 72.0,
    window_h: Annotated[float, typer.Option(help="Hours of a judged window.")] = 3.0,
    change: Annotated[str, typer.Option(help="Change in B: tastes, people, or nothing.")] = "tastes",
    first_seed: Annotated[int, typer.Option(min=0, help="First seed.")] = 0,
    kind: Annotated[str, typer.Option("--features", help="ids, ids+history or all.")] = "all",
) -> dict[str, Any]:
    """Remaining quality of a taste that comes back: plain, and mixed with past states."""
    runs = []
    ways = ("plain", "mixed")
    for seed in range(first_seed, first_seed + seeds):
        data = WorldABALog(seed, hours, change=change)
        run: dict[str, Any] = {"seed": seed, "plain": judge(data, kind, window_h)}
        run["mixed"] = run["plain"].pop("mixed")
        typer.echo(f"seed {seed}: on return, of the past: {run['plain']['of_the_past']}")
        for name in ways:
            typer.echo(f"seed {seed} {name:>5}: {_line(run[name])}")
        runs.append(run)
    figures = {
        "hours": hours,
        "window_h": window_h,
        "wanted": _KEPT,
        "runs": runs,
        "features": kind,
        "change": change,
        **{
            what: {name: _mean(runs, name, what) for name in ways if what in runs[0][name]}
            for what in ("kept", "kept_of_ceiling", "remembered")
        },
        "of_the_past": {
            what: round(float(np.mean([run["plain"]["of_the_past"][what] for run in runs])), 4)
            for what in ("live", "weights", "sessions", "both")
        },
    }
    shown = ("kept", "kept_of_ceiling", "remembered", "of_the_past")
    typer.echo(json.dumps({what: figures[what] for what in shown}))
    return figures


def _line(windows_figures: dict[str, Any]) -> str:
    """AUC and its ceiling in each window, and the kept share."""
    windows = ("a_end", "b_start", "b_end", "return")
    aucs = ", ".join(
        f"{part} {windows_figures[part]['auc']} of {windows_figures[part]['ceiling']}" for part in windows
    )
    return f"{aucs}; kept {windows_figures['kept']}, of the ceiling {windows_figures['kept_of_ceiling']}"


def _mean(runs: list[Any], name: str, what: str) -> dict[str, float]:
    values = [run[name][what] for run in runs]
    return {"mean": round(float(np.mean(values)), 4), "least": min(values)}
