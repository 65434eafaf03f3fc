"""Finishes what a stopped system has begun: what was accepted is joined, what was joined is cut into steps.

The same classes as the running parts, with their own state; the shards learn the steps when they run again.
"""

from itertools import count

from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from recsys.process.part_snapshot import PartState
from training.joining import joiner_loop
from training.joining.joiner_loop import JoinerLoop
from training.lines.live_epoch import live_epoch
from training.steps.sequencer_loop import SequencerLoop


def finish(log: Log, config: Config, features: FeatureSet, again: Log | None = None) -> int:
    """Turns joiner and sequencer until nothing moves; returns the newest step. ``again``: another client of
    the log, for impressions that are read again. Nobody else may join or cut meanwhile."""
    state = PartState(config.state, joiner_loop.PART)
    joiner = JoinerLoop(log, config, features, lambda: 0, state, again)
    while joiner.turn():
        pass
    joiner.save()
    waits_ms = count(0, config.step.every_ms + 1)  # a step is due at the second look
    sequencer = SequencerLoop(log, config, features, waits_ms.__next__, epoch=live_epoch(log))
    while sequencer.turn() or sequencer.waiting:
        pass
    return sequencer.step
