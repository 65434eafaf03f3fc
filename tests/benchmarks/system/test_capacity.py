"""The plan of machines: costs in proportion, and the part that breaks first."""

from dataclasses import replace

import pytest

from benchmarks.system.capacity import Costs, Demand, Load, Machine, needs, plan

COSTS: Costs = {
    "answer_us": 5_000.0, "write_us": 0.0, "session_fold_us": 30.0, "joiner_us": 20.0,
    "counters_us": 25.0, "counter_sums_us": 1.0, "sequencer_us": 5.0, "archive_us": 10.0,
    "shadow_us": 40.0, "learn_us": 100.0, "follow_us": 2.0,
    "engagements_an_example": 1.0, "impression_bytes": 10_000.0, "engagement_bytes": 100.0,
    "example_bytes": 3_000.0, "delta_bytes_an_example": 500.0, "item_state_bytes_an_event": 100.0,
    "session_bytes": 10_000.0, "shard_users_row_bytes": 200.0, "shard_items_row_bytes": 200.0,
    "replica_users_row_bytes": 200.0, "replica_items_row_bytes": 200.0,
    "replica_process_bytes": 250e6, "catalogue_own_bytes_an_item": 300.0,
    "catalogue_shared_bytes_an_item": 800.0,
}  # fmt: skip
LOAD = Load(events=10_000.0, requests=1_000.0, users=1e6, items=1e5)
MACHINE = Machine(cores=32, memory_gb=128.0, busy=0.5)


def demand(load: Load = LOAD, **costs: float) -> Demand:
    return Demand(load, {**COSTS, **costs}, MACHINE)


def test_parts_need_cores_in_proportion_to_the_load() -> None:
    cores = {part.part: part.cores for part in needs(demand(), 64, 3)}
    assert cores["replicas"] == pytest.approx(5.0)
    assert cores["session_fold"] == pytest.approx(0.3) and cores["joiner"] == pytest.approx(0.2)
    assert cores["learning"] == pytest.approx(0.9)
    double = Load(20_000.0, 2_000.0, 1e6, 1e5)
    for part in needs(demand(double), 64, 3):
        if (
            part.cores and part.part != "replicas' reading"
        ):  # more replicas, each of which reads twice as much
            assert part.cores == pytest.approx(2 * cores[part.part])


def test_the_part_that_breaks_first_is_one_that_cannot_be_divided() -> None:
    figures = plan(demand(), 64, 3, 0.04)
    assert figures["first_to_break"] == "shadow" and figures["breaking"] == []
    assert figures["holds_up_to_share"] == pytest.approx(0.5 / 0.36, abs=1e-3)
    for candidates in (1, 5):  # each learns all examples, in a process of its own
        load = replace(LOAD, events=30_000.0, candidates=candidates)
        more = plan(demand(load), 64, 3, 0.04)
        assert more["breaking"] == ["shadow"]
        assert more["holds_up_to_share"] == pytest.approx(0.5 / 1.16, abs=1e-3)
        assert more["parts"]["shadow"]["processes"] == candidates
    without = replace(LOAD, events=30_000.0, candidates=0)
    few = plan(demand(without), 1, 3, 0.04)
    assert few["breaking"] == ["session_fold", "joiner", "counters", "archive"]
    assert plan(demand(without), 64, 3, 0.04)["first_to_break"] == "sequencer"
    adds_up = plan(demand(counter_sums_us=60.0), 64, 3, 0.04)
    assert adds_up["first_to_break"] == "counter_sums" and "counters" not in adds_up["breaking"]


def test_replicas_break_by_memory_and_by_what_they_read() -> None:
    users = plan(demand(replace(LOAD, users=1e9)), 64, 3, 0.04)
    assert users["first_to_break"] == "replicas' memory"
    reading = plan(demand(follow_us=30.0), 64, 3, 0.04)
    assert reading["first_to_break"] == "replicas' reading"


def test_replicas_of_a_machine_share_rows_and_catalogue() -> None:
    load = replace(LOAD, requests=2_000.0, items=1e7, users=1e7)
    shared_gb, own_gb = 12.0, 3.25
    for memory_gb, hosts in ((128.0, 1), (64.0, 2), (25.0, 10), (20.0, 20)):
        each = replace(MACHINE, memory_gb=memory_gb)
        figures = plan(Demand(load, {**COSTS, "follow_us": 0.0}, each), 64, 3, 0.04)
        memory = figures["parts"]["replicas' memory"]
        assert figures["parts"]["replicas"]["processes"] == 20
        assert memory["processes"] == hosts <= figures["machines"]
        assert memory["memory_gb"] == pytest.approx(hosts * shared_gb + 20 * own_gb)
        fits = shared_gb + own_gb <= 0.8 * memory_gb
        assert (memory["limit_share"] >= 1) == fits


def test_machines_and_cost_follow_from_cores_or_memory() -> None:
    figures = plan(demand(), 64, 3, 0.04)
    assert figures["machines"] == 1 and figures["cost_an_hour"] == 1.28
    assert figures["disk_tb"] == pytest.approx(3 * 259_200 * (10.9e6 + 27e6) / 1e12, abs=0.1)
    many = plan(demand(replace(LOAD, requests=9_000.0)), 64, 3, 0.04)
    assert many["machines"] == 3  # 45 cores of answers, at half of each
    stored = plan(demand(replace(LOAD, users=1e8)), 64, 3, 0.04)
    assert stored["parts"]["session store"]["memory_gb"] == pytest.approx(100.0)
