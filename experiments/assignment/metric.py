"""What an experiment is judged by: a metric is a ratio of two sums that every user has.

Names are made of what an example knows. ``long_view`` (any label of the schema) is long views for each shown
item, ``watch_s`` seconds for each shown item; ``long_view_per_user``, ``watch_s_per_user`` and
``shown_per_user`` are for each user who was given an arm. A rate of a list of items is a ratio, not a mean:
its users have unequally many items, so its variance is found by the delta method (experiments/statistics/effect.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

SHOWN: Final = "shown"
WATCH: Final = "watch_s"
USER: Final = "user"
_PER_USER: Final = "_per_user"
_WORSE: Final = frozenset({"hide", "skip"})  # kinds of engagement of which fewer are better


@dataclass(frozen=True)
class Metric:
    """Σ ``numerator`` / Σ ``denominator`` over an arm's users. The denominator ``user`` is 1 for each."""

    name: str
    numerator: str
    denominator: str = SHOWN
    higher_is_better: bool = True


def metric_of(name: str, labels: Sequence[str]) -> Metric:
    """The metric of a name; raises ValueError where there is none such with these labels."""
    sum_, per_user = name.removesuffix(_PER_USER), name.endswith(_PER_USER)
    known = (*labels, WATCH, SHOWN) if per_user else (*labels, WATCH)
    if sum_ not in known:
        rates = ", ".join((*labels, WATCH))
        raise ValueError(
            f"metric is {name!r}, expected one of {rates} (for each shown item), one of them with "
            f"{_PER_USER!r} behind it, or '{SHOWN}{_PER_USER}'"
        )
    return Metric(name, sum_, USER if per_user else SHOWN, sum_ not in _WORSE)


def sums_of(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """The sums of a user that these metrics need, sorted; ``shown`` always, ``user`` never."""
    found = {SHOWN} | {part for its in metrics for part in (its.numerator, its.denominator)}
    return tuple(sorted(found - {USER}))
