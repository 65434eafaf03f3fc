"""One flipped bit in a file of a stopped system: the same rows in the end, or an error that names the file.

A shard may come back without its newest steps, since its workers then learn them again; what must never
happen is that it goes on with other rows.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from parameter_server.storage import part_files
from tests.support.seeds import seeds
from tests.support.simulation.simulator import SHARDS, Broken, Simulation
from tests.support.simulation.simulator_oracles import check

pytestmark = [pytest.mark.slow, pytest.mark.steady]

SEEDS = seeds("bits", 1, 60)
FILES = {
    "rows": "snapshots/*/*/part-*/*.safetensors",
    "joiner": "parts/joiner/state.msgpack",
    "manifest": "snapshots/*/*/part-*/manifest.json",
    "write-ahead file": "*.wal",
}


def flipped(seed: int, folder: Path, files: str) -> Path | None:
    """Runs a storm, flips a bit while all is down, and goes on; the file of a named error."""
    run, draw, hit = Simulation(seed, folder), random.Random(seed), list[Path]()

    def flip() -> None:
        run.answered = [0] * SHARDS  # a shard may lose its newest steps, and learn them again
        paths = sorted(folder.glob(files))
        if not paths:  # the storm's end came before the first snapshot
            return
        path = draw.choice(paths)
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        hit.append(path)

    try:
        check(run.run(between=flip))
    except Broken as broken:
        error = broken.__cause__
        assert error is not None and hit[0].name in str(error), (hit, broken)
        return hit[0]
    return None


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_changes_no_row(kind: str, tmp_path: Path) -> None:
    for seed in SEEDS:
        flipped(seed, tmp_path / str(seed), FILES[kind])


def test_a_snapshot_whose_digest_is_not_checked_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchecked: Callable[..., None] = lambda *_: None  # noqa: E731
    monkeypatch.setattr(part_files, "check_files", unchecked)
    for seed in SEEDS:  # nothing else finds it
        check(Simulation(seed, tmp_path / f"calm-{seed}").run())
    with pytest.raises((Broken, AssertionError)):
        for seed in range(40):
            flipped(seed, tmp_path / str(seed), FILES["rows"])
