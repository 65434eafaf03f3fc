"""Workers of a job over one folder: the candidate is that of one process, also after a kill."""

from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.jobs.offline_job import _WORK, _begin, run
from runtime.jobs.offline_options import OfflineOptions
from tests.support.seeds import drawn
from tests.support.training.archived_examples import MINUTE_MS
from tests.support.training.offline_command import arrays_of, asked, state_with_archive
from tests.support.training.offline_workers import together
from tests.support.training.small_feed import START_MS
from training.candidates.registry import Registry
from training.offline.job import read_job, run_worker
from training.offline.loop import LoopState

pytestmark = pytest.mark.slow
SMALL = "dim=2,hidden=4"
# Four parts; one table has so few rows that its budget decides, another a time-to-live.
CONFIG = """
model:
  dim: 4
  vector_dim: 4
  hidden: [8]
  tables: {features: {budget_mb: 0.004, admit_after: 2}, items: {ttl_s: 600}}
step: {lanes: 4}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = state_with_archive(tmp_path_factory.mktemp("system"))
    (folder / "small.yaml").write_text(CONFIG)
    return folder


def worked(options: OfflineOptions, workers: int, dies_at: int = 0) -> str:
    """Trains with so many workers, which die at a step; returns the candidate's name."""
    with ExitStack() as reading:
        folder = _begin(options, options.registry_folder.resolve() / _WORK, reading)

    def report(state: LoopState, _: Any) -> None:
        if state.steps == dies_at:
            raise KeyboardInterrupt

    together(workers, lambda own: run_worker(folder, own.rank, workers, own.exchange, report))
    return read_job(folder).name


def same(one: OfflineOptions, name: str, other: OfflineOptions, others: str) -> bool:
    mine, theirs = arrays_of(one.registry_folder, name), arrays_of(other.registry_folder, others)
    assert all(name.startswith("0/") for name in mine), "one part: shadows map its rows"
    equal = mine.keys() == theirs.keys() and all(np.array_equal(mine[n], theirs[n]) for n in mine)
    registries = Registry(one.registry_folder), Registry(other.registry_folder)
    metrics = [r.provenance(n).metrics for r, n in zip(registries, (name, others), strict=True)]
    return equal and metrics[0] == metrics[1]


STARTS = ("anew", "from another", "as a student")


@pytest.mark.parametrize(("workers", "starts"), drawn("offline workers", 2, [*product((2, 4), STARTS)]))
def test_any_number_of_workers_makes_the_same_candidate(
    system: Path, tmp_path: Path, workers: int, starts: str
) -> None:
    alone, shared = asked(system, tmp_path / "one"), asked(system, tmp_path / "many")
    if starts != "anew":
        early = {"until": str(START_MS + 50 * MINUTE_MS)}
        first = run(replace(alone, **early))["candidate"]
        second = worked(replace(shared, **early), workers)
        changes = [
            {"init": name} if starts == "from another" else {"student": SMALL, "teacher": name}
            for name in (first, second)
        ]
        alone, shared = replace(alone, **changes[0]), replace(shared, **changes[1])
    assert same(alone, run(alone)["candidate"], shared, worked(shared, workers))


def test_workers_go_on_from_the_checkpoint_of_another_number(system: Path, tmp_path: Path) -> None:
    alone, shared = asked(system, tmp_path / "one"), asked(system, tmp_path / "many")
    for step, workers in ((5, 2), (8, 3)):
        with pytest.raises(KeyboardInterrupt):
            worked(shared, workers, dies_at=step)
    assert same(alone, run(alone)["candidate"], shared, worked(shared, 4))


def test_a_checkpoint_that_lacks_a_part_does_not_count(system: Path, tmp_path: Path) -> None:
    alone, shared = asked(system, tmp_path / "one"), asked(system, tmp_path / "many")
    with pytest.raises(KeyboardInterrupt):
        worked(shared, 2, dies_at=7)
    newest = max(tmp_path.glob("many/.work/job-*/parts/work/0*"))
    (newest / "part-00001-of-00004").rename(tmp_path / "gone")
    assert same(alone, run(alone)["candidate"], shared, worked(shared, 2))
