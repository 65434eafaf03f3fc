"""Runs code as another user, who must not reach the files of the one who runs the tests."""

import os
import subprocess
import sys
from pathlib import Path

NOBODY = 65534

# Prints what a user can read, write or replace below the folders.
_REACHABLE = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for top in sys.argv[1:]:
    for folder, folders, files in os.walk(top):
        for name in [".", *folders, *files]:
            path = os.path.join(folder, name)
            if os.access(path, os.R_OK) or os.access(path, os.W_OK):
                print(path)
"""


def reachable(*folders: Path) -> list[str]:
    """Paths below the folders that user ``nobody`` can read or replace. Needs root."""
    assert os.geteuid() == 0, "only root can become nobody: skip the test for other users"
    command = [sys.executable, "-S", "-c", _REACHABLE, *map(str, folders)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()
