"""The hook that each of Ray's workers runs."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from recsys.process.process_priority import STARTING, VARIABLE
from runtime.parts import ray_worker
from runtime.supervision.processes import NODE_STATE, STATE

SCRIPT = """
import os
from pathlib import Path
from recsys.process import process_priority as niceness
from runtime.parts import ray_worker
told = []
ray_worker.set_session_priority = told.append
ray_worker.lower_session_priority = lambda nice: told.append(-nice)
ray_worker.keep_on_loopback = lambda: told.append("loopback")
ray_worker.another_answers = lambda: answers
assert os.getsid(0) != os.getpid()
if leads:
    os.setpgid(0, 0)
ray_worker.begin()
print(os.getsid(0) == os.getpid(), told)
"""


def said(leads: bool, answers: bool = True, **environment: str) -> str:
    words = [sys.executable, "-c", f"leads, answers = {leads}, {answers}\n{SCRIPT}"]
    run = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return run.stdout.strip()


def test_a_worker_has_a_session_of_its_own_also_where_it_leads_a_group() -> None:
    for leads in (False, True):
        assert said(leads) == "True [0, 'loopback']"


def test_what_learns_steps_back_and_what_answers_does_while_it_starts() -> None:
    assert said(False, **{VARIABLE: "7"}) == "True [-7, 'loopback']"
    assert said(True, **{STARTING: "4"}) == "True [0, 4, 'loopback']"


def test_the_only_replica_starts_before_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE, "/nowhere")
    assert said(True, answers=False, **{STARTING: "4"}) == "True [0, -10, 'loopback']"
    assert not ray_worker.another_answers()
    command = ["bash", "-c", "exec -a ray::ServeReplica:recsys:Feed sleep 60"]
    with subprocess.Popen(command) as replica:
        try:
            while "ray::ServeReplica:recsys:Feed" not in psutil.Process(replica.pid).cmdline():
                time.sleep(0.01)
            assert ray_worker.another_answers()
        finally:
            replica.kill()


def test_private_parts_of_ray_that_are_left_out_exist() -> None:
    from ray._private.node import Node
    from ray.serve._private.proxy_state import ProxyStateManager
    from ray.train.v2._internal.execution.controller.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    for owner, name in (
        (ProxyStateManager, "_start_fallback_proxy_if_needed"),
        (FixedScalingPolicy, "_maybe_send_resource_request"),
        (FixedScalingPolicy, "after_controller_start"),
        (DataParallelTrainer, "_initialize_and_run_controller"),
        (TrainController, "run"),
        (TrainController, "get_result"),
        (Node, "dead_processes"),
        (Node, "start_api_server"),
    ):
        assert hasattr(owner, name), name


def test_a_worker_of_a_cluster_has_the_state_folder_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("begin_session", "lower_session_priority", "keep_on_loopback"):
        monkeypatch.setattr(ray_worker, name, lambda *_: None)
    monkeypatch.setattr(ray_worker.wrapt, "register_post_import_hook", lambda *_: None)
    monkeypatch.setenv(STATE, "")
    monkeypatch.setenv(NODE_STATE, "/mnt/state")
    ray_worker.begin()
    assert os.environ[STATE] == "/mnt/state"
