"""`recsys study forgetting`: tastes are A, then B, then A again; how much of A is left on return.

The same log is learned twice: plainly, and with old examples rehearsed as the panel asks for
(training/steps/rehearsal.py). Lists hang on no model, so both are judged on the same rows. Two things
are judged. *Memory*: the panel of the first A, with features as they were served then, scored at the end of A
and once B is over: what the weights have forgotten. *On return*: the first window of the second A, as it is
predicted: there the viewers' own sessions and counters are still full of B, which no weight can know to be
over. Windows differ in how much of them can be known at all, so beside each AUC stands that of the true
probabilities on the same rows (``ceiling``). A third way keeps past states, and mixes what they say with what
is live (benchmarks/studies/drift/kept_states.py).
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.harness.commands import study_command
from benchmarks.harness.world_log import WorldLog
from benchmarks.studies.drift.kept_states import MOST_STATES, KeepingPlayer, mixed
from parameter_server.publish.deltas import StepDelta
from recsys.config.system_config import Config, ModelConfig
from recsys.events.records import EXAMPLES, TrainingExample, unpack
from recsys.features.feature_set import FeatureSet
from recsys.model.model import build_model
from recsys.model.prediction_metrics import auc, log_loss
from replay.direct_loop import DirectLoop
from replay.predictions import Predictions
from replay.replay_run import ReplayOptions, config_for, replay_with
from replay.simulation.world import World
from replay.simulation.world_aba import WorldABA
from training.continual.learner import Learner
from training.drift.monitors import LossMonitor
from training.lines.line import MAIN, learning_digest
from training.steps.rehearsal import (
    ForgettingConfig,
    ForgettingControl,
    Place,
    Rehearsal,
    Strength,
)
from training.steps.sequencer import Sequencer

_HOUR_MS: Final = 3_600_000
_KEPT: Final = 0.95  # of A's AUC, wanted on return


@dataclass
class LogABA(WorldLog):
    """The log of a world that changes and changes back."""

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


class RehearsedLoop(DirectLoop):
    """A loop that scores its panel each window, and rehearses as that asks for, or not (``rehearses``)."""

    def __init__(
        self, features: FeatureSet, config: Config, forgetting: ForgettingConfig, rehearses: bool
    ) -> None:
        super().__init__(features, config)
        self.rehearsal, self.control = Rehearsal(forgetting), ForgettingControl(forgetting)
        self.sequencer = Sequencer(
            config.step,
            line=MAIN,
            epoch=0,
            digest=learning_digest(config, features),
            rehearsal=self.rehearsal,
        )
        for partition in range(config.log.partitions):
            self.log.hold("forgetting", EXAMPLES, partition, 0)
        self.strengths: list[tuple[int, Strength]] = []
        self.alarms: list[tuple[int, str, str]] = []
        self.seen = 0.0
        self._watch = LossMonitor(features.schema.labels)
        self._learner = Learner(build_model(features, config.model))
        self._forgetting, self._rehearses, self._window = forgetting, rehearses, -1
        self.exams: list[int] = []  # when the panel of the first A is scored
        self.memory: list[dict[str, float]] = []
        self._first: list[Place] = []

    def advance(self, now_ms: int) -> list[StepDelta]:
        found = super().advance(now_ms)
        for delta in found:
            self.seen += delta.metrics.get("examples", 0.0)
            for alarm in self._watch.step(delta.metrics, delta.time_ms, delta.step):
                self.alarms.append((round(self.seen), alarm.kind, alarm.what))
        if len(self.memory) < len(self.exams) and now_ms >= self.exams[len(self.memory)]:
            panel = self.rehearsal.cohorts.panel
            self._first = self._first or [
                p for w in self.rehearsal.cohorts.windows for p in panel(w)
            ]
            self.memory.append(self._score(self._first))
        window = now_ms // self._forgetting.window_ms
        if found and window != self._window:
            self._window = window
            strength = self.control.window(
                {
                    w: self._score(self.rehearsal.cohorts.panel(w))["log_loss"]
                    for w in self.rehearsal.old
                }
            )
            self.strengths.append((now_ms, strength))
            self.rehearsal.share = strength.share if self._rehearses else 0.0
        return found

    def _score(self, places: list[Place]) -> dict[str, float]:
        """How the model as it is predicts the first label of a panel."""
        lessons = [
            unpack(self.log.read(EXAMPLES, p.partition, p.offset, 1)[0].value, TrainingExample)
            for p in places
        ]
        lessons = [lesson for lesson in lessons if not lesson.correction]
        if not lessons:
            return {"auc": float("nan"), "log_loss": 0.0}
        lane, step = self._learner.prepare(lessons), self.client.applied_steps()[0]
        rows = self.client.lookup(step, lane.lookup.keys)
        scores = self._learner.learn(lane, rows, self.client.dense(step)).probabilities_BL[:, 0]
        labels = lane.labels_BK[:, 0]
        return {"auc": round(auc(scores, labels), 4), "log_loss": log_loss(scores, labels)}


def judge(data: LogABA, kind: str, window_h: float, rehearses: bool) -> dict[str, Any]:
    """One run: AUC and log loss of the last window of A, of the last of B, and of the first on return."""
    seed, options = data.seed, ReplayOptions(features=kind)
    config = config_for(data, options, Config(model=ModelConfig(seed=seed)))
    features = FeatureSet(data.schema, options.features, config.sessions.history)
    forgetting = ForgettingConfig(window_ms=round(window_h * _HOUR_MS))
    loop = RehearsedLoop(features, config, forgetting, rehearses)
    world: WorldABA = data.world()  # type: ignore[assignment]
    starts_a, starts_b, returns = world.starts_ms()
    loop.exams = [starts_b, returns]
    window_ms = round(window_h * _HOUR_MS)
    player = KeepingPlayer(features, config, loop)
    keep = [] if rehearses else _times(starts_a, returns + window_ms, window_ms)
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
    found = _kept({n: _judged(time_ms, live, labels, truth, *its) for n, its in parts.items()})
    if keep:
        said = np.column_stack([live, player.said_NE()])
        mix = mixed(time_ms, said, labels)
        its = {n: _judged(time_ms, mix, labels, truth, *its) for n, its in parts.items()}
        found["mixed"] = _kept(its)
        split = player.parts()
        by = {
            "live": live,
            "weights": split.weights_N,
            "sessions": split.sessions_N,
            "both": said[:, 1 + player.split],
        }
        found["of_the_past"] = {
            what: _judged(time_ms, scores, labels, truth, *parts["return"])["auc"]
            for what, scores in by.items()
        }
    found["memory"] = loop.memory
    found["remembered"] = round(loop.memory[1]["auc"] / loop.memory[0]["auc"], 4)
    found["shares"] = [round(s.share, 3) for _, s in loop.strengths]
    found["excess"] = [round(s.excess, 3) for _, s in loop.strengths]
    found["alarms"] = [f"{seen}: {kind} {what}" for seen, kind, what in loop.alarms]
    found["examples"] = round(loop.seen)
    return found


def _times(from_ms: int, until_ms: int, every_ms: int) -> list[int]:
    """Moments at whole multiples of an interval, or of several of them where there are too many. They are
    blind to when tastes turn."""
    every_ms *= -(-(until_ms - from_ms) // (every_ms * MOST_STATES + every_ms))
    return list(range(from_ms + every_ms, until_ms, every_ms))


def _truth(world: World, rows: Predictions) -> NDArray[np.float64]:
    """The probability that the world drew each row's first label from. A list's rows stand together."""
    found, rank, before = np.empty(len(rows.request_id)), 0, ""
    its = zip(rows.request_id, rows.user_id, rows.item_id, np.asarray(rows.time_ms), strict=True)
    for n, (request, user, item, time_ms) in enumerate(its):
        rank = rank + 1 if request == before else 0
        found[n] = world.true_long_view(user, item, int(time_ms), rank)
        before = request
    return found


def _judged(
    time_ms: NDArray[np.int64],
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    truth: NDArray[np.float64],
    from_ms: int,
    until_ms: int,
) -> dict[str, float]:
    its: NDArray[np.bool_] = (time_ms >= from_ms) & (time_ms < until_ms)
    return {
        "rows": int(its.sum()),
        "auc": round(auc(scores[its], labels[its]), 4),
        "ceiling": round(auc(truth[its], labels[its]), 4),
        "log_loss": round(log_loss(scores[its], labels[its]), 4),
    }


def _kept(parts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The parts, with what is kept on return: of the AUC, and of its share of the ceiling."""
    end, back = parts["a_end"], parts["return"]
    kept = back["auc"] / end["auc"]
    of_ceiling = kept * end["ceiling"] / back["ceiling"]
    return {**parts, "kept": round(kept, 4), "kept_of_ceiling": round(of_ceiling, 4)}


