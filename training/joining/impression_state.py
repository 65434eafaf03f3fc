"""State of a pending impression: engagements by item, in a form that packs compactly."""

import msgspec

from recsys.events.event_types import Engagement, Impression

NEVER = -1  # in ``learned``: no example was emitted yet
SHOWN, SAMPLED_OUT, BY_WINDOW, AFTER = 1, 2, 4, 8  # marks
LATE_SHIFT = 4  # above the marks: labels that were expected to come late, shifted by so many bits
# Marks: the bounds of influence were asked about the item; they forbid to learn from it.
JUDGED, BOUNDED = 1 << 60, 1 << 61


class ImpressionState(msgspec.Struct, array_like=True, gc=False):
    """Engagements with an impression's items, in lists by rank. ``labels``: bit *l* is label *l*;
    ``learned``: the labels of the newest example, ``NEVER`` before the first. ``marks``: ``SHOWN``;
    ``SAMPLED_OUT``: sampling dropped the first example; ``BY_WINDOW``: the window ended it; ``AFTER``: its
    engagement came after the window; ``JUDGED``, ``BOUNDED``: what the bounds of influence decided; and,
    above these, the labels expected late. ``confirmed``: whether the list was on screen as a whole.
    ``choices``: lists of candidates that clicked items are learned in, by rank."""

    offset: int
    time_ms: int
    user_id: str
    item_ids: list[str]
    labels: list[int]
    learned: list[int]
    marks: list[int]
    watch_ms: list[int]
    closed: bool = False  # whether its window is over
    encoded: bytes = b""
    confirmed: bool = False
    choices: dict[int, str] = {}


class StateHead(msgspec.Struct, array_like=True):
    """Decodes only the first fields of a packed ``ImpressionState``."""

    offset: int
    time_ms: int
    user_id: str


class OpenImpression(msgspec.Struct, gc=False):
    """An impression whose window is open. After a restart ``impression`` is None until needed."""

    state: ImpressionState
    impression: Impression | None
    size: int  # approximate bytes


def new_state(offset: int, impression: Impression) -> ImpressionState:
    """State of an impression without engagements, not shown."""
    items = impression.items
    count = len(items)
    return ImpressionState(
        offset, impression.time_ms, str(impression.user_id), [str(served.item_id) for served in items],
        [0] * count, [NEVER] * count, [0] * count, [0] * count,
    )  # fmt: skip


def rank_of(state: ImpressionState, engagement: Engagement) -> int | None:
    """Rank of the engagement's item; None if the impression has another user or no such item."""
    if state.user_id != str(engagement.user_id):
        return None
    try:
        return state.item_ids.index(str(engagement.item_id))
    except ValueError:
        return None


def size_of(impression: Impression) -> int:
    """Approximate bytes of memory that an impression takes with its state."""
    size = 1_000 + 500 * len(impression.items)
    block = impression.features
    if block is not None:
        size += len(block.user_keys) + len(block.item_keys) + len(block.history)
        size += len(block.outcomes) + len(block.dense)
    if impression.choice is not msgspec.UNSET:
        size += len(impression.choice.others)
    return size
