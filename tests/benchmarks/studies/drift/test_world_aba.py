import numpy as np
import pytest

from benchmarks.studies.drift.world_aba import WorldABA

HOUR_MS = 3_600_000


def test_the_world_goes_from_a_to_b_and_back() -> None:
    its = WorldABA(3, 40, 60, phase_ms=HOUR_MS)
    a, b, back = its.starts_ms()
    first = [its.true_long_view("u1", f"w{n}", a) for n in range(30)]
    assert first == [its.true_long_view("u1", f"w{n}", back + HOUR_MS) for n in range(30)]
    other = [its.true_long_view("u1", f"w{n}", b) for n in range(30)]
    assert np.corrcoef(first, other)[0, 1] < 0.7
    people = WorldABA(3, 40, 60, phase_ms=HOUR_MS, change="people")
    of = [{r.user_id for r in people.next_requests(s, s + 60_000)} for s in people.starts_ms()]
    assert not of[0] & of[1] and of[0] & of[2]
    same = WorldABA(3, 40, 60, phase_ms=HOUR_MS, change="nothing")
    assert first == [same.true_long_view("u1", f"w{n}", b) for n in range(30)]
    with pytest.raises(ValueError, match="change is 'all'"):
        WorldABA(3, phase_ms=1, change="all")
