"""A broker whose retention passes a fold that was down: the fold says so, and skips nothing in silence."""

from pathlib import Path

import pytest

from recsys.events.records import EVENTS
from recsys.log.protocol import LogLost
from recsys.process.log_consumer import Consumer
from tests.support.simulation.simulator import Broken, Simulation
from tests.support.simulation.simulator_faults import FaultyKafka
from tests.support.simulation.simulator_oracles import check
from tests.support.training.small_feed import PARTITIONS, feed


def passed_by_retention(folder: Path) -> None:
    run = Simulation(1, folder, 0.0, {"kafka"})

    def expire() -> None:
        """Events arrive and leave while the joiner is down."""
        assert isinstance(run.log, FaultyKafka)
        run._arrive(feed(5, 1_100))
        for partition in range(PARTITIONS):
            run.log.expire(EVENTS, partition, run.log.end(EVENTS, partition))

    check(run.run(between=expire))


def test_a_fold_says_that_records_are_gone(tmp_path: Path) -> None:
    with pytest.raises(Broken) as broken:
        passed_by_retention(tmp_path)
    assert isinstance(broken.value.__cause__, LogLost)
    assert "retention passed it" in str(broken.value)


def test_a_fold_that_goes_on_at_the_beginning_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Consumer.__init__

    def init(self, log, topic, partitions, offsets=None):  # type: ignore[no-untyped-def]
        first = {p: max(at, log.begin(topic, p)) for p, at in (offsets or {}).items()}
        real(self, log, topic, partitions, first)

    monkeypatch.setattr(Consumer, "__init__", init)
    with pytest.raises(Broken, match="examples are those of an undisturbed join"):
        passed_by_retention(tmp_path)
