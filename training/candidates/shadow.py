"""A candidate in shadow of live: scores the examples of each step, then learns them, unseen by viewers.

Its rows are in this process, and it learns by the live line's own step records: so it is scored on the same
examples as live, before it learned them; live's predictions are in the examples.
"""

# B examples, L outputs

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import Shard
from parameter_server.storage.changes import Changes
from parameter_server.storage.part_files import Update
from recsys.config.system_config import Config, ModelConfig
from recsys.events.control_records import Live
from recsys.events.event_types import Stamp
from recsys.events.hashing import key_of, uniform
from recsys.events.records import Delta, Scores, Step, TrainingExample
from recsys.log.protocol import Log
from recsys.model.model import build_model, with_missing_row
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.joining.sampling import represented_examples
from training.lines.line import MAIN
from training.steps.lineage import Lineage
from training.steps.step_reader import ExampleCheck, ServedExample, read_lanes

_SEED: Final = 0  # changing it draws the scored lanes anew
_FEW: Final = 5  # items in the session of a viewer who counts as new
NEW_VIEWERS: Final = "new viewers"
_MOST_SURFACES: Final = 6
_NO_STAMP: Final = Stamp(line="")


class Shadow:
    """One candidate line. ``turn`` takes the next step of the live line's epoch."""

    def __init__(
        self, log: Log, config: Config, learner: Learner, line: str, shard: Shard,
        lives: Sequence[Live], learns: bool = True, is_scored: bool = True,
    ) -> None:  # fmt: skip
        """``config``, ``learner``: of the line's own model. ``shard``: the whole line, after step
        ``shard.applied``. ``lives``: all live records of the live line."""
        self.line, self.shard, self.learns = line, shard, learns
        self._log, self._config, self.features = log, config, learner.features
        self.publish: Callable[[Delta], None] = lambda delta: None
        self._client = LocalClient([shard], lambda delta: self.publish(delta))
        self.changes = Changes(shard)
        self.learner, self.is_scored = learner, is_scored
        self._scoring = build_model(self.features, config.model)
        self._check = ExampleCheck(self.features, self._scoring.ranker.shape.dense, ServedExample, log)
        self.step = shard.applied  # the newest step scored, and learned if it learns
        self.shown: list[ServedExample] = []  # scored examples of the newest step
        self.scored = 0  # examples
        self.unseen_from = 0  # the first step without examples it was trained on
        self.follow(lives)

    @property
    def model(self) -> ModelConfig:
        """Its model; live's may be of another size."""
        return self._config.model

    def follow(self, lives: Sequence[Live]) -> None:
        """Follows the current live line, from the same step on."""
        self.epoch = lives[-1].epoch if lives else 0
        self._reader = Lineage(self._log, MAIN, lives)
        self._worker = Worker(
            0, 1, self._log, self._client, self.learner, self._config,
            reader=self._reader, reports=False,
        )  # fmt: skip

    def turn(self, scores: bool = True) -> tuple[Step, Scores | None] | None:
        """Scores and learns the next step; None before it is there. ``scores``: whether the step is recent
        enough to be scored. Raises LogLost if the log no longer has its examples."""
        step = self._reader.record(self.step + 1)
        if step is None:
            return None
        self.shown = []
        is_scored = scores and self.is_scored and step.step >= self.unseen_from
        result = self.score(step) if is_scored else None
        while self.learns and self.shard.applied < step.step:
            self._worker.turn()
        self.step = step.step
        return step, result

    def score(self, step: Step) -> Scores | None:
        """Scores the sampled lanes of a step, beside live's predictions; None without examples."""
        share = self._config.promotion.share
        own = {n for n in range(step.lanes) if uniform(_SEED, "shadow", step.step, n) < share}
        if not own:
            return None
        lanes = read_lanes(self._log, step, own, self._check)
        examples = [e for lane in lanes.values() for e in lane.examples]
        shown = [e for e in examples if isinstance(e, ServedExample) and self._counts(e)]
        self.shown = shown
        if not shown:
            return None
        candidate_B = self.probabilities(shown)[:, 0]
        self.scored += len(shown)
        names, segments_B = segments_of(shown)
        return Scores(
            line=self.line, against=(MAIN, self.epoch), step=step.step, time_ms=step.time_ms,
            users=np.array([key_of("user", e.user_id) for e in shown], np.int64).tobytes(),
            live=np.array([_first(e.predicted) for e in shown], np.float32).tobytes(),
            candidate=candidate_B.astype(np.float32).tobytes(),
            labels=np.array([round(e.labels[0]) for e in shown], np.uint8).tobytes(),
            segments=segments_B.tobytes(), names=names, weights=_weights(shown),
        )  # fmt: skip

    def _counts(self, example: ServedExample) -> bool:
        """Whether live served this example, in the compared epoch, with a prediction."""
        stamp = example.stamp or _NO_STAMP
        is_of_live = (stamp.line, stamp.epoch) == (MAIN, self.epoch)
        return is_of_live and len(example.predicted) >= 4 and not example.correction

    def export(self) -> tuple[Update, dict[str, Any]]:
        """Arrays and metadata of a snapshot, after the last step it learned."""
        update, meta = self.changes.export()
        return update._replace(arrays={**update.arrays, **self.learner.export()}), meta

    def probabilities(self, examples: Sequence[TrainingExample]) -> NDArray[np.float32]:
        """Predictions (B, L) as it would serve them: with the dense parameters that replicas get."""
        lane = self.learner.prepare(examples)
        dense = self.shard.dense
        assert dense is not None, "a candidate is one shard, with the dense parameters"
        self._scoring.write_dense(dense.averaged)
        keys = lane.lookup.keys["features"]
        rows = self.shard.lookup(self.shard.applied, {"features": keys})["features"]
        with torch.inference_mode():
            logits = self._scoring.rank(lane.batch, lane.lookup, with_missing_row(rows))
            out: NDArray[np.float32] = torch.sigmoid(logits).numpy()
        return out


def segments_of(shown: Sequence[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the segments of some examples, and a bit for each, (B,)."""
    bits_B = np.zeros(len(shown), np.int64)
    names = [NEW_VIEWERS]
    for n, example in enumerate(shown):
        block = example.features
        seen = np.frombuffer(block.outcomes, np.float32) if block.outcomes else np.zeros(0)
        width = len(example.labels) + 2
        if np.count_nonzero(seen[width - 1 :: width]) < _FEW:
            bits_B[n] |= 1
        name = f"surface {example.surface}"
        if name not in names and len(names) < _MOST_SURFACES:
            names.append(name)
        if name in names:
            bits_B[n] |= 1 << names.index(name)
    return names, bits_B


def _first(predicted: bytes) -> float:
    """Probability of the first label."""
    return float(np.frombuffer(predicted, np.float32, 1)[0])


def _weights(shown: Sequence[ServedExample]) -> bytes:
    """Number of examples each one represents; empty if each represents itself."""
    weights = [represented_examples(e.labels, e.sampling_rate, e.sampled_out) for e in shown]
    return np.array(weights, np.float32).tobytes() if any(w != 1.0 for w in weights) else b""
