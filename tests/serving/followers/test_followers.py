"""A replica is ready once it has caught up with the log."""

from pathlib import Path

import pytest

from tests.support.serving.followed_log import FollowedLog


@pytest.fixture
def fixture(tmp_path: Path) -> FollowedLog:
    return FollowedLog(tmp_path)


def test_it_is_ready_once_caught_up(fixture: FollowedLog) -> None:
    fixture.item(0)
    fixture.snapshot(2, 2.0)
    fixture.step(3, 3.0)
    assert not fixture.live.control.keyring.complete
    fixture.live.followers.catch_up(lambda: False)
    assert fixture.live.followers.ready and fixture.live.control.keyring.complete
    assert fixture.live.replica.version == ("main", 0, 3) and fixture.row() == 3.0
