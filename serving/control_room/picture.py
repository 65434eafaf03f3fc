"""One picture of a system: its samples, the rates of counters, and panels of other data. Pure.

Every number on the page is one of ``samples``, by its name, or the rate of one: so the page can be compared
with a scrape of the same system.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from serving.control_room.curves import Curves
from serving.control_room.exposition import Samples, label_of, name_of
from serving.tracing.freshness import Rate

RATE_WINDOW_MS: Final = 10_000
_GAP_MS: Final = 5_000  # without a picture: rates restart
_REPLICA_MS: Final = 60_000  # a replica without a scrape for this long is dropped


class SystemSource(Protocol):
    """Data of a system; called by one thread at a time."""

    def samples(self) -> Samples:
        """Samples of the parts, and of the replica that answered."""

    def panels(self) -> Mapping[str, Any]:
        """Data other than samples: parts, decisions, experiments, dead letters."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """State of the system at one time.

    ``asked``: the replica that answered the newest scrape, where replicas have names. ``replicas``: time of
    each one's last scrape. ``points``: added to the curves.
    """

    number: int
    time_ms: int
    samples: dict[str, float | None]
    rates: dict[str, float]
    asked: str = ""
    replicas: dict[str, int] = {}
    points: Samples = {}
    panels: Mapping[str, Any] = {}


class Rates:
    """Rate of each counter per second, over the last ten seconds."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}
        self._observed_ms = 0

    def observe(self, samples: Samples, now_ms: int) -> dict[str, float]:
        """Adds the current values; returns the rates."""
        if now_ms - self._observed_ms > _GAP_MS:
            self._rates.clear()
        self._observed_ms = now_ms
        for series, value in samples.items():
            if name_of(series).endswith(("_total", "_count", "_sum")):
                self._rates.setdefault(series, Rate(RATE_WINDOW_MS)).observe(value, now_ms)
        self._rates = {s: rate for s, rate in self._rates.items() if s in samples}
        return {s: round(rate.per_s(), 3) for s, rate in self._rates.items()}


class PictureBuilder:
    """Builds pictures of a system; called by one thread at a time."""

    def __init__(self, source: SystemSource, curves: Curves) -> None:
        self._source, self.curves = source, curves
        self._rates, self._number = Rates(), 0
        self._replicas: dict[str, tuple[int, Samples]] = {}

    def build(self, now_ms: int) -> Picture:
        """Queries the source and builds the next picture."""
        samples, asked, points = self.observe(now_ms)
        self._number += 1
        return Picture(
            number=self._number, time_ms=now_ms, asked=asked,
            samples={s: v if math.isfinite(v) else None for s, v in samples.items() if not _idle(s, v)},
            rates=self._rates.observe(samples, now_ms), points=points,
            replicas={name: scraped_ms for name, (scraped_ms, _) in sorted(self._replicas.items())},
            panels=self._source.panels(),
        )  # fmt: skip

    def observe(self, now_ms: int) -> tuple[Samples, str, Samples]:
        """Queries the source and continues the curves; returns the samples of all replicas, the name of the
        one that answered, and the added points."""
        samples = self._source.samples()
        asked = self._record_replica(samples, now_ms)
        for _, replica_samples in self._replicas.values():
            samples = replica_samples | samples
        return samples, asked, self.curves.observe(samples, now_ms)

    def _record_replica(self, samples: Samples, now_ms: int) -> str:
        """Keeps a named replica's samples, since the next scrape may reach another; returns the name."""
        named = {s: v for s, v in samples.items() if 'replica="' in s}
        name = label_of(next(iter(named)), "replica") if named else ""
        if name:
            self._replicas[name] = now_ms, named
        since_ms, replicas = now_ms - _REPLICA_MS, self._replicas.items()
        self._replicas = {name: replica for name, replica in replicas if replica[0] >= since_ms}
        return name


def _idle(series: str, value: float) -> bool:
    """Whether a sample is the zero of a part state: the part's actual state has a sample of value 1."""
    return not value and series.startswith("recsys_part_state{")
