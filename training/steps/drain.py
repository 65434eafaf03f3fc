"""Finishes the pending work of a stopped system: joins accepted events and cuts the examples into steps."""

from itertools import count

from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from recsys.process.part_snapshot import PartState
from training.joining import joiner_loop
from training.joining.joiner_loop import JoinerLoop
from training.lines.control import live_epoch
from training.steps.sequencer_loop import SequencerLoop


def drain(log: Log, config: Config, features: FeatureSet, again: Log | None = None) -> int:
    """Runs joiner and sequencer until nothing is left; returns the newest step. ``again``: another client of
    the log, for reading impressions again. No other joiner or sequencer may run meanwhile."""
    state = PartState(config.state, joiner_loop.PART)
    joiner = JoinerLoop(log, config, features, lambda: 0, state, again)
    while joiner.turn():
        pass
    joiner.save()
    waits_ms = count(0, config.step.every_ms + 1)  # a step is due at the second turn
    sequencer = SequencerLoop(log, config, features, waits_ms.__next__, epoch=live_epoch(log))
    while sequencer.turn() or sequencer.waiting:
        pass
    return sequencer.step
