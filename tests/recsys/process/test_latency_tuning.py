"""What a process does before it answers. In others: it would change this one for good."""

import gc
import subprocess
import sys

import pytest

from recsys.process.latency_tuning import gc_seldom

SCRIPT = """
import gc, sys
from recsys.process import latency_tuning
told = []
latency_tuning.set_session_priority = told.append
latency_tuning.tune_for_latency()
assert told == [0], told
assert abs(sys.getswitchinterval() - latency_tuning.SWITCH_S) < 1e-6, sys.getswitchinterval()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
"""


def test_what_is_held_is_not_looked_through_threads_take_short_turns_and_the_session_has_its_share() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_garbage_is_collected_seldom_and_afterwards_as_before() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), gc_seldom(50_000):
        assert gc.isenabled() and gc.get_threshold()[0] == 50_000
        raise KeyError
    assert gc.get_threshold() == before != (50_000, 50, 50)
