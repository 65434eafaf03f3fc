"""Which run of the trainer is the one: a file that the newest driver writes and its workers look at.

A driver that was killed may leave workers behind for some seconds. They must not fight those of the driver
after it: the shards serve the highest generation only, and the file says which run may take a new one.
"""

from pathlib import Path

import msgspec

from recsys.process.part_process import write_atomically


class Run(msgspec.Struct, frozen=True):
    """``generation`` grows with every start of a group of workers, ``starts`` counts those of this run."""

    run: str = ""
    generation: int = 0
    starts: int = 0


class Failure(msgspec.Struct, frozen=True):
    """Why a worker ended last."""

    rank: int
    text: str
    time_ms: int


class Spans(msgspec.Struct, frozen=True):
    """What worker 0 told of its steps."""

    sent: int = 0
    dropped: int = 0


class TrainerRun:
    """The file ``run.json`` of a folder, written by the driver and by worker 0 of each group that starts; and
    beside it what they tell each other otherwise."""

    def __init__(self, folder: Path) -> None:
        self._file, self._failure = folder / "run.json", folder / "failure.json"
        self._spans, self._endpoint = folder / "spans.json", folder / "endpoint"

    def read(self) -> Run:
        """The newest run; an empty one where there was none."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Run)
        except FileNotFoundError:
            return Run()

    def begin(self, run: str) -> None:
        """A driver starts: from now on workers of other runs get no generation."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._failure.unlink(missing_ok=True)
        self._spans.unlink(missing_ok=True)
        self._write(Run(run, self.read().generation))

    def next_generation(self, run: str, now_ms: int) -> int:
        """The generation of a group that starts now; 0 where ``run`` isn't the newest any more.

        The clock makes it grow also where the file was lost.
        """
        before = self.read()
        if before.run != run:
            return 0
        generation = max(before.generation + 1, now_ms)
        self._write(Run(run, generation, before.starts + 1))
        return generation

    def is_newest(self, run: str) -> bool:
        return self.read().run == run

    def failed(self, failure: Failure) -> None:
        """A worker says why it ends."""
        write_atomically(self._failure, msgspec.json.encode(failure))

    def failure(self) -> Failure | None:
        """What a worker of this run said last."""
        try:
            return msgspec.json.decode(self._failure.read_bytes(), type=Failure)
        except FileNotFoundError:
            return None

    def traced(self, spans: Spans) -> None:
        """Worker 0 says how many spans it sent, and how many it didn't."""
        write_atomically(self._spans, msgspec.json.encode(spans))

    def spans(self) -> Spans | None:
        """What it said last, in this run."""
        try:
            return msgspec.json.decode(self._spans.read_bytes(), type=Spans)
        except FileNotFoundError:
            return None

    def keep_endpoint(self, endpoint: str) -> None:
        """The driver leaves to the workers where spans go: what Ray hands to them its dashboard shows."""
        write_atomically(self._endpoint, endpoint.encode())

    def endpoint(self) -> str:
        """Where spans go. Empty where no driver said it."""
        return self._endpoint.read_text() if self._endpoint.exists() else ""

    def _write(self, run: Run) -> None:
        write_atomically(self._file, msgspec.json.encode(run))
