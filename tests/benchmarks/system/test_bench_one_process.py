"""The bench of one process runs, small: each way to run answers and reads all events."""

import pytest


@pytest.mark.services
@pytest.mark.slow
def test_each_way_to_run_opens_the_folder_and_reads_all() -> None:
    pytest.importorskip("ray")
    from benchmarks.harness.commands import no_log
    from benchmarks.system.bench_one_process import OneProcessOptions, measure_one_process

    options = OneProcessOptions(learned=20, lists=20.0, events=50.0, seconds=2.0)
    found = measure_one_process(options, no_log)["figures"]
    assert found["recommender"]["lists_per_s"] > 10
    for name in ("serve", "up"):
        figures = found[name]
        assert figures["lists"]["failed"] == 0 and figures["lists"]["answered"] > 20
        assert figures["events_accepted"] > 50
        assert 0 < figures["first_answer_s"] < 120
    assert found["serve"]["pss_mb"] < found["up"]["pss_mb"] and found["serve"]["processes"] == 1
