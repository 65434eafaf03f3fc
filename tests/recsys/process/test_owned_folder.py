"""Folders of one user: made closed, closed where they were open, refused where they are another's."""

import os
from pathlib import Path

import pytest

from recsys.process.part_process import owned_folder, write_atomically


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_folder_and_its_missing_parents_are_made_for_this_user_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert owned_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert [mode(tmp_path / name) for name in (".", "a", "a/b")] == [0o755, 0o700, 0o700]


def test_an_open_folder_is_closed_and_the_log_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o775)
    owned_folder(tmp_path)
    assert mode(tmp_path) == 0o700
    assert caplog.messages == [f"{tmp_path} is now closed to other users; its mode was 775"]
    owned_folder(tmp_path)
    assert len(caplog.messages) == 1


def test_a_folder_that_all_users_share_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(PermissionError, match="shared by all users: choose a folder"):
        owned_folder(tmp_path)
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_or_link_of_another_user_is_refused_with_the_remedy(tmp_path: Path, link: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    path = tmp_path / "state"
    if link:
        (tmp_path / "mine").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "mine")
    else:
        path.mkdir(mode=0o700)
    os.lchown(path, 65534, 65534)
    with pytest.raises(PermissionError, match=r"user 65534, expected user 0.* chown -R 0 "):
        owned_folder(path)


def test_a_written_file_has_the_mode_that_was_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "shared", b"", mode=0o644)
    finally:
        os.umask(before)
    assert mode(tmp_path / "shared") == 0o644
