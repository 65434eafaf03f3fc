"""Arrays that are made anew at each step cost no new pages once they were there."""

import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from recsys.process import malloc_tuning as memory
kept = memory.keep_freed_memory() if {keep} else True
def step():
    arrays = [np.ones(size, np.float32) for size in (200_000, 700_000, 400_000)]
    return sum(len(array) for array in arrays)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_twenty_steps(keep: bool) -> int:
    """How many pages the system had to give; a process of its own, as malloc is told for good."""
    code = STEPS.format(keep=keep)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, faults = ran.stdout.split()
    if kept != "True":
        pytest.skip("malloc isn't glibc's")
    return int(faults)


def test_a_step_takes_the_memory_of_the_step_before() -> None:
    assert faults_of_twenty_steps(keep=True) < 100
    assert faults_of_twenty_steps(keep=False) > 1_000, (
        "malloc does it by itself: it needn't be told"
    )
