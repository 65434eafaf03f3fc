"""Each part is given a clock; nothing else reads the time.

A new line in a table here is a decision: the module measures this machine or the world outside, and decides
nothing that is on the log (docs/reference/configuration.md, `clock`).
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = (
    "recsys", "parameter_server", "experiments", "training", "serving", "replay", "runtime", "plugins",
    "examples",
)  # fmt: skip
CLOCK = "recsys/clock.py"

# Modules that read the machine's clock by name, with what for.
MACHINE_TIME = {
    "recsys/client.py": "a client's own clock; tests and drivers hand in another",
    "recsys/log/sqlite_files.py": "append times of records that fill lost places: read by nobody",
    "recsys/log/sqlite_log.py": "append times of a log that is opened as a file, outside of any system",
    "recsys/process/clock_file.py": "makes the clock",
    "recsys/process/part_process.py": "heartbeats",
    "recsys/process/space_file.py": "age of the figures of the disk",
    "parameter_server/storage/shard_home.py": "spans",
    "serving/app.py": "spans",
    "serving/sessions/counter_loop.py": "how often counters are published and saved",
    "serving/sessions/session_loop.py": "spans",
    "serving/sessions/open_store.py": "expiry of sessions, as by a server",
    "training/continual/local_learner.py": "spans",
    "training/continual/worker_process.py": "spans, number of a group, time of a failure",
    "training/joining/joiner_loop.py": "spans; how often the part that skips events saves",
    "training/steps/sequencer_loop.py": "spans; a step waits so long for examples, however fast they come",
    "runtime/cli/experiment.py": "until when an operator waits for the director",
    "runtime/cli/keys.py": "expiry of keys",
    "runtime/control_room/experiment_panel.py": "age of what the page shows",
    "runtime/control_room/part.py": "curves of the page",
    "runtime/jobs/backup.py": "when a backup was made",
    "runtime/jobs/director_requests.py": "until when an operator waits for the director",
    "runtime/jobs/offline_job.py": "when an offline model was made",
    "runtime/one_process/one_process.py": "run file",
    "runtime/reports/status_table.py": "since when a part runs",
    "runtime/supervision/cluster.py": "how far the clocks of nodes are apart",
    "runtime/supervision/processes.py": "when a process that can't be asked began",
    "runtime/supervision/space_watch.py": "age of the figures of the disk",
    "runtime/supervision/supervisor_loop.py": "run file",
    "runtime/supervision/system_status.py": "age of heartbeats",
    "examples/news/__main__.py": "makes a data set that ends now",
    "examples/shop/__main__.py": "makes a data set that ends now",
    "examples/short_video/demo_start.py": "start of the data, where the configuration names none",
    "examples/short_video/viewers_command.py": "viewers of a server elsewhere, at this machine's time",
    "examples/short_video/warmup.py": "end of the data, where its caller names none",
}
_READS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"),
          ("datetime", "today"), ("date", "today")}  # fmt: skip
_NAMES = {"machine_ms", "machine_ns"}


def readings(path: str, source: str) -> list[str]:
    """Places of a module that read the time and aren't in the table."""
    places = list[str]()
    for node in ast.walk(ast.parse(source)):
        names = set[str]()
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else ""
            owner = node.value.id if isinstance(node.value, ast.Name) else owner
            names = {f"{owner}.{node.attr}"} if (owner, node.attr) in _READS else set()
            if node.attr in _NAMES and path not in MACHINE_TIME:
                names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").rpartition(".")[2]
            imported = {alias.name for alias in node.names}
            names = {f"{module}.{name}" for name in imported if (module, name) in _READS}
            names |= set() if path in MACHINE_TIME else imported & _NAMES
        places += [f"{path}:{node.lineno} reads {name}" for name in sorted(names)]
    return places


def test_nothing_but_the_clock_reads_the_time() -> None:
    places = list[str]()
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            if path != CLOCK:
                places += readings(path, file.read_text())
    assert not places, "hand in a clock (recsys/clock.py):\n" + "\n".join(places)


def test_every_module_in_the_table_reads_the_machines_clock() -> None:
    for path in MACHINE_TIME:
        assert any(name in (ROOT / path).read_text() for name in _NAMES), path


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "import time\ndef f(clock=time.time_ns): ...",
        "from time import time_ns",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime as d, date\ndate.today()",
        "from datetime import datetime\ndatetime.utcnow()",
        "from recsys.clock import machine_ms",
        "from recsys import clock\nclock.machine_ns()",
    ],
)
def test_each_way_to_read_the_time_is_seen(source: str) -> None:
    assert readings("serving/new.py", source)


def test_durations_and_the_clock_that_is_handed_in_are_allowed() -> None:
    source = "import time\nfrom recsys.clock import timer_of\ntime.monotonic(), clock()"
    assert not readings("serving/new.py", source)
