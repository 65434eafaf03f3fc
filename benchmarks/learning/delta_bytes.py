"""How many bytes of deltas a stationary stream costs, where rows are published each n-th step."""

from typing import Any

from benchmarks.harness.world_log import WorldLog
from parameter_server.publish.deltas import StepDelta
from recsys.config.system_config import Config
from recsys.events.records import pack
from recsys.features.feature_set import FeatureSet
from recsys.model.prediction_metrics import auc, log_loss
from replay.direct_loop import DirectLoop
from replay.player import Player
from replay.replay_run import ReplayOptions, config_for, replay_with

_GATHERED = (1, 2, 4, 8)


class _CountingLoop(DirectLoop):
    sent = 0

    def _assembled(self) -> list[StepDelta]:
        self.sent += sum(len(pack(delta)) for delta in self._deltas)
        return super()._assembled()


def measure_gathering(hours: float, seed: int) -> dict[str, Any]:
    """One world, learned and served four times: bytes of all deltas, and how good what was served is."""
    data = WorldLog(seed, hours)
    options = ReplayOptions(step_examples=256, step_every_s=1_800.0)
    config = config_for(data, options, Config())
    features = FeatureSet(data.schema, options.features, config.sessions.history)
    found: dict[str, Any] = {}
    for gathered in _GATHERED:
        loop = _CountingLoop(features, config)
        loop.sequencer.gathered = gathered  # type: ignore[union-attr]
        rows = replay_with(
            Player(features, config, loop), data, options, iter, loop.digest
        ).predictions
        label = data.labels[0]
        found[f"each {gathered}"] = {
            "steps": loop.sequencer.step,
            "delta_mb": round(loop.sent / 1e6, 3),
            "auc": round(auc(rows.scores[label], rows.labels[label]), 4),
            "log_loss": round(log_loss(rows.scores[label], rows.labels[label]), 4),
        }
    whole = found["each 1"]["delta_mb"]
    for its in found.values():
        its["of_all"] = round(its["delta_mb"] / whole, 3)
    return found
