"""One real system for all tests of this folder, since starting one takes most of a minute.

The files run in the order of their numbers, and each leaves the system running for the next; the last ends
it. Any single file also runs alone.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from recsys.config.part_configs import CompatConfig, ControlRoomConfig, MetricsConfig, TracingConfig
from recsys.config.system_config import Config
from recsys.free_ports import free_ports
from tests.support.observability.otlp_receiver import Receiver
from tests.support.systems.live_system import OPEN_GATES, LiveSystem, Traffic, until


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """Collector of the system's spans."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[LiveSystem]:
    """A running system that has its items and users."""
    ports = free_ports()
    # One step a second: a shadow on busy cores takes two, and must catch up.
    step = replace(Config().step, every_ms=1_000, soonest_ms=1_000, snapshot_every=10, snapshot_s=0)
    system = LiveSystem(
        tmp_path_factory.mktemp("live") / "state",
        dashboard=True,
        step=step,
        promotion=OPEN_GATES,
        tracing=TracingConfig(share=1.0, endpoint=receiver.url),
        control_room=ControlRoomConfig(port=next(ports)),
        metrics=MetricsConfig(port=next(ports)),
        compat=CompatConfig(gorse=True),
    )
    try:
        with pytest.MonkeyPatch.context() as environment:  # all parts inherit it
            environment.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
            system.up()
        system.publish_world()
        system.wait_ready()
        yield system
    finally:
        system.down()


@pytest.fixture(scope="session")
def visits(system: LiveSystem) -> Traffic:
    """Viewers that have left after the model learned eleven steps."""
    traffic = Traffic(system)
    until(lambda: system.version()["step"] >= 11, 90, "steps are learned")
    traffic.stop()
    return traffic
