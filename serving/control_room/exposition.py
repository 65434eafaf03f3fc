"""Samples as Prometheus names them: ``recsys_part_lag{part="joiner",topic="events"}`` and its value. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

Samples = dict[str, float]
_LEFT_OUT: Final = ("_bucket", "_created")


class Sample(Protocol):
    """As prometheus_client's families have them."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> dict[str, str]: ...

    @property
    def value(self) -> float: ...


class Family(Protocol):
    @property
    def samples(self) -> Sequence[Sample]: ...


def key(name: str, labels: Mapping[str, str]) -> str:
    """A series as the exposition format writes it: labels by name, no braces where there are none."""
    if not labels:
        return name
    told = ",".join(f'{label}="{_escaped(value)}"' for label, value in sorted(labels.items()))
    return f"{name}{{{told}}}"


def keyed(families: Iterable[Family]) -> Samples:
    """What some families say."""
    return {key(its.name, its.labels): its.value for family in families for its in family.samples}


def read(text: str) -> Samples:
    """What an exposition text says, as prometheus_client writes it: one sample a line, labels by name, no
    time behind the value. Buckets of histograms are left out."""
    found = Samples()
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        if series and not series.partition("{")[0].endswith(_LEFT_OUT):
            found[series] = float(value)
    return found


def label_of(series: str, label: str) -> str:
    """The value of one label of a series; empty where it has none. For values without quotes in them."""
    _, there, rest = series.partition(f'{label}="')
    return rest.partition('"')[0] if there else ""


def name_of(series: str) -> str:
    return series.partition("{")[0]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
