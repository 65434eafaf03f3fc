"""``recsys bench replay``: examples of a data set a CPU second, from opening its files to the last step."""

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recsys.config.system_config import Config
from recsys.events.event_types import Event
from replay.datasets.app_dataset import feature_set_of
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.player import Player
from replay.replay_run import ReplayOptions, config_for, replay_with
from runtime.jobs.time_option import parse_time


def measure_replay(data: Path, until: str) -> dict[str, Any]:
    """Replays a data set with all folds and learning."""
    began_s = time.process_time()
    dataset = open_dataset(data)
    options = ReplayOptions(until_ms=parse_time(until, dataset.utc_offset_h) if until else None)
    config = config_for(dataset, options, Config())
    features = feature_set_of(dataset, config)
    loop = DirectLoop(features, config)
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
    }
