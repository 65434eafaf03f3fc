"""A few of a replica's numbers for Ray's own metrics, which its dashboard and its Prometheus endpoint show.

They are those of ``/metrics``, told again when Serve asks after the replica's health (5 s): a request
pays nothing for it.
"""

from typing import Final

from prometheus_client.registry import Collector
from ray.util.metrics import Counter, Gauge

_TOLD: Final = {
    "recsys_requests_total": ("recsys_requests", "Requests answered", ("route", "status")),
    "recsys_degraded_total": ("recsys_degraded", "Answers without a stage", ("stage",)),
}


class RayMetrics:
    """Of one replica. Tags are the labels, and ``replica``."""

    def __init__(self, its: Collector, replica: str) -> None:
        self._its, self._replica = its, replica
        self._counters = {
            name: Counter(told, about, tag_keys=(*labels, "replica"))
            for name, (told, about, labels) in _TOLD.items()
        }
        self._step = Gauge(
            "recsys_served_step", "The step that answers", tag_keys=("line", "epoch", "replica")
        )
        self._before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def tell(self, line: str, epoch: int, step: int) -> None:
        """What came since the last time."""
        named = {"replica": self._replica}
        self._step.set(step, {"line": line, "epoch": str(epoch)} | named)
        for metric in self._its.collect():
            for sample in metric.samples:
                counter = self._counters.get(sample.name)
                if counter is None:
                    continue
                key = sample.name, tuple(sorted(sample.labels.items()))
                more = sample.value - self._before.get(key, 0.0)
                self._before[key] = sample.value
                if more > 0:
                    counter.inc(more, dict(sample.labels) | named)
