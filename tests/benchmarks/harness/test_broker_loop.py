"""The real parts in lockstep give the same bits as one process."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.harness.broker_loop import replay_through_broker
from replay.datasets.open_dataset import open_dataset
from replay.replay_run import ReplayOptions, replay_data
from tests.support.small_log import write_log


@pytest.mark.services
@pytest.mark.parametrize(("log", "requests"), [("sqlite", 150), ("kafka", 12)])
def test_real_parts_predict_and_learn_the_same_bits(tmp_path, log, requests):
    dataset = open_dataset(write_log(tmp_path / "data", requests=requests))
    options = ReplayOptions(warm_up=False, step_examples=12, step_every_s=60.0, through_broker=log)
    one = replay_data(dataset, options)
    real = replay_through_broker(dataset, options)
    assert one.steps == real.steps > 1
    assert one.digest == real.digest
    assert one.predictions.request_id == real.predictions.request_id
    assert one.predictions.version == real.predictions.version
    for label, scores in one.predictions.scores.items():
        assert np.array_equal(scores, real.predictions.scores[label]), label


def test_what_only_one_process_can_do_is_refused(tmp_path):
    dataset = open_dataset(write_log(tmp_path / "data", requests=2))
    options = ReplayOptions(warm_up=False, through_broker="sqlite")
    for alone in ({"frozen_after_ms": 1}, {"sync_every_ms": 1000}, {"warm_up": True}):
        with pytest.raises(ValueError, match="without --through-broker"):
            replay_through_broker(dataset, replace(options, **alone))
    with pytest.raises(ValueError, match="expected sqlite, kafka"):
        replay_through_broker(dataset, replace(options, through_broker="mysql"))
