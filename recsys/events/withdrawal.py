"""Matches events and examples with withdrawals, and tells which of a user's events still count. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from recsys.events.event_types import Engagement, Event, Impression, Verdict, Withdrawal
from recsys.events.records import Example, Withdrawn

Requests = Mapping[str, Sequence[str]]  # items by request; none: the whole list
NO_REQUEST: Final = ""  # key of the items of engagements that name no request


def withdraws_item(requests: Requests, request_id: str, item_id: str) -> bool:
    """Whether requests name an item of a list; without any they name all."""
    if not requests:
        return True
    items = requests.get(request_id)
    if items is not None and (not items or item_id in items):
        return True
    return item_id in requests.get(NO_REQUEST, ())


def withdraws_event(withdrawal: Withdrawal, event: Event, moment_ms: int) -> bool:
    """Whether a withdrawal names an event of its user. ``moment_ms``: the newest time of the user's events up
    to this one, since clients may date an engagement back."""
    if moment_ms < withdrawal.from_ms:
        return False
    requests = withdrawal.requests
    if isinstance(event, Impression):
        return not requests or requests.get(event.request_id) == []
    if isinstance(event, Engagement):
        return withdraws_item(requests, event.request_id, str(event.item_id))
    return False


def withdraws_example(mark: Withdrawn, example: Example) -> bool:
    """Whether a withdrawal names an example of its user that stands before its mark."""
    if example.closed_ms < mark.from_ms:
        return False
    return withdraws_item(mark.requests, example.request_id, str(example.item_id))


def counted(events: Iterable[Event]) -> list[tuple[Event, int, bool]]:
    """A user's impressions and engagements in order, each with the newest time up to it and whether it still
    counts: not if it came in quarantine, nor if a later quarantine or withdrawal took it back."""
    result, held, moment_ms = list[tuple[Event, int, bool]](), False, 0
    for event in events:
        if isinstance(event, Verdict):
            held = event.quarantined
            if held:
                result = [(past, past_ms, False) for past, past_ms, _ in result]
        elif isinstance(event, Withdrawal):
            result = [
                (past, past_ms, counts and not withdraws_event(event, past, past_ms))
                for past, past_ms, counts in result
            ]
        elif isinstance(event, Impression | Engagement):
            moment_ms = max(moment_ms, event.time_ms)
            result.append((event, moment_ms, not held))
    return result
