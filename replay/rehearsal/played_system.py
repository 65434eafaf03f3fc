"""A replay in the place of a running system: the lists that it would serve, and rows played as a data
set's."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from experiments.assignment.policy import Policies
from recsys.events.event_types import SEEN, Engagement, Impression, Item, ServedItem, User
from recsys.events.hashing import Id
from replay.player import Player
from replay.rehearsal.log_viewers import SystemList
from serving.query import Query
from serving.request import Request

_OWN: Final = "log"  # beginning of the ids of lists that the log has


class PlayedSystem:
    """A player that serves lists of ``n`` items. Nothing is learned from a list that it serves."""

    def __init__(self, player: Player, n: int) -> None:
        self._player, self._n, self._asked = player, n, 0
        self._policies = Policies(player.config.policy, (), player.config.surfaces)

    def wait(self, time_ms: int) -> None:
        self._player.advance(time_ms)

    def publish(self, items: Sequence[Item]) -> None:
        for item in items:
            self._player.play(item)

    def profile(self, users: Sequence[User]) -> None:
        for user in users:
            self._player.play(user)

    def recommend(self, user_id: Id, surface: str, context: Mapping[str, Any]) -> SystemList:
        player, request_id = self._player, self._next_id("asked")
        player.sync_popularity()
        query = Query(
            Request(user_id, self._n, surface, dict(context)), player.session(user_id),
            self._policies.resolve(user_id, surface), player.now_ms, request_id,
        )  # fmt: skip
        answer = player.pipeline.recommend(query)
        return SystemList(request_id, tuple(str(item.item_id) for item in answer.items))

    def rank(
        self, user_id: Id, item_ids: Sequence[Id], surface: str, context: Mapping[str, Any]
    ) -> SystemList:
        """Plays the list as the log has it."""
        request_id = self._next_id(_OWN)
        shown = Impression(
            time_ms=self._player.now_ms, request_id=request_id, user_id=user_id, surface=surface,
            items=[ServedItem(item_id=item_id) for item_id in item_ids], context=dict(context),
            shown=self._player.features.schema.shown_by == "impression",
        )  # fmt: skip
        self._player.play(shown)
        return SystemList(request_id, tuple(map(str, item_ids)))

    def send(self, events: Sequence[Engagement]) -> None:
        for event in events:
            if event.kind == SEEN:
                continue  # the list was played as shown
            if not event.request_id.startswith(_OWN):
                event.request_id = ""
            for played in self._player.as_lists(event):
                self._player.play(played)

    def _next_id(self, kind: str) -> str:
        self._asked += 1
        return f"{kind}-{self._asked}"
