"""The hook that each of Ray's workers runs."""

import subprocess
import sys

from recsys.process.process_priority import STARTING, VARIABLE

SCRIPT = """
import os
from pathlib import Path
from recsys.process import process_priority as niceness
from runtime.parts import ray_worker
told = []
ray_worker.set_session_priority = told.append
ray_worker.lower_session_priority = lambda nice: told.append(-nice)
ray_worker.keep_on_loopback = lambda: told.append("loopback")
assert os.getsid(0) != os.getpid()
if leads:
    os.setpgid(0, 0)
ray_worker.begin()
print(os.getsid(0) == os.getpid(), told)
"""


def said(leads: bool, **environment: str) -> str:
    words = [sys.executable, "-c", f"leads = {leads}\n{SCRIPT}"]
    run = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return run.stdout.strip()


def test_a_worker_has_a_session_of_its_own_also_where_it_leads_a_group() -> None:
    for leads in (False, True):
        assert said(leads) == "True [0, 'loopback']"


def test_what_learns_steps_back_and_what_answers_does_while_it_starts() -> None:
    assert said(False, **{VARIABLE: "7"}) == "True [-7, 'loopback']"
    assert said(True, **{STARTING: "4"}) == "True [0, 4, 'loopback']"
