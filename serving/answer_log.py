"""Logs answers: their impressions on the log of events, skipped stages in the replica's own."""

import logging
import time
from functools import partial
from typing import Final

from recsys.events.records import EVENTS, record_of
from recsys.observability.log_lines import LogThrottle
from serving.ingestion.log_writer import LogWriter
from serving.request import Answer
from serving.tracing.request_trace import RequestTrace

_LOG: Final = logging.getLogger(__name__)


class AnswerLog:
    """Logs the answers of one replica; belongs to its event loop."""

    def __init__(self, writer: LogWriter, partitions: int) -> None:
        self._writer, self._partitions, self._degraded = writer, partitions, LogThrottle()

    def append(self, answer: Answer, trace: RequestTrace | None) -> None:
        """Appends the impression; returns before it is committed."""
        record = record_of(answer.impression, self._partitions)
        on_commit = partial(trace.appended, EVENTS, record.partition) if trace else None
        self._writer.impression(EVENTS, record, on_commit)

    def degraded(self, answer: Answer) -> None:
        """Logs each skipped stage at intervals, with the number of answers and one of them."""
        for stage in answer.degraded:
            if count := self._degraded.due(stage, time.monotonic()):
                level = logging.INFO if stage == "model" else logging.WARNING
                stamp = answer.stamp
                extra = {"stage": stage, "answers": count, "line": stamp.line}
                extra |= {"epoch": stamp.epoch, "step": stamp.step}
                _LOG.log(level, "answers skip a stage", extra=extra)
