"""Arithmetic of the benches of idle systems and of their start; no system is started here."""

import json
import os
import threading
import time

import pytest

from benchmarks.system.bench_idle import by_state, met, process_name
from benchmarks.system.thread_usage import (
    ThreadId,
    ThreadTimes,
    read_threads,
    total,
    usage_by,
    voluntary_switches,
)
from benchmarks.system.up_times import part_times


def test_a_group_uses_what_its_threads_used_between_the_readings() -> None:
    before = {ThreadId(1, 1): ThreadTimes(5_000_000_000, 100), ThreadId(9, 9): ThreadTimes(7, 7)}
    after = {
        ThreadId(1, 1): ThreadTimes(6_000_000_000, 120),
        ThreadId(1, 2): ThreadTimes(500_000_000, 5),  # began in between
        ThreadId(2, 2): ThreadTimes(250_000_000, 10),
    }
    groups = usage_by({1: "a", 2: "b", 9: "gone"}.__getitem__, before, after, 10.0)
    assert set(groups) == {"a", "b"}
    assert groups["a"].cores == pytest.approx(0.15) and groups["b"].cores == pytest.approx(0.025)
    assert groups["a"].wakeups_per_s == pytest.approx(2.5)
    assert groups["a"].busiest_wakeups_per_s == pytest.approx(2.0)
    assert (groups["a"].threads, groups["a"].processes) == (2, 1)
    everything = total(groups.values())
    assert everything.cores == pytest.approx(0.175) and everything.threads == 3
    assert everything.processes == 2 and everything.busiest_wakeups_per_s == pytest.approx(2.0)


def test_processes_with_one_name_are_one_group() -> None:
    after = {ThreadId(1, 1): ThreadTimes(10**9, 1), ThreadId(2, 2): ThreadTimes(10**9, 1)}
    groups = usage_by(lambda pid: "shard", {}, after, 2.0)
    assert groups["shard"].processes == 2 and groups["shard"].cores == pytest.approx(1.0)


def test_a_thread_that_wakes_often_shows() -> None:
    ended = threading.Event()

    def wake() -> None:
        while not ended.wait(0.01):
            pass

    thread = threading.Thread(target=wake)
    thread.start()
    before = read_threads([os.getpid()])
    time.sleep(0.3)
    after = read_threads([os.getpid(), 2**30])
    ended.set()
    thread.join()
    woke = usage_by(lambda pid: "self", before, after, 1.0)["self"].busiest_wakeups_per_s
    assert 10 <= woke <= 60
    with pytest.raises(ValueError, match="expected Linux"):
        voluntary_switches("nonvoluntary_ctxt_switches:\t3")
    assert voluntary_switches("voluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3") == 12


def test_a_process_has_the_name_of_its_part_or_of_its_place_in_ray() -> None:
    assert (
        process_name("counters+joiner", "python -m runtime.cli.part counters") == "counters+joiner"
    )
    assert process_name("ray", "/x/gcs_server --log_dir=…") == "ray: control store"
    assert process_name("ray", "ray::ServeReplica:recsys:Feed") == "replica"
    assert process_name("ray", "ray::HAProxyManager") == "serve: HAProxy manager"
    assert process_name("ray", "haproxy -f h/haproxy.cfg") == "serve: HAProxy"
    assert process_name("ray", "python -m runtime.cli.part ray") == "ray"
    assert process_name("", "python -m benchmarks.system.bare_serve") == "ray: other"


def test_viewers_are_no_part_of_what_a_system_uses() -> None:
    after = {
        ThreadId(1, 1): ThreadTimes(4 * 10**9, 0),
        ThreadId(2, 2): ThreadTimes(2 * 10**9, 0),
        ThreadId(3, 3): ThreadTimes(10**9, 0),
    }
    names = {1: "viewers", 2: "serve: controller", 3: "replica"}
    figures = by_state(usage_by(names.__getitem__, {}, after, 100.0))
    assert figures["all"]["cores"] == 0.03 and figures["of_ray"]["cores"] == 0.02
    assert list(figures["processes"]) == ["viewers", "serve: controller", "replica"]
    assert met({"rest": figures, "demo": figures}) == {"rest": True, "demo": True}
    figures["all"]["cores"] = 0.081
    assert met({"rest": figures}) == {"rest": False}


def test_a_part_starts_and_gets_ready_once() -> None:
    lines = [
        {"time_ms": 1_000, "message": "part changed", "of": "ray", "state": "starting"},
        {"time_ms": 4_000, "message": "part changed", "of": "ray", "state": "ready"},
        {"time_ms": 5_000, "message": "part changed", "of": "log", "state": "done"},
        {"time_ms": 6_000, "message": "part changed", "of": "ray", "state": "backoff"},
        {"time_ms": 9_000, "message": "part changed", "of": "ray", "state": "ready"},
        {"time_ms": 9_500, "message": "something else"},
    ]
    times = part_times(map(json.dumps, lines), 500.0)
    assert times == {"ray": {"starting": 0.5, "ready": 3.5}, "log": {"ready": 4.5}}
