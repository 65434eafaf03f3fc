"""Learning arms: the line that an arm trains, and the examples that count in it.

In a shared line, the exploration of one arm teaches the others. A line of an arm's own examples is judged by
its lack of data. So it learns from all examples, weighted by how much more often the arm would show them if
all users were in it:

    w(x) = P(x | arm) / P(x) = P(arm | x) / P(arm)

(Bayes; the weighted training of Si 2023, "Tackling Interference Induced by Data Training Loops in A/B
Tests"). experiments/statistics/arm_weights.py estimates P(arm | x). If arms show the same, all weights are 1,
and an arm of 5 % learns from everything.
"""

from typing import Final

WEIGHTED: Final = "weighted"
DIVERTED: Final = "diverted"
ALL: Final = "all"
# All examples weighted as above; only the arm's own, weighted by 1 / P(arm); all with weight 1.
TRAINS: Final = (WEIGHTED, DIVERTED, ALL)
MAX_LINE_NAME: Final = 64  # characters (parameter_server/storage/snapshots.py)
# Limit if all arms train: candidates and guards are judged on live's answers.
MAX_TRAINED_TRAFFIC: Final = 0.9


def arm_line_name(experiment: str, arm: str) -> str:
    """Name of the line that an arm trains. Candidates' names have no dot, so they can't clash."""
    return f"{experiment}.{arm}"
