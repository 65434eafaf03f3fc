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
    assert faults_of_twenty_steps(keep=False) > 1_000, "malloc does it by itself: it needn't be told"


FREED = """
import re
from pathlib import Path
from recsys.process.malloc_tuning import return_freed_memory
def used_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
blocks = [bytes(2_000) for _ in range(100_000)]
last = blocks.pop()  # lies above all others, so that malloc keeps them
blocks.clear()
before = used_mb()
return_freed_memory()
print(before - used_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another malloc")
def test_what_was_freed_below_something_in_use_returns_to_the_system() -> None:
    ran = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 150
