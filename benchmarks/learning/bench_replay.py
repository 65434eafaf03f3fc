"""``recsys bench replay``: examples of a data set a CPU second, from opening its files to the last step.

The floor is the network alone on the features of the replay's last examples: predictions and gradients, in
the replay's own lanes and in batches of 1,024. It reads no log, folds nothing and moves no row.
"""

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.system_config import Config
from recsys.events.event_types import Event
from recsys.events.records import TrainingExample
from recsys.model.model import build_model
from replay.datasets.app_dataset import feature_set_of
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.player import Player
from replay.replay_run import ReplayOptions, config_for, replay_with
from runtime.jobs.time_option import parse_time
from training.continual.learner import Lane, Learned, Learner
from training.continual.worker import Worker

_BATCH: Final = 1024
_LANES: Final = 64  # the newest lanes, which the network alone learns again
_ROUNDS: Final = 3
Floats = NDArray[np.float32]
Rows = Mapping[str, Floats]
Learning = tuple[Sequence[Lane], Sequence[Rows], Floats]


class KeepingLearner(Learner):
    """Remembers the examples of the lanes that it learned last, and how many lanes each step had."""

    lane_examples: deque[Sequence[TrainingExample]]
    lane_counts: deque[int]

    def prepare(self, examples: Sequence[TrainingExample]) -> Lane:
        self.lane_examples.append(examples)
        return super().prepare(examples)

    def learn_lanes(
        self, lanes: Sequence[Lane], rows: Sequence[Rows], dense: Floats
    ) -> list[Learned]:
        self.lane_counts.append(len(lanes))
        return super().learn_lanes(lanes, rows, dense)


def measure_replay(data: Path, until: str) -> dict[str, Any]:
    """Replays a data set, then times the floor."""
    began_s = time.process_time()
    dataset = open_dataset(data)
    options = ReplayOptions(until_ms=parse_time(until, dataset.utc_offset_h) if until else None)
    config = config_for(dataset, options, Config())
    features = feature_set_of(dataset, config)
    loop = DirectLoop(features, config)
    learner = KeepingLearner(build_model(features, config.model))
    learner.lane_examples, learner.lane_counts = deque(maxlen=_LANES), deque(maxlen=_LANES)
    loop.worker = Worker(0, 1, loop.log, loop.client, learner, config)
    player = Player(features, config, loop)
    warm_s = list[float]()

    def progress(events: Iterator[Event]) -> Iterator[Event]:
        warm_s.append(time.process_time() - began_s)
        return events

    result = replay_with(player, dataset, options, progress, loop.digest)
    cpu_s = time.process_time() - began_s
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    examples = loop.worker.counts["examples"]
    return {
        "what": f"{dataset.name}: {examples} examples, {result.steps} steps",
        "figures": {
            "examples_per_cpu_s": round(examples / cpu_s),
            "cpu_s": {"before_the_log": round(warm_s[-1], 1), "all": round(cpu_s, 1)},
            "peak_gb": round(peak_gb, 2),
            "digest": result.digest,
        },
        "comparators": {"network_alone": _floor(learner, loop)},
    }


def _floor(learner: KeepingLearner, loop: DirectLoop) -> dict[str, int]:
    """Examples a CPU second of the network, the best of some rounds."""
    lanes, steps = list(learner.lane_examples), list[Learning]()
    for count in filter(None, reversed(learner.lane_counts)):
        if count > len(lanes):
            break
        steps.append(_learning(learner, loop, lanes[-count:]))
        del lanes[-count:]
    examples = [*chain(*learner.lane_examples)][-_BATCH:]
    batch = _learning(learner, loop, [examples])
    return {
        "in_lanes_per_cpu_s": _rate(learner, steps[::-1]),
        f"in_batches_of_{len(examples)}_per_cpu_s": _rate(learner, [batch] * 4),
    }


def _learning(
    learner: Learner, loop: DirectLoop, lanes: Sequence[Sequence[TrainingExample]]
) -> Learning:
    """Lanes of examples with the rows that the shards have for them now."""
    step = loop.client.applied_steps()[0]
    prepared_lanes = [Learner.prepare(learner, examples) for examples in lanes]
    rows = [loop.client.lookup(step, lane.lookup.keys) for lane in prepared_lanes]
    return prepared_lanes, rows, loop.client.dense(step)


def _rate(learner: Learner, steps: Sequence[Learning]) -> int:
    def learn() -> None:
        for step in steps:
            Learner.learn_lanes(learner, *step)

    seconds = min(_cpu_seconds(learn) for _ in range(_ROUNDS))
    return round(sum(len(lane.batch) for lanes, _, _ in steps for lane in lanes) / seconds)


def _cpu_seconds(work: Callable[[], None]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s
