"""The folder of an offline job, and the cache that jobs on the same data share."""

from pathlib import Path
from typing import Any

from recsys.config.system_config import ModelConfig
from tests.support.training.small_feed import FEATURES
from training.offline.job import FILE, Job, create_folder, read_job
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
