"""Impression tokens of the answers of one replica."""

from collections.abc import Callable
from typing import Final

from experiments.assignment.policy import LENGTH
from serving.access.caller import ANONYMOUS, Caller
from serving.access.proofs import Proofs
from serving.filters.filter import CHOSEN, EXCLUDED, HIDDEN
from serving.request import Answer, Request
from serving.variants.model_variant import ModelVariant

_OF_EACH: Final = 10  # items to choose from, for each one of a long list
_READ_ON: Final = 10  # lists whose items a page that is read on excludes
_PAGE: Final = 1_000  # items of one category, which are enough to choose from


class AnswerTokens:
    """Mints tokens that say whether the viewer's side chose what its list holds."""

    def __init__(self, live: ModelVariant, proofs: Proofs, now_ms: Callable[[], int]) -> None:
        self._live, self._proofs, self._now_ms = live, proofs, now_ms

    def of(self, answer: Answer, request: Request, caller: Caller = ANONYMOUS) -> str:
        """Token of an answer to a caller's request."""
        is_server = bool(caller.key_id) and caller.user_id is None  # whose filters no viewer chooses
        narrowed = not is_server and self._is_narrow(answer, request)
        shown, user_id = [item.item_id for item in answer.items], answer.impression.user_id
        policy, now_ms = answer.stamp.policy, self._now_ms()
        return self._proofs.mint(answer.request_id, user_id, shown, policy, now_ms, narrowed)

    def _is_narrow(self, answer: Answer, request: Request) -> bool:
        """Whether the viewer's side chose what its list holds: it gave candidates, excluded more items than a
        page that is read on, left few to choose from, or asked for many of them."""
        replica, removed = self._live.replica, answer.removed
        length = self._live.control.policies.lengths.get(request.surface, LENGTH)
        excluded = removed.get(EXCLUDED, 0) + removed.get(HIDDEN, 0)
        share = replica.config.bounds.free_share
        if request.candidate_ids is not None or (share and excluded > _READ_ON * length):
            return True
        living = replica.catalogue.living.count
        left, least = living - sum(removed.get(name, 0) for name in CHOSEN), share * living
        conditions = list((request.filters or {}).values())
        if len(conditions) == 1 and isinstance(conditions[0], str | int):  # a page of the app's
            least = min(least, _PAGE)
        return left < least or request.n > max(length, left / _OF_EACH)
