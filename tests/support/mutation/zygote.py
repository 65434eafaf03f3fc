"""Process that has imported the libraries and forks for each run of tests, which then start in a moment.

It runs as a script in the folder of the mutated copy, so that it has no module of the project. Each line of
its input is a run as JSON ``{"tests": [...], "left_out": [], …}``, each line of its output the answer
``{"code": 0, "seconds": 1.2, "failed": "", "times": {FILE: 0.4}}``; code -1 is a run that took too long.
"""

import gc
import json
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

TEST_S = 40  # a single test that takes longer fails
NOTES = Path("build-notes.json")


class Notes:
    """Plugin that records the first test that fails, and the seconds of each file."""

    def __init__(self) -> None:
        self.failed = ""
        self.times: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._add(report, report.duration)

    def pytest_collectreport(self, report: Any) -> None:
        self._add(report, 0.0)

    def _add(self, report: Any, seconds: float) -> None:
        self.times[report.nodeid.partition("::")[0]] += seconds
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_sessionfinish(self) -> None:
        NOTES.write_text(json.dumps({"failed": self.failed, "times": self.times}))


def run(tests: list[str], left_out: list[str], timeout_s: float, writes_bytecode: bool) -> dict[str, Any]:
    NOTES.unlink(missing_ok=True)
    began, child = time.monotonic(), os.fork()
    if child == 0:
        os.setsid()
        os._exit(_run_tests(tests, left_out, writes_bytecode))
    while time.monotonic() < began + timeout_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            notes = json.loads(NOTES.read_text()) if NOTES.exists() else {"failed": "", "times": {}}
            return {"code": abs(code), "seconds": time.monotonic() - began, **notes}
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"code": -1, "seconds": timeout_s, "failed": "", "times": {}}


def _run_tests(tests: list[str], left_out: list[str], writes_bytecode: bool) -> int:
    import hypothesis
    import pytest

    quiet = os.open("build-tests.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.path[:0] = [os.getcwd()]
    sys.dont_write_bytecode = not writes_bytecode
    # No shrinking: any failure will do. The same examples for all mutants.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=phases, derandomize=True, database=None)
    hypothesis.settings.load_profile("mutants")
    try:
        options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", f"--timeout={TEST_S}"]
        options += [f"--deselect={test}" for test in left_out]
        return int(pytest.main([*options, *tests], plugins=[Notes()]))
    except BaseException:
        return 1


def main() -> None:
    here = Path(__file__).parent.as_posix()
    sys.path[:] = [place for place in sys.path if place != here]
    answers = os.fdopen(os.dup(1), "w")
    import fastapi  # noqa: F401
    import hypothesis.stateful  # noqa: F401
    import msgspec  # noqa: F401
    import numba  # noqa: F401
    import numpy  # noqa: F401
    import pyarrow  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    for line in sys.stdin:
        wanted = json.loads(line)
        print(json.dumps(run(**wanted)), file=answers, flush=True)


if __name__ == "__main__":
    main()
