"""Secrets in files: a change is seen within a second, a missing file gives none."""

from pathlib import Path

from serving.access.key_files import SecretFile


def test_a_changed_file_is_read_again_after_a_second(tmp_path: Path) -> None:
    now_s, path = [10.0], tmp_path / "token.keys"
    read = SecretFile(path, lambda: now_s[0])
    assert read() == ()
    path.write_text("new\nold\n")
    assert read() == ()
    now_s[0] = 11.0
    lines = read()
    assert lines == ("new", "old") and read() is lines
    now_s[0] = 12.0
    assert read() is lines, "the same tuple, so that nothing is made anew"
    path.write_text("newer\nnew\n")
    now_s[0] = 13.0
    assert read() == ("newer", "new")
    path.unlink()
    now_s[0] = 14.0
    assert read() == ()
