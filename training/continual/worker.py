"""Worker of the continual trainer, as a plain class: no Ray, no thread, no clock, no durable state.

A worker that starts anywhere asks the shards for their position and computes the next step; each step is
predicted before it is learned. Lane *l* is computed by worker ``l % workers``.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.rpc.parameter_client import ParameterClient
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import StepMismatch
from parameter_server.table.routing import unique
from recsys.config.system_config import Config
from recsys.events.hashing import Id, key_of
from recsys.events.records import EXAMPLES, STEPS, Step
from recsys.log.protocol import Log
from recsys.process.latency_tuning import gc_paused
from recsys.process.log_consumer import DeadLetters
from training.continual.learner import Lane, Learned, Learner
from training.lines.line import MAIN, learning_digest
from training.steps.lineage import Lineage
from training.steps.step_reader import ExampleCheck, LaneExamples, StepReader, read_lanes

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """The own lanes of a step as arrays, and the rows they need. ``keys``: unique keys of all own lanes;
    ``places[lane][table]``: indices of a lane's rows among them, empty if there is one lane. A lane without
    examples has no ``Lane``. ``forget``: by lane, the keys of users whose rows the step removes."""

    step: Step
    lanes: Mapping[int, Lane | None]
    left_out: Mapping[int, int]
    forget: Mapping[int, Mapping[str, Keys]]
    keys: Mapping[str, Keys]
    places: Mapping[int, Mapping[str, Keys]]


class Worker:
    """Worker ``rank`` of ``workers``; ``turn`` computes at most one step. Raises StaleWorker once a newer
    generation of workers has taken over; LogLost and ShardUnreachable without a usable log or shard. Create a
    new worker after any of them."""

    def __init__(
        self,
        rank: int,
        workers: int,
        log: Log,
        client: ParameterClient,
        learner: Learner,
        config: Config,
        line: str = MAIN,
        epoch: int = 0,
        *,
        reader: StepReader | Lineage | None = None,
        reports: bool = True,
    ) -> None:
        """``reader`` of step records, if not of one epoch alone. ``reports``: whether examples left out
        become dead letters, as a line's own workers do."""
        torch.set_num_threads(1)  # the order of a sum must not depend on the number of cores
        self._log, self._client, self._learner = log, client, learner
        self._aligns = rank == 0
        self._own = range(rank, config.step.lanes, workers)
        self._lanes = config.step.lanes
        self._digest = learning_digest(config, learner.features)
        dense_width = learner.model.ranker.shape.dense
        self._check = ExampleCheck(learner.features, dense_width, learner.reads, log)
        self._reader = reader or StepReader(log, line, epoch)
        self._letters, self._reports = DeadLetters(log, (EXAMPLES,)), reports
        self._step: int | None = None  # the newest learned; None: ask the shards
        self._next: _Prepared | None = None
        self._after: _Prepared | None = None  # the step after ``_next``
        self._rows: dict[str, Floats] | None = None  # of ``_next``
        self._dense: Floats | None = None
        self.counts = {"steps": 0, "examples": 0, "left_out": 0, "realigned": 0, "other_config": 0,
                       "empty_steps": 0, "excluded": 0}  # fmt: skip

    @property
    def step(self) -> int:
        """The newest step learned with this worker; 0 before the first."""
        return self._step or 0

    def turn(self) -> int:
        """Learns the next step if its record exists; returns its number of examples in all lanes."""
        try:
            return self._turn()
        except StepMismatch:  # a shard restarted from its snapshot: compute again what it lost
            self.counts["realigned"] += 1
            self._step = self._next = self._after = self._rows = self._dense = None
            return 0

    def _turn(self) -> int:
        if self._step is None and not self._align():
            return 0
        assert self._step is not None
        prepared = self._next or self._prepare(self._step + 1)
        if prepared is None:
            return 0
        step = prepared.step.step
        if self._rows is None:
            self._rows = self._client.lookup(step - 1, prepared.keys)
        if self._dense is None:
            self._dense = self._client.dense(step - 1)
        gradients = self._learn(prepared, self._rows, self._dense)
        following = self._after or self._prepare(step + 1)
        self._after = None
        self._rows, self._dense = self._client.exchange(
            step,
            prepared.step.time_ms,
            gradients,
            following.keys if following else None,
            partial(self._prepare_ahead, step + 2) if following else lambda: None,
        )
        self._step, self._next = step, following
        self.counts["steps"] += 1
        self.counts["examples"] += sum(len(lane.batch) for lane in prepared.lanes.values() if lane)
        self.counts["left_out"] += sum(prepared.left_out.values())
        self.counts["empty_steps"] += not prepared.step.ranges
        return prepared.step.examples

    def _align(self) -> bool:
        """Whether all shards are at a step to continue from. Worker 0 brings them there, the others wait."""
        if self._aligns:
            self._step = self._client.align()
        else:
            applied = self._client.applied_steps()
            if max(applied) - min(applied) > 1:
                return False
            self._step = min(applied)
        return True

    def _prepare_ahead(self, number: int) -> None:
        """Prepares the step after the next while the shards learn, if its record exists."""
        try:
            self._after = self._prepare(number)
        except Exception:
            self._after = None  # raised again when the step is due

    def _prepare(self, number: int) -> _Prepared | None:
        """Prepares everything of a step that needs no rows; None without a record."""
        step = self._reader.record(number)
        if step is None:
            self._reader.check_to_come(number)
            return None
        if not step.ranges:
            _LOG.error(
                "%s/0: the record at offset %s can't be read: step %d is empty, its examples aren't learned",
                STEPS,
                self._reader.place(number),
                number,
            )
        if step.lanes != self._lanes:
            raise ValueError(
                f"step {number} was cut into {step.lanes} lanes, this trainer has {self._lanes}: set "
                f"step.lanes to {step.lanes}, or use another state folder"
            )
        self.counts["other_config"] += step.config != self._digest
        with gc_paused():
            read = read_lanes(self._log, step, self._own, self._check)
            lanes = {
                number: self._learner.prepare(lane.examples) if lane.examples else None
                for number, lane in read.items()
            }
        left_out = self._report(read)
        self.counts["excluded"] += sum(lane.excluded for lane in read.values())
        keys, places = _together({n: lane.lookup.keys for n, lane in lanes.items() if lane})
        forget = {number: rows_of_users(lane.forget) for number, lane in read.items()}
        return _Prepared(step, lanes, left_out, forget, keys, places)

    def _learn(self, prepared: _Prepared, rows: Mapping[str, Floats], dense: Floats) -> list[LaneGradients]:
        """The gradients of all own lanes."""
        lanes = {number: lane for number, lane in prepared.lanes.items() if lane}
        own = []
        for places in map(prepared.places.__getitem__, lanes):
            own.append({t: values[places[t]] if places else values for t, values in rows.items()})
        learned = self._learner.learn_lanes([*lanes.values()], own, dense)
        by_lane = dict(zip(lanes, learned, strict=True))
        return [self._gradients(prepared, number, by_lane.get(number)) for number in self._own]

    def _gradients(self, prepared: _Prepared, number: int, learned: Learned | None) -> LaneGradients:
        left_out, forget = prepared.left_out[number], prepared.forget[number]
        metrics = {"left_out": float(left_out)} if left_out else {}
        rate = prepared.step.rate
        if learned is None:
            return LaneGradients(number, {}, None, metrics, forget, rate)
        metrics |= learned.metrics
        return LaneGradients(number, learned.gradients, learned.dense, metrics, forget, rate)

    def _report(self, read: Mapping[int, LaneExamples]) -> dict[int, int]:
        """Writes dead letters for the records left out; returns their number, by lane."""
        for lane in read.values() if self._reports else ():
            for out in lane.left_out:
                self._letters.put(EXAMPLES, out.partition, out.record, out.reason)
        self._letters.send()
        return {number: len(lane.left_out) for number, lane in read.items()}


def rows_of_users(users: Sequence[Id]) -> dict[str, Keys]:
    """Keys of the rows that belong to some users alone, by table: their own, and that of the id feature."""
    if not users:
        return {}
    keys = np.array(sorted({key_of("user", user) for user in users}), np.int64)
    return {"features": keys, "users": keys}


def _together(lanes: Mapping[int, Mapping[str, Keys]]) -> tuple[dict[str, Keys], dict[int, dict[str, Keys]]]:
    """The unique keys of several lanes, by table, and the indices of each lane's keys among them; no indices
    for a single lane, whose keys are unique already."""
    if len(lanes) == 1:
        return dict(*lanes.values()), {lane: {} for lane in lanes}
    keys: dict[str, Keys] = {}
    places: dict[int, dict[str, Keys]] = {lane: {} for lane in lanes}
    for table in next(iter(lanes.values()), {}):
        parts = [lane_keys[table] for lane_keys in lanes.values()]
        keys[table], at = unique(np.concatenate(parts))
        cuts = np.cumsum([len(part) for part in parts])[:-1]
        for lane, own in zip(lanes, np.split(at, cuts), strict=True):
            places[lane][table] = own
    return keys, places