@study_command
def forgetting(
    seeds: Annotated[int, typer.Option(min=1, help="Worlds and initial values.")] = 5,
    hours: Annotated[float, typer.Option(help="Of all three phases together.")] = 72.0,
    window_h: Annotated[
        float, typer.Option(help="Hours of a cohort, and of what is judged.")
    ] = 3.0,
    change: Annotated[
        str, typer.Option(help="What is another in B: tastes, people, or nothing.")
    ] = "tastes",
    rehearsed: Annotated[bool, typer.Option(help="Judge rehearsal too: as long again.")] = True,
    first_seed: Annotated[int, typer.Option(min=0, help="Where the seeds begin.")] = 0,
    kind: Annotated[str, typer.Option("--features", help="ids, ids+history or all.")] = "all",
) -> dict[str, Any]:
    """How much of a taste is left once it comes back: plainly, rehearsed, and with past states beside."""
    runs = []
    ways = ("plain", "rehearsed", "mixed") if rehearsed else ("plain", "mixed")
    for seed in range(first_seed, first_seed + seeds):
        data = LogABA(seed, hours, change=change)
        run: dict[str, Any] = {"seed": seed, "plain": judge(data, kind, window_h, False)}
        run["mixed"] = run["plain"].pop("mixed")
        if rehearsed:
            run["rehearsed"] = judge(data, kind, window_h, True)
        typer.echo(f"seed {seed}: on return, of the past: {run['plain']['of_the_past']}")
        for name in ways:
            typer.echo(f"seed {seed} {name:>9}: {_line(run[name])}")
        runs.append(run)
    found = {
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
    typer.echo(json.dumps({what: found[what] for what in shown}))
    return found


def _line(its: dict[str, Any]) -> str:
    """AUC and its ceiling in each window, and what is kept."""
    windows = ("a_end", "b_start", "b_end", "return")
    aucs = ", ".join(f"{part} {its[part]['auc']} of {its[part]['ceiling']}" for part in windows)
    return f"{aucs}; kept {its['kept']}, of the ceiling {its['kept_of_ceiling']}"


def _mean(runs: list[Any], name: str, what: str) -> dict[str, float]:
    values = [run[name][what] for run in runs]
    return {"mean": round(float(np.mean(values)), 4), "least": min(values)}
