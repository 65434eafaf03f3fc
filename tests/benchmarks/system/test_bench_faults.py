"""What the bench of faults makes of what it saw; no system is started here."""

import pytest
from click.testing import CliRunner

from benchmarks.harness.live_system import counted
from benchmarks.harness.load_client import Sent
from benchmarks.system.bench_faults import FAULTS, chosen, judged
from runtime.cli.main import load


def sent(statuses: list[int], empty: int = 0) -> Sent:
    due = [float(number) for number in range(len(statuses))]
    done = [at + 0.01 if status == 200 else 0.0 for at, status in zip(due, statuses, strict=True)]
    return Sent(due=due, sent=due, done=done, status=statuses, empty=empty)


def test_answered_is_a_list_with_items_and_all_else_is_named() -> None:
    its = sent([200, 200, 503, 429, 0, 500, 200, 200], empty=1)
    its.degraded = 2
    its.notes = [("a", ()), ("b", ("session",)), ("c", ("session", "stale")), ("d", ())]
    found = counted(its)
    assert found["requests"] == 8 and found["answered"] == 3
    assert found["answered_share"] == round(3 / 8, 5)
    assert found["refused"] == 2 and found["failed"] == 3  # no answer, an error, an empty list
    assert found["degraded"] == 2 and found["without"] == {"session": 2, "stale": 1}
    assert found["bad_for_s"] == 3.0 and found["slowest_ms"] == pytest.approx(10.0)


def test_nothing_answered_has_no_latency() -> None:
    found = counted(sent([0, 0]))
    assert found["answered_share"] == 0 and found["p50_ms"] is None


def test_each_log_has_its_faults_and_an_unknown_one_is_told() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    names = [fault.name for fault in chosen((), kafka=False)]
    assert "log-locked" in names and "broker" not in names
    assert [fault.name for fault in chosen((), kafka=True)][-1] == "broker"
    assert [fault.name for fault in chosen(("ray", "valkey"), False)] == ["valkey", "ray"]
    with pytest.raises(ValueError, match="--only names broker, expected of nothing, valkey"):
        chosen(("broker",), kafka=False)
    arguments = ["faults", "--only", "nonsense"]
    result = CliRunner().invoke(load("benchmarks.bench:bench", "bench"), arguments)
    assert result.exit_code == 2 and "--only names nonsense" in result.output


def test_a_door_of_which_there_is_one_is_judged_apart() -> None:
    faults = chosen(("valkey", "joiner", "haproxy", "ray"), kafka=False)
    rows = {
        "valkey": {"answered_share": 0.999, "unlogged": 0},
        "joiner": {"answered_share": 0.9989, "unlogged": 2},
        "haproxy": {"answered_share": 0.9, "unlogged": 1},
    }
    lost = {"broker": {"answered_share": 1.0, "unlogged": None}}  # nobody could look
    assert judged(lost, chosen(("broker",), kafka=True))["unlogged"] == 0
    found = judged(rows, faults)
    assert found["below"] == ["joiner"] and found["doors_below"] == ["haproxy"]
    assert found["unlogged"] == 3 and found["missing"] == ["ray"]
