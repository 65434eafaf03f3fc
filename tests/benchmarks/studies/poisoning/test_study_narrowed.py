"""The study runs, small: with the bound targets stay where controls do, without it they rise."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.studies.poisoning.study_narrowed import measured


@pytest.mark.slow
def test_new_accounts_that_leave_one_item_to_choose_from_move_nothing(tmp_path: Path) -> None:
    rows = [asyncio.run(measured(tmp_path / str(share), 8, 20, 2, 1, share)) for share in (0.5, 0.0)]
    bounded, believed = rows
    assert bounded["engagements"]["unproven"] == 0, "the lists have tokens"
    assert bounded["targets_moved"] < 3 + bounded["controls_moved"] and not bounded["targets_entered"]
    assert believed["targets_moved"] > 10 and believed["targets_entered"] > 0
