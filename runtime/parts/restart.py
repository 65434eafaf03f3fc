"""Replaces the serving replicas without a failed request, on request of ``recsys restart``.

The request goes to the Serve part through a file; its heartbeat reports the last completed request. The part
starts a new replica beside the old ones. Each new replica takes traffic once it has caught up with the log,
and only then an old one leaves: it refuses new connections, answers the open requests, and flushes its
writes.
"""

import time
from pathlib import Path
from typing import Final

from recsys.process.part_process import Beat, read_beat, run_folder, write_atomically
from runtime.parts.haproxy_config import check_doors
from runtime.supervision import launch_plan, run_file
from runtime.supervision.processes import alive

RESTARTABLE: Final = "serve"
GAUGE: Final = "restarts"  # heartbeat gauge: number of the last completed request
FAILED: Final = "restarts_failed"  # heartbeat gauge: number of the request that failed; 0: none


def request_restart(part: str, state: Path) -> int:
    """Writes a restart request; returns its number. Raises ValueError where the part isn't ready."""
    if part != RESTARTABLE:
        raise ValueError(
            f"part is {part!r}, expected {RESTARTABLE!r}: any other part may be killed (kill PID, see "
            "`recsys status`), and `recsys up` starts it again"
        )
    beat = _beat(state)
    running = run_file.read(state)
    if beat is None or beat.state != "ready" or running is None or not alive(running.supervisor):
        raise ValueError(
            f"{RESTARTABLE} isn't ready in {state.resolve()}: see `recsys status --state {state}`"
        )
    check_doors(launch_plan.read(state)[0])  # HAProxy would go on without the new replicas
    number = newest_request_number(state) + 1
    write_atomically(_file(state), str(number).encode())
    return number


def wait(state: Path, number: int, timeout_s: float) -> None:
    """Returns once the request is completed. Raises TimeoutError, and ValueError where new replicas fail."""
    deadline_s = time.monotonic() + timeout_s
    while (beat := _beat(state)) is None or beat.gauges.get(GAUGE, -1.0) < number:
        if beat is not None and beat.gauges.get(FAILED, 0.0) >= number:
            raise ValueError(
                "the new replicas don't start, old ones still answer: mend what "
                f"{run_folder(state)}/serve.log names, and call `recsys restart {RESTARTABLE}` again"
            )
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"not all replicas are new after {timeout_s:g} s; old ones still answer, and the restart "
                f"continues: see `recsys status --state {state}` and {run_folder(state) / 'serve.log'}"
            )
        time.sleep(0.2)


def newest_request_number(state: str | Path) -> int:
    """Number of the newest request; 0 before the first."""
    try:
        return int(_file(state).read_text())
    except (OSError, ValueError):
        return 0


def _file(state: str | Path) -> Path:
    return run_folder(state) / f"{RESTARTABLE}.restart"


def _beat(state: Path) -> Beat | None:
    return read_beat(run_folder(state) / f"{RESTARTABLE}.json")
