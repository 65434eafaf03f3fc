"""A scorer of candidates."""

from typing import Protocol

from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates


class Scorer(Protocol):
    """Sets or changes scores: one of this folder, or a plug-in of the group ``recsys.stages``.

    It may read its arguments, and changes nothing in place. A score is a weighted sum of predicted
    engagements.
    """

    version: str = ""  # of a plug-in: in each impression, with the name

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        """The candidates with other scores: ``scored``, or after ``add_scores(name, added_N)``, a number for
        each. Of a plug-in's result only what it adds counts."""
        ...
