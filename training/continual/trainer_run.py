"""Files through which the trainer's driver and workers agree on the current run, failures and traces.

A killed driver may leave workers behind: the shards serve the highest generation only, and a file says which
run may take a new one.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from recsys.config.system_config import Config
from recsys.observability.log_lines import LogThrottle
from recsys.observability.tracer import Tracer
from recsys.process.part_process import with_digest, without_digest, write_atomically
from training.steps.step_trace import trace_step

PART: Final = "trainer"
NICE: Final = 5  # serving has priority over learning
_COUNT_EVERY_S: Final = 2.0
T = TypeVar("T")


class Run(msgspec.Struct, frozen=True):
    """``generation`` grows with every start of a worker group, ``starts`` counts those of this run."""

    run: str = ""
    generation: int = 0
    starts: int = 0


def decode_run(data: bytes) -> Run:
    """The content of ``run.json``. Raises ValueError."""
    return msgspec.json.decode(without_digest(data), type=Run)


class Failure(msgspec.Struct, frozen=True):
    """The newest failure of a worker."""

    rank: int
    text: str
    time_ms: int


class Spans(msgspec.Struct, frozen=True):
    """Numbers of spans that worker 0 sent and dropped."""

    sent: int = 0
    dropped: int = 0


class TrainerRun:
    """``run.json`` and other files in a folder, written by the driver and by worker 0 of each group."""

    def __init__(self, folder: Path) -> None:
        self._file, self._failure = folder / "run.json", folder / "failure.json"
        self._spans, self._endpoint = folder / "spans.json", folder / "endpoint"

    def read(self) -> Run:
        """The newest run; an empty one without a readable file."""
        try:
            return decode_run(self._file.read_bytes())
        except (FileNotFoundError, ValueError):  # a power cut may have emptied it
            return Run()

    def begin(self, run: str) -> None:
        """Registers the run of a starting driver: workers of other runs get no generation any more."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._failure.unlink(missing_ok=True)
        self._spans.unlink(missing_ok=True)
        self._replace(Run(run, self.read().generation))

    def next_generation(self, run: str, now_ms: int) -> int:
        """The generation of a starting group, which grows even if the file is lost; 0 for an old run."""
        before = self.read()
        if before.run != run:
            return 0
        generation = max(before.generation + 1, now_ms)
        self._replace(Run(run, generation, before.starts + 1))
        return generation

    def _replace(self, run: Run) -> None:
        write_atomically(self._file, with_digest(msgspec.json.encode(run)))

    def is_newest(self, run: str) -> bool:
        return self.read().run == run

    def failed(self, failure: Failure) -> None:
        """Records a worker's failure."""
        _write(self._failure, failure)

    def failure(self) -> Failure | None:
        """The newest failure of a worker of this run."""
        return _read(self._failure, Failure)

    def traced(self, spans: Spans) -> None:
        """Records worker 0's numbers of spans."""
        _write(self._spans, spans)

    def spans(self) -> Spans | None:
        """The newest numbers of spans in this run."""
        return _read(self._spans, Spans)

    def keep_endpoint(self, endpoint: str) -> None:
        """Passes the tracing endpoint to the workers: Ray's dashboard would show it as an argument."""
        write_atomically(self._endpoint, endpoint.encode())

    def endpoint(self) -> str:
        """The tracing endpoint; empty if no driver wrote it."""
        return self._endpoint.read_text() if self._endpoint.exists() else ""


class LearnTrace:
    """Emits the spans of worker 0's steps, and reports their number. Call ``count`` in each turn."""

    def __init__(self, tracer: Tracer, run: TrainerRun, line: str, epoch: int) -> None:
        self._tracer, self._run = tracer, run
        self._line, self._epoch = line, epoch
        self._throttle = LogThrottle(_COUNT_EVERY_S)

    def learned(self, step: int, examples: int, began_ns: int, ended_ns: int) -> None:
        version = (self._line, self._epoch, step)
        trace_step(self._tracer, version, examples, began_ns, ended_ns)

    def count(self, now_s: float) -> None:
        if self._throttle.due("count", now_s):
            self._report()

    def close(self) -> None:
        """Sends pending spans."""
        self._tracer.close()
        self._report()

    def _report(self) -> None:
        with suppress(OSError):  # no step may fail because of it
            self._run.traced(Spans(self._tracer.sent, self._tracer.dropped))


def _read(file: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):  # a power cut may have emptied it
        return None


def _write(file: Path, value: msgspec.Struct) -> None:
    write_atomically(file, msgspec.json.encode(value))


def run_of(config: Config) -> TrainerRun:
    """Files of a system's trainer."""
    return TrainerRun(Path(config.state) / "parts" / PART)
