"""Traces, logs, Ray's dashboard, Prometheus and the control room of a running system, and Gorse's client."""

from pathlib import Path

import pytest
from gorse import Gorse

from plugins.request_timeline.command import read_timeline
from recsys.process.part_process import read_beat
from tests.support.observability import telemetry
from tests.support.observability.otlp_receiver import Receiver
from tests.support.observability.prometheus_checks import check_names, check_panels, prometheus_is_there
from tests.support.pages.control_room_checks import check_control_page
from tests.support.pages.one_moment import check_one_moment
from tests.support.serving.gorse_checks import Waiting, check_client
from tests.support.systems.live_system import LiveSystem, Traffic, until

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_collector_sees_each_swipe_as_one_connected_trace(
    system: LiveSystem, visits: Traffic, receiver: Receiver
) -> None:
    until(lambda: telemetry.whole(receiver, visits.asked), 30, "a trace has all its spans")
    telemetry.check_trace(receiver, telemetry.whole(receiver, visits.asked))

    def gauges(part: str) -> dict[str, float]:
        beat = read_beat(system.state / "run" / f"{part}.json")
        return beat.gauges if beat else {}

    for part in ("session-fold", "joiner", "sequencer", "shards"):
        until(lambda part=part: gauges(part)["spans_sent"] > 0, 30, f"{part} counts spans")
        assert gauges(part)["spans_dropped"] == 0, part


def test_the_log_holds_the_same_timeline(system: LiveSystem, visits: Traffic, receiver: Receiver) -> None:
    with system.client() as client:
        client.recommend("u1", 3)  # an answer by a step after that of the swipe
    timeline = read_timeline(telemetry.whole(receiver, visits.asked), system.state)
    moments = {moment.what for moment in timeline.moments}
    assert {"impression", "engagement", "example", "step", "delta", "stamp"} == moments
    assert read_timeline("", system.state).of("delta"), "the newest request was learned too"


def test_logs_name_replica_shard_and_worker_and_no_secret(system: LiveSystem, visits: Traffic) -> None:
    telemetry.check_logs(system.state)


def test_ray_s_dashboard_names_what_runs(system: LiveSystem, visits: Traffic) -> None:
    telemetry.check_dashboard(system)


def test_the_control_room_shows_what_is_scraped(system: LiveSystem, visits: Traffic) -> None:
    traffic = Traffic(system)
    try:
        check_control_page(system)
    finally:
        traffic.stop()


def test_one_figure_has_one_value_wherever_it_is_shown(system: LiveSystem, visits: Traffic) -> None:
    check_one_moment(system)


@pytest.mark.skipif(not prometheus_is_there(), reason="prometheus and promtool aren't installed")
def test_prometheus_reads_both_places_and_has_a_series_for_every_panel(
    system: LiveSystem, visits: Traffic, tmp_path: Path
) -> None:
    check_names(system)
    traffic = Traffic(system)
    try:
        check_panels(system, tmp_path)
    finally:
        traffic.stop()


@pytest.mark.parametrize("client", [Gorse, Waiting])
def test_gorse_s_own_client_is_answered(system: LiveSystem, visits: Traffic, client: type) -> None:
    check_client(system, client)
