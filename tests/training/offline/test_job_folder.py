"""The folder of an offline job, and the cache that jobs on the same data share."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from parameter_server.storage.snapshots import latest, write_part
from recsys.config.system_config import ModelConfig
from tests.support.power_cut import power_cut
from tests.support.training.small_feed import FEATURES
from training.offline.cache import Cache
from training.offline.job import FILE, Job, cached, clean_up, create_folder, read_job, reading
from training.offline.loop import Plan


def job_of(folder: Path, **changes: Any) -> Job:
    options = {"registry": str(folder), "cache": str(folder / "examples-1"), "lanes": 4, **changes}
    return Job(features=FEATURES, model=ModelConfig(), plan=Plan(last=1), **options)


def test_an_existing_job_keeps_its_name(tmp_path: Path) -> None:
    folder = create_folder(tmp_path, job_of(tmp_path, name="first"))
    assert create_folder(tmp_path, job_of(tmp_path, name="second")) == folder
    assert read_job(folder).name == "first"


def test_a_job_whose_file_a_power_cut_has_emptied_begins_again(tmp_path: Path) -> None:
    folder = create_folder(tmp_path, job_of(tmp_path, name="first"))
    (folder / FILE).write_bytes(b"")
    create_folder(tmp_path, job_of(tmp_path, name="second"))
    assert read_job(folder).name == "second"


def test_the_last_job_that_reads_a_cache_removes_it(tmp_path: Path) -> None:
    jobs = [job_of(tmp_path, lanes=lanes) for lanes in (2, 4)]
    folders, cache = [create_folder(tmp_path, job) for job in jobs], Path(jobs[0].cache)
    cache.mkdir()
    with reading(cache):
        with reading(cache):
            clean_up(folders[0])
        clean_up(folders[0])
        assert cache.exists()
    clean_up(folders[1])
    assert not cache.exists()


def test_a_cache_that_a_job_reads_stays_beside_newer_ones(tmp_path: Path) -> None:
    def make(folder: Path) -> Cache:
        folder.mkdir()
        return cast(Cache, folder)

    with reading(tmp_path / "examples-a"):
        for key in "abcd":
            cached(tmp_path, key, make)
        assert {path.name[-1] for path in tmp_path.glob("examples-*")} == {"a", "c", "d"}
    (tmp_path / "examples-killed.partial").mkdir()
    cached(tmp_path, "e", make)
    assert len(list(tmp_path.glob("examples-*"))) == 2


def test_a_power_cut_leaves_the_snapshot_that_a_job_starts_from(tmp_path: Path) -> None:
    write_part(tmp_path / "line", "main", 0, 7, 0, 1, {"a": np.arange(3)}, {"step": 7})
    init = (str(tmp_path / "line"), "main", "")
    with power_cut(tmp_path):
        folder = create_folder(tmp_path / "work", job_of(tmp_path, init=init))
    copied, reasons = latest(folder / "ancestor", "main")
    assert copied is not None and copied.step == 7, reasons
