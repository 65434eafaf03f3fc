"""One real system: what it tells of itself (traces, logs, Ray's dashboard, Prometheus), Gorse's client at it,
and then forgetting in it: the session goes at once; unlearned, and with other shards, it goes on."""

from dataclasses import replace

import pytest
import torch
from gorse import Gorse

from recsys.config.part_configs import CompatConfig, ControlRoomConfig, MetricsConfig, TracingConfig
from recsys.config.system_config import ParameterServerConfig
from recsys.events.hashing import partition_of
from recsys.events.records import EXAMPLES, non_example
from recsys.features.feature_set_file import feature_set
from recsys.process.open_log import open_log
from recsys.process.part_process import read_beat
from replay.answer_check import EQUAL, AnswerChecker
from runtime.jobs.user_deletion import Refused, forget_user
from runtime.reports.timeline_report import read_timeline
from runtime.supervision.launch_plan import _free_ports
from tests.support import telemetry
from tests.support.control_room_checks import check_control_page
from tests.support.gorse_checks import Waiting, check_client
from tests.support.live_system import LiveSystem, Traffic, until
from tests.support.otlp_receiver import Receiver
from tests.support.prometheus_checks import check_names, check_panels, prometheus_is_there

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def receiver():
    its = Receiver()
    yield its
    its.close()


@pytest.fixture(scope="module")
def learned(tmp_path_factory, receiver):
    """A system that has learned some steps, and its viewers, who have left. The last test ends it."""
    tracing = TracingConfig(share=1.0, endpoint=receiver.url)
    ports = _free_ports(set())
    system = LiveSystem(
        tmp_path_factory.mktemp("live") / "state",
        tracing=tracing,
        control_room=ControlRoomConfig(port=next(ports)),
        metrics=MetricsConfig(port=next(ports)),
        compat=CompatConfig(gorse=True),
    )
    try:
        system.up()
        system.publish_world()
        system.wait_ready(180)
        traffic = Traffic(system)
        until(lambda: version(system)["step"] >= 15, 90, "steps are learned")
        traffic.stop()
        yield system, traffic
    finally:
        system.down()


def test_a_collector_sees_each_swipe_as_one_connected_trace(learned, receiver):
    system, traffic = learned
    until(lambda: telemetry.whole(receiver, traffic.asked), 30, "a trace has all its spans")
    telemetry.check_trace(receiver, telemetry.whole(receiver, traffic.asked))
    for part in ("session-fold", "joiner", "sequencer", "shards"):
        beat = system.state / "run" / f"{part}.json"
        until(
            lambda beat=beat: read_beat(beat).gauges["spans_sent"] > 0, 30, f"{part} counts spans"
        )
        assert read_beat(beat).gauges["spans_dropped"] == 0, part


def test_the_log_tells_the_same_life(learned, receiver):
    system, traffic = learned
    with system.client() as client:
        client.recommend("u1", 3)  # an answer by a step after that of the swipe
    life = read_timeline(telemetry.whole(receiver, traffic.asked), system.state)
    whats = {moment.what for moment in life.moments}
    assert {"impression", "engagement", "example", "step", "delta", "stamp"} == whats
    assert read_timeline("", system.state).of("delta"), "the latest was learned too"


def test_logs_say_which_replica_shard_and_worker_and_no_secret(learned):
    telemetry.check_logs(learned[0].state)


def test_ray_s_dashboard_names_what_runs(learned):
    telemetry.check_dashboard(learned[0])


def test_the_control_room_shows_what_is_scraped(learned):
    system, _ = learned
    traffic = Traffic(system)
    try:
        check_control_page(system)
    finally:
        traffic.stop()


@pytest.mark.skipif(not prometheus_is_there(), reason="prometheus and promtool aren't installed")
def test_prometheus_reads_both_places_and_has_a_series_for_every_panel(learned, tmp_path):
    system, _ = learned
    check_names(system)
    traffic = Traffic(system)
    try:
        check_panels(system, tmp_path)
    finally:
        traffic.stop()


@pytest.mark.parametrize("client", [Gorse, Waiting])
def test_gorse_s_own_client_is_answered(learned, client):
    check_client(learned[0], client)


def test_a_user_is_forgotten_and_unlearned_and_the_system_goes_on(learned):
    system, traffic = learned
    try:
        assert unequal(system, traffic.asked[-40:]) == []
        with system.client() as client:
            assert client.session("u1")["events"] > 0
        with pytest.raises(Refused, match="recsys down"):
            forget_user("u1", system.state, unlearn=True)
        forget_user("u1", system.state, unlearn=False)
        until(lambda: events_of(system, "u1") == 0, 20, "the session is gone")
        until(lambda: said_in_examples(system, "u1"), 20, "the joiner has said so")
        system.down()

        said = forget_user("u2", system.state, unlearn=True)
        assert any("are epoch 1 now" in line for line in said), said
        log = open_log(system.config)
        partition = partition_of("u2", log.partitions(EXAMPLES))
        assert log.keyed(EXAMPLES, partition, [b"u2"], 1 << 60) == []
        log.close()
        system._config = replace(system._config, parameter_server=ParameterServerConfig(shards=3))
        system.up()
        system.wait_ready(180)
        began = version(system)
        assert began["epoch"] == 1 and events_of(system, "u2") == 0
        traffic = Traffic(system)
        until(lambda: version(system)["step"] > began["step"] + 3, 90, "the epoch goes on")
        traffic.stop()
        assert version(system)["epoch"] == 1
        others = [its for its in traffic.asked[-40:] if its[1] not in ("u1", "u2")]
        assert unequal(system, others) == []  # their own events are gone, and came again
    finally:
        system.down()


def unequal(system: LiveSystem, asked: list[tuple[str, str]]) -> list[str]:
    """The answers of a running system that can't be made again from what its parts wrote."""
    torch.set_num_threads(1)  # as a replica has it
    log = open_log(system.config)
    try:
        explainer = AnswerChecker(log, system.config, feature_set(system.config))
        found = [explainer.explain(request_id, user) for request_id, user in asked]
        return [f"{its.why} {its.differences[:2]}" for its in found if its.verdict != EQUAL]
    finally:
        log.close()


def said_in_examples(system: LiveSystem, user: str) -> bool:
    log = open_log(system.config)
    try:
        partition = partition_of(user, log.partitions(EXAMPLES))
        offsets = log.keyed(EXAMPLES, partition, [user.encode()], 1 << 60)
        last = log.read(EXAMPLES, partition, offsets[-1], 1)[0] if offsets else None
        return last is not None and non_example(last.value) is not None
    finally:
        log.close()


def version(system: LiveSystem) -> dict[str, int]:
    with system.client() as client:
        return client.status()["version"]


def events_of(system: LiveSystem, user: str) -> int:
    with system.client() as client:
        return client.session(user).get("events", 0)
