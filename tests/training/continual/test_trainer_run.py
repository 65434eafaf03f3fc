"""What worker 0 tells of its steps reaches its driver, and is sent however learning ends."""

from dataclasses import replace
from math import inf
from pathlib import Path

import msgspec
import pytest

from recsys.config.part_configs import TracingConfig
from recsys.config.system_config import Config, TrainerConfig
from recsys.observability.spans import Span
from recsys.observability.tracer import Tracer
from recsys.process.part_process import Heartbeat, run_folder
from tests.support.simulation.bit_flips import flip_bit
from training.continual.trainer_run import LearnTrace, Run, Spans, TrainerRun, decode_run


def test_spans_are_counted_for_the_driver_and_sent_at_the_end(tmp_path: Path) -> None:
    sent: list[Span] = []
    run = TrainerRun(tmp_path)
    run.begin("a")
    assert run.spans() is None
    trace = LearnTrace(Tracer(1.0, [sent.extend]), run, "main", 3)
    trace.count(0.0)
    assert run.spans() == Spans()
    for step in range(5):
        trace.learned(step, 64, 10 * step, 10 * step + 5)
    trace.close()
    assert [span.attributes["step"] for span in sent] == list(range(5))
    assert run.spans() == Spans(sent=5)
    run.begin("b")
    assert run.spans() is None


def test_a_generation_grows_after_a_power_cut_has_emptied_the_file(tmp_path: Path) -> None:
    run = TrainerRun(tmp_path)
    run.begin("a")
    before = run.next_generation("a", 1_000)
    for name in ("run.json", "failure.json", "spans.json"):
        (tmp_path / name).write_bytes(b"")
    assert run.read() == Run() and run.failure() is None and run.spans() is None
    run.begin("b")
    assert run.next_generation("a", 2_000) == 0 < before < run.next_generation("b", 2_000)


def test_a_damaged_run_and_one_without_a_digest_count_as_none(tmp_path: Path) -> None:
    run, file = TrainerRun(tmp_path), tmp_path / "run.json"
    run.begin("a")
    run.next_generation("a", 1_000)
    intact = file.read_bytes()
    for bit in range(8 * len(intact)):
        flip_bit(file, bit, intact)
        assert run.read() == Run()
        with pytest.raises(ValueError):
            decode_run(file.read_bytes())
    file.write_bytes(intact.partition(b"\n")[0])
    assert run.read() == Run()


def test_a_folder_that_is_gone_stops_no_step(tmp_path: Path) -> None:
    trace = LearnTrace(Tracer(1.0, []), TrainerRun(tmp_path / "gone"), "main", 0)
    trace.count(0.0)
    trace.close()


def test_where_spans_go_is_left_to_the_owner_alone(tmp_path: Path) -> None:
    run = TrainerRun(tmp_path / "trainer")
    run.begin("a")
    assert run.endpoint() == ""
    run.keep_endpoint("http://u:pw@h:4318/v1/traces")
    assert run.endpoint() == "http://u:pw@h:4318/v1/traces"
    assert (tmp_path / "trainer" / "endpoint").stat().st_mode & 0o777 == 0o600


def test_what_ray_shows_of_a_run_has_no_password() -> None:
    driver = pytest.importorskip("training.continual.driver")
    endpoint = "http://u:s3cret@h:4318/v1/traces"
    config = replace(
        Config(),
        tracing=TracingConfig(endpoint=endpoint),
        sessions=replace(Config().sessions, url="redis://:s3cret@h:6379/0"),
    )
    its = driver.shown(config)
    assert b"s3cret" not in msgspec.json.encode(its) and its.tracing.on
    assert its.tracing.endpoint == "http://***@h:4318/v1/traces"


def test_workers_without_shards_are_not_ready(tmp_path: Path) -> None:
    driver = pytest.importorskip("training.continual.driver")
    config = replace(Config(), state=str(tmp_path), trainer=TrainerConfig(workers=2))
    beat = Heartbeat("shards", run_folder(tmp_path) / "shards.json")
    for connected, ready in ((0, False), (1, False), (2, True)):
        beat.gauge("connections", connected)
        beat.write()
        assert driver._reach_shards(config) is ready


def test_what_is_learned_is_known_from_the_shards_also_after_a_restart(tmp_path: Path) -> None:
    driver = pytest.importorskip("training.continual.driver")
    config = replace(Config(), state=str(tmp_path))
    assert driver._shards(config, "step") == inf
    beat = Heartbeat("shards", run_folder(tmp_path) / "shards.json")
    beat.write()
    assert driver._shards(config, "step") == inf  # not asked yet
    beat.gauge("step", 131.0)
    beat.write()
    assert driver._shards(config, "step") == 131


def test_a_group_meets_on_the_interface_of_its_node_s_address() -> None:
    worker_process = pytest.importorskip("training.continual.worker_process")
    assert worker_process.interface_of("127.0.0.1") in ("lo", "lo0")
    with pytest.raises(ValueError, match="no network interface .* 192.0.2.1, expected one of .*lo"):
        worker_process.interface_of("192.0.2.1")
