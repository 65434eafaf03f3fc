"""Flipped bits in the pages and metadata of an archive: `recsys check` names the file each time."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.jobs.state_check import StateReport, check_state
from runtime.supervision import launch_plan
from tests.support.plan_config import config_in
from tests.support.seeds import LONG, seeds
from tests.support.simulation.bit_flips import flip_bit
from tests.support.training.archived_examples import archived

pytestmark = pytest.mark.steady

FLIPS = 4_000 if LONG else 150


@pytest.fixture
def state(tmp_path: Path) -> Path:
    launch_plan.write(*launch_plan.resolve(config_in(tmp_path)))
    archived(tmp_path / "archive")
    return tmp_path


def archive_files(state: Path) -> list[Path]:
    return sorted((state / "archive").rglob("part-*.parquet"))


def flipped(state: Path, paths: Sequence[Path], count: int, footer_share: float) -> Counter[str]:
    """Numbers of flips by outcome; a report that doesn't come, or names another file, fails."""
    [seed] = seeds("flips", 1, 1_000)[:1]
    draw, outcomes = random.Random(seed), Counter[str]()
    files = len(archive_files(state))
    for _ in range(count):
        path = draw.choice(paths)
        intact = path.read_bytes()
        footer = len(intact) - int.from_bytes(intact[-8:-4], "little") - 8
        in_footer = draw.random() < footer_share
        at = draw.randrange(footer, len(intact)) if in_footer else draw.randrange(footer)
        flip_bit(path, 8 * at + draw.randrange(8), intact)
        report: StateReport = check_state(state, mb_s=0)
        path.write_bytes(intact)
        assert [damage.where for damage in report.damage] in ([str(path)], [])
        assert report.archive_files == files
        outcomes["named" if report.damage else "unseen"] += 1
    return outcomes


@pytest.mark.slow
def test_every_flipped_bit_of_an_archive_is_named(state: Path) -> None:
    assert flipped(state, archive_files(state), FLIPS, 0.5) == {"named": FLIPS}
