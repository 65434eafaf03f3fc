"""An offline job on Ray: two workers on two nodes, with data and registry in a folder that both reach."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from parameter_server.shard.lanes import LaneGradients, RowGradients
from runtime.jobs.offline_job import run
from tests.support.paths import ROOT
from tests.support.training.offline_command import arrays_of, asked, state_with_archive
from training.candidates.registry import Registry
from training.offline.loop import LoopState
from training.offline.sharding import decode, encode
from training.offline.trainer import LaneResult

pytestmark = pytest.mark.pairs(16)

__all__ = ["system"]

# In a process of its own: Ray's settings are read when it is imported.
NODES = """
import json, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False,
                                                       "node_ip_address": "127.0.0.1"})
cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
ray.init(address=cluster.address, log_to_driver=False,
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[1]}})
assert len([node for node in ray.nodes() if node["Alive"]]) == 2
from runtime.jobs.offline_job import run
from tests.support.training.offline_command import asked

done = run(asked(Path(sys.argv[2]), Path(sys.argv[3]), workers=2))
print("done", json.dumps(done))
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return state_with_archive(tmp_path_factory.mktemp("system"))


@pytest.mark.services
@pytest.mark.slow
def test_two_workers_on_two_nodes_learn_what_one_process_learns(system: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", NODES, str(ROOT), str(system), str(tmp_path / "two")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (name,) = Registry(tmp_path / "two").names()
    alone = run(asked(system, tmp_path / "one"))["candidate"]
    one, two = arrays_of(tmp_path / "one", alone), arrays_of(tmp_path / "two", name)
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    ours = Registry(tmp_path / "one").provenance(alone)
    assert ours.metrics == Registry(tmp_path / "two").provenance(name).metrics


def test_messages_travel_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_offline = pytest.importorskip("training.offline.ray_job")
    keys = np.array([5, -9], np.int64)
    rows = RowGradients(keys, np.array([[1.5], [np.nan]], np.float32), np.array([1, 2], np.int32))
    lane = LaneGradients(3, {"users": rows}, np.arange(4, dtype=np.float32), {"loss.like": 0.1})
    message = [LaneResult(lane, np.eye(2, 3, dtype=np.float32))]
    other = encode(message)  # of worker 0

    def all_to_all_single(out: Any, sent: Any, *sizes: Any) -> None:
        """As torch's: sizes first, then bytes."""
        if not sizes:
            assert sent.tolist()[1] == 0, "the own message stays"
            out.copy_(torch.tensor([len(other), 0]))
        else:
            assert decode(sent.numpy().tobytes(), list[LaneResult]) == []
            out.copy_(torch.frombuffer(bytearray(other), dtype=torch.uint8))

    monkeypatch.setattr(ray_offline.torch.distributed, "all_to_all_single", all_to_all_single)
    [again], own = ray_offline.exchange([[], "own"], list[LaneResult], rank=1)
    assert own == "own"
    assert np.array_equal(again.probabilities_BL, np.eye(2, 3, dtype=np.float32))
    assert again.gradients.lane == 3 and again.gradients.metrics == {"loss.like": 0.1}
    again_rows = again.gradients.tables["users"]
    assert again_rows.gradients.tobytes() == rows.gradients.tobytes()
    assert again_rows.keys.flags.writeable and again_rows.keys.tobytes() == keys.tobytes()
    other = pickle.dumps(message, protocol=5)
    with pytest.raises(msgspec.DecodeError):
        ray_offline.exchange([[], "own"], list[LaneResult], rank=1)
    with pytest.raises(msgspec.DecodeError):
        decode(msgspec.msgpack.encode(("|O", [1], bytes(8))), np.ndarray)


def test_progress_is_written_seldom(tmp_path: Path) -> None:
    ray_offline = pytest.importorskip("training.offline.ray_job")
    now, file = 0.0, tmp_path / "progress.json"
    reporter = ray_offline.Reporter(lambda: now, file)

    def report(learned: int) -> int | None:
        state = LoopState(epoch=1, learned=learned, steps=2)
        reporter.report(state, {"examples": 4.0, "loss.like": 2.0})
        if not file.exists():
            return None
        progress = msgspec.json.decode(file.read_bytes(), type=ray_offline.OfflineProgress)
        assert progress.log_loss == 0.5
        return progress.learned

    assert report(10) is None
    now = 5.0
    assert report(20) == 20
    now = 9.9
    assert report(30) == 20
    now = 10.0
    assert report(40) == 40
