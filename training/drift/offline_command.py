"""Runs the operator's offline command when drift calls for it, beside the director: one process at a time,
without a shell. Requests made while it runs are dropped: the next alarm asks again."""

import logging
import shlex
import subprocess
from typing import Final

_END_S: Final = 10.0
_LOG: Final = logging.getLogger(__name__)


class OfflineCommand:
    """``command``: words as a shell would read them; empty: nothing is ever run."""

    def __init__(self, command: str) -> None:
        self._words = shlex.split(command)
        self._running: subprocess.Popen[bytes] | None = None
        self.ended: list[int] = []  # exit statuses

    def start(self) -> bool:
        """Starts the command; returns whether it did."""
        if not self._words:
            return False
        if self.runs:
            _LOG.info("the offline command runs already")
            return False
        try:
            self._running = subprocess.Popen(self._words, stdin=subprocess.DEVNULL)
        except OSError as error:
            _LOG.error("the offline command can't be started: %s", error)
            return False
        _LOG.info("the offline command began: %s", shlex.join(self._words))
        return True

    @property
    def runs(self) -> bool:
        """Whether it is running; logs its end."""
        status = self._running.poll() if self._running else None
        if status is not None:
            level = logging.ERROR if status else logging.INFO
            _LOG.log(level, "the offline command ended with status %d", status)
            self.ended.append(status)
            self._running = None
        return self._running is not None

    def close(self) -> None:
        """Terminates it. `recsys offline` resumes from its checkpoint when it is run again."""
        if self._running is not None and self.runs:
            self._running.terminate()
            try:
                self._running.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._running.kill()
                self._running.wait()
            _LOG.info("the offline command was ended with the director")
            self._running = None
