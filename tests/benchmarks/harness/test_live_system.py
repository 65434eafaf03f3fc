"""What a bench counts as a replica."""

from types import SimpleNamespace

import psutil
import pytest

from benchmarks.harness import serve_doors
from benchmarks.harness.live_system import Live
from recsys.config.system_config import Config


def test_a_shard_of_retrieval_is_no_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {
        7: ["ray::ServeReplica:recsys:Feed"],
        8: ["ray::ServeReplica:recsys:Retrieval-0"],
        9: ["ray::ServeController.listen"],
    }

    def process(pid: int) -> SimpleNamespace:
        return SimpleNamespace(cmdline=lambda: lines[pid])

    monkeypatch.setattr(psutil, "Process", process)
    monkeypatch.setattr(serve_doors, "members", lambda leader: list(lines))
    monkeypatch.setattr(Live, "leader", lambda self, part: None)
    system = Live(Config())
    assert system.replicas() == {7}
    assert system.processes_matching("ray", "ServeController") == [9]
