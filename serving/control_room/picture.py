"""One picture of a system: samples, what their counters do a second, and what isn't a number. Pure.

Every number on the page is one of ``samples``, by its name, or a rate of one of them: so a page can be held
to a scrape of the same system.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from serving.control_room.curves import Curves
from serving.control_room.exposition import Samples, label_of, name_of
from serving.tracing.freshness import Rate

RATED_MS: Final = 10_000  # rates are over so long
_GAP_MS: Final = 5_000  # without a picture: rates begin anew
_REPLICA_MS: Final = 60_000  # a replica that no scrape met for so long isn't shown


class Look(Protocol):
    """What is asked of a system for one picture; called by one thread at a time."""

    def samples(self) -> Samples:
        """Of the parts and of the replica that answered."""

    def panels(self) -> Mapping[str, Any]:
        """What stands beside the numbers: parts, decisions, experiments, dead letters."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """``asked``: the replica that answered the newest scrape, where replicas have names. ``replicas``: when
    each was met last. ``points``: what was added to the curves."""

    number: int
    time_ms: int
    samples: dict[str, float | None]
    rates: dict[str, float]
    asked: str = ""
    replicas: dict[str, int] = {}
    points: Samples = {}
    panels: Mapping[str, Any] = {}


class Rates:
    """What each counter does a second, over the last ten."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}
        self._told_ms = 0

    def tell(self, samples: Samples, now_ms: int) -> dict[str, float]:
        if now_ms - self._told_ms > _GAP_MS:
            self._rates.clear()
        self._told_ms = now_ms
        for series, value in samples.items():
            if name_of(series).endswith(("_total", "_count", "_sum")):
                self._rates.setdefault(series, Rate(RATED_MS)).tell(value, now_ms)
        self._rates = {s: rate for s, rate in self._rates.items() if s in samples}
        return {s: round(rate.per_s(), 3) for s, rate in self._rates.items()}


class Painter:
    """Makes pictures of what ``look`` sees. One thread at a time calls it."""

    def __init__(self, look: Look, curves: Curves) -> None:
        self._look, self.curves = look, curves
        self._rates, self._number = Rates(), 0
        self._replicas: dict[str, tuple[int, Samples]] = {}

    def paint(self, now_ms: int) -> Picture:
        samples = self._look.samples()
        asked = self._met(samples, now_ms)
        for _, kept in self._replicas.values():
            samples = kept | samples
        self._number += 1
        return Picture(
            number=self._number, time_ms=now_ms, asked=asked,
            samples={s: v if math.isfinite(v) else None for s, v in samples.items() if not _idle(s, v)},
            rates=self._rates.tell(samples, now_ms), points=self.curves.tell(samples, now_ms),
            replicas={name: met_ms for name, (met_ms, _) in sorted(self._replicas.items())},
            panels=self._look.panels(),
        )  # fmt: skip

    def _met(self, samples: Samples, now_ms: int) -> str:
        """Keeps what a named replica said: the next scrape may meet another."""
        its = {s: v for s, v in samples.items() if 'replica="' in s}
        name = label_of(next(iter(its)), "replica") if its else ""
        if name:
            self._replicas[name] = now_ms, its
        self._replicas = {
            name: kept for name, kept in self._replicas.items() if now_ms - kept[0] <= _REPLICA_MS
        }
        return name


def _idle(series: str, value: float) -> bool:
    """Whether it says that a part isn't in a state: it is in one of ten, and that one says so."""
    return not value and series.startswith("recsys_part_state{")
