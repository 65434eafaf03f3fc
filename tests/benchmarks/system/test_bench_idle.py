"""Names and figures of the bench of idle systems; no system is started here."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.system.bench_idle import by_state, met, process_name, wait_ready
from benchmarks.system.thread_usage import ProcessTimes, usage_by


def test_a_process_has_the_name_of_its_part_or_of_its_place_in_ray() -> None:
    assert (
        process_name("counters+joiner", "python -m runtime.cli.part counters") == "counters+joiner"
    )
    assert process_name("ray", "/x/gcs_server --log_dir=…") == "ray: control store"
    assert process_name("ray", "ray::ServeReplica:recsys:Feed") == "replica"
    assert process_name("ray", "ray::HAProxyManager") == "serve: HAProxy manager"
    assert process_name("ray", "haproxy -f h/haproxy.cfg") == "serve: HAProxy"
    assert process_name("ray", "python -m runtime.cli.part ray") == "ray"
    assert process_name("", "ray::IDLE") == "ray: idle worker"
    assert process_name("", "/x/reaper") == "ray: other"


def test_actors_and_driver_of_ray_alone_have_names_that_are_not_rays() -> None:
    assert process_name("", "ray::IdleActor") == "idle actor"
    assert process_name("", "ray::IdleActor.ping") == "idle actor"
    assert process_name("", "python -m benchmarks.system.bare_serve 4 1 2 /tmp/x") == "driver"


def test_viewers_are_no_part_of_what_a_system_uses() -> None:
    after = {
        1: ProcessTimes(4.0, {1: 0}),
        2: ProcessTimes(2.0, {2: 0}),
        3: ProcessTimes(1.0, {3: 0}),
    }
    names = {1: "viewers", 2: "serve: controller", 3: "replica"}
    figures = by_state(usage_by(names.__getitem__, {}, after, 100.0))
    assert figures["all"]["cores"] == 0.03 and figures["of_ray"]["cores"] == 0.02
    assert list(figures["processes"]) == ["viewers", "serve: controller", "replica"]
    assert met({"rest": figures, "demo": figures}) == {"rest": True, "demo": True}
    figures["all"]["cores"] = 0.081
    assert met({"rest": figures}) == {"rest": False}


def test_actors_of_a_system_and_of_ray_alone_count_alike() -> None:
    system = ["ray: raylet", "shard", "worker", "train: controller", "trainer"]
    alone = ["ray: raylet", "idle actor", "idle actor", "idle actor", "driver"]
    for names in (system, alone):
        after = {pid: ProcessTimes(1.0, {pid: 0}) for pid in range(5)}
        figures = by_state(usage_by(names.__getitem__, {}, after, 100.0))
        assert figures["all"]["processes"] == 5 and figures["of_ray"]["processes"] == 1


@pytest.mark.parametrize("after", ["raise SystemExit(3)", "import time; time.sleep(600)"])
def test_ray_alone_that_does_not_start_is_an_error(tmp_path: Path, after: str) -> None:
    output = tmp_path / "bare.out"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", f"print('already', flush=True)\n{after}"], stdout=file
        )
    try:
        while not output.read_bytes() and process.poll() is None:
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="expected a line `ready` from bare_serve: already"):
            wait_ready(process, output, 0.3)
    finally:
        process.kill()
        process.wait()


def test_ray_alone_has_started_once_it_says_so(tmp_path: Path) -> None:
    output = tmp_path / "bare.out"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "print('a'); print('ready')"], stdout=file
        )
    process.wait()
    wait_ready(process, output, 0.0)
