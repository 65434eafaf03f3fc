"""Lists for logs that have clicks only: the clicked item among candidates of that moment.

Without lists no choice can be learned. So each click is replayed as the choice from a list of the clicked
item, a sample of the candidates that the sources had for this viewer, which is the distribution that the
ranker sees when it answers, and one item of the whole catalogue: of items that no source had, too, there are
some that weren't clicked, or the ranker would learn that what no source has is clicked. Draws are hashes.
"""

from collections import OrderedDict
from typing import Final

import numpy as np

from experiments.assignment.policy import Policy
from recsys.config.system_config import digest
from recsys.events.event_types import Engagement, Impression, ServedItem
from recsys.events.hashed_random import draws
from recsys.events.hashing import key_of
from recsys.features.session import Session
from serving.pipeline import Pipeline
from serving.query import Query
from serving.request import Request

_REMEMBERED: Final = 100_000  # clicks whose list further labels may join
_OTHERS: Final = 5  # candidates beside the clicked item


class ClickLists:
    """Makes lists from the sources of a pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, config = pipeline, pipeline.replica.config.policy
        self._policy = Policy(config, digest(config))
        self._lists = OrderedDict[tuple[str, str], str]()

    def list_before(self, event: Engagement) -> str:
        """The list of the viewer's last click on an item, where a later kind of label follows; else empty."""
        if event.kind == self._pipeline.replica.features.schema.labels[0]:
            return ""
        return self._lists.get((str(event.user_id), str(event.item_id)), "")

    def list_of(self, click: Engagement, session: Session) -> Impression:
        """The list from which the item was clicked; it precedes the click."""
        about = click.request_id, click.user_id, click.time_ms, click.item_id, click.kind
        request_id = ":".join(map(str, about))
        self._lists[str(click.user_id), str(click.item_id)] = request_id
        if len(self._lists) > _REMEMBERED:
            self._lists.popitem(last=False)
        request = Request(click.user_id, 1, click.surface)
        query = Query(request, session, self._policy, click.time_ms, request_id)
        catalogue = self._pipeline.replica.catalogue
        indices = np.array(self._pipeline.candidates(query).indices, np.int64)
        indices = indices[indices != catalogue.index_of(click.item_id)]
        # Not the draws of the request: by these the sources have chosen.
        seed = key_of("click list", request_id) & 0xFFFFFFFF
        others = indices[np.argsort(draws(seed, indices))[:_OTHERS]].tolist()
        anywhere = int(draws(seed, np.array([-1]))[0] * len(catalogue))
        listed = [click.item_id, *map(catalogue.ids.__getitem__, [*others, anywhere])]
        items = [ServedItem(item_id=item_id) for item_id in dict.fromkeys(listed)]
        return Impression(
            time_ms=click.time_ms,
            request_id=request_id,
            user_id=click.user_id,
            items=items,
            surface=click.surface,
        )
