"""Workers of a fold share its partitions, and lock them."""

import subprocess
import sys
from pathlib import Path

import pytest

from recsys.config.log_config import LogConfig
from recsys.config.part_configs import WorkersConfig
from recsys.config.system_config import Config
from recsys.process.part_snapshot import PartState, ShareState
from recsys.process.worker_share import WHOLE, Share, leased, part_of

TOPIC, PARTITIONS = "events", 4


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_each_partition_has_one_worker(workers: int) -> None:
    shares = [Share(index, workers).partitions(PARTITIONS) for index in range(workers)]
    assert sorted(partition for share in shares for partition in share) == [0, 1, 2, 3]
    assert all(shares) and WHOLE.partitions(PARTITIONS) == [0, 1, 2, 3]


def test_workers_are_named_by_their_part() -> None:
    workers = WorkersConfig(session_fold=2)
    assert workers.names("session-fold") == ["session-fold.0", "session-fold.1"]
    assert workers.names("joiner") == ["joiner"] and workers.names("serve") == ["serve"]
    assert workers.names("counters") == ["counters"]
    several = WorkersConfig(counters=2).names("counters")
    assert several == ["counters.0", "counters.1", "counters.2"], "the last adds up"
    assert [part_of(name) for name in ("session-fold.1", "joiner")] == ["session-fold", "joiner"]


def test_more_workers_than_partitions_are_refused() -> None:
    Config(log=LogConfig(partitions=4), workers=WorkersConfig(joiner=4))
    with pytest.raises(
        ValueError, match="workers.joiner is 5, expected at most log.partitions, which is 4; set"
    ):
        Config(log=LogConfig(partitions=4), workers=WorkersConfig(joiner=5))


def test_a_partition_belongs_to_one_process_until_it_ends(tmp_path: Path) -> None:
    holding = (
        "import sys, time; from recsys.process.worker_share import leased\n"
        f"with leased({str(tmp_path)!r}, 'joiner', [1, 3]):\n"
        "    print('has them', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"has them\n"
        with leased(tmp_path, "joiner", [0, 2]), leased(tmp_path, "counters", [1]):
            pass
        with pytest.raises(RuntimeError, match=r"partition 3 of joiner.*joiner-3.lease: end"):
            with leased(tmp_path, "joiner", [0, 3]):
                pass
        other.kill()
        other.wait()
        with leased(tmp_path, "joiner", [0, 1, 2, 3]):
            pass


def save(folder: Path, share: Share, offset: int) -> None:
    """A worker's snapshot, as after its start."""
    state = ShareState(PartState(folder, "fold"), TOPIC, PARTITIONS, share)
    own = share.partitions(PARTITIONS)
    state.load("log")
    state.save("log", dict.fromkeys(own, offset), lambda partitions: b"%d" % len(partitions))


def load(folder: Path, share: Share = WHOLE) -> dict[int, tuple[int, bytes]]:
    state = ShareState(PartState(folder, "fold"), TOPIC, PARTITIONS, share)
    saved = state.load("log")
    return {p: (snapshot.offsets[TOPIC][p], snapshot.blob) for p, snapshot in saved.items()}


def test_a_partitions_newest_snapshot_is_found_whatever_the_number_of_workers(tmp_path: Path) -> None:
    assert load(tmp_path) == {}
    save(tmp_path, WHOLE, 5)
    assert load(tmp_path, Share(1, 2)) == {1: (5, b"4"), 3: (5, b"4")}
    save(tmp_path, Share(1, 2), 8)  # its neighbour hasn't saved yet
    assert load(tmp_path) == {0: (5, b"4"), 1: (8, b"1"), 2: (5, b"4"), 3: (8, b"1")}
    save(tmp_path, Share(0, 2), 7)
    assert load(tmp_path, Share(0, 3)) == {0: (7, b"1"), 3: (8, b"1")}
    save(tmp_path, WHOLE, 9)
    assert load(tmp_path, Share(0, 3)) == {0: (9, b"4"), 3: (9, b"4")}


def test_snapshots_of_another_number_of_workers_go(tmp_path: Path) -> None:
    def files() -> list[str]:
        return sorted(path.parent.name for path in tmp_path.rglob("state.msgpack"))

    save(tmp_path, WHOLE, 5)
    save(tmp_path, Share(0, 2), 6)
    assert files() == ["fold", "fold-p0", "fold-p2"]
    save(tmp_path, Share(1, 2), 6)
    assert files() == ["fold-p0", "fold-p1", "fold-p2", "fold-p3"]
    save(tmp_path, WHOLE, 7)
    assert files() == ["fold"]
