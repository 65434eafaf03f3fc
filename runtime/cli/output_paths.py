"""What a command is to write, looked at before its work."""

from pathlib import Path


def check_folders(*files: Path | None) -> None:
    """What can't be written is said before the work, not after it."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"{file}: there is no folder {file.parent}; make it, or name another")
