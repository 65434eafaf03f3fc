"""What a joiner holds of an impression: who did what with which item, as columns that pack small."""

import msgspec

from recsys.events.event_types import Engagement, Impression

NEVER = -1  # in ``learned``: no example was made yet
SHOWN, SAMPLED_OUT, BY_WINDOW, AFTER = 1, 2, 4, 8  # marks; above them the labels that were late_labels
FORESEEN = 4  # by how many bits a mark's labels are shifted


class Held(msgspec.Struct, array_like=True, gc=False):
    """What was done with an impression's items, by rank.

    ``labels``: bit *l* is label *l*; ``learned``: those of the newest example, ``NEVER`` before the first.
    ``marks``: ``SHOWN``; ``SAMPLED_OUT``, the first example was; ``BY_WINDOW``, the window ended it;
    ``AFTER``, what made it came after the window; and the labels that were late_labels
    (training/joining/delay.py).
    ``kept``: the impression, where it can't be read again.
    """

    offset: int
    time_ms: int
    user_id: str
    item_ids: list[str]
    labels: list[int]
    learned: list[int]
    marks: list[int]
    watch_ms: list[int]
    closed: bool = False  # its window is
    kept: bytes = b""


class StateOffset(msgspec.Struct, array_like=True):
    """All that is read of a packed ``Held`` to know where its impression stands."""

    offset: int


class Open(msgspec.Struct, gc=False):
    """An impression whose window is open. ``impression`` is None after a restart, until it is needed."""

    held: Held
    impression: Impression | None
    size: int  # bytes, roughly


def new_state(offset: int, impression: Impression, shown: bool) -> Held:
    """An impression with which nothing was done yet."""
    items = impression.items
    count = len(items)
    return Held(
        offset,
        impression.time_ms,
        str(impression.user_id),
        [str(served.item_id) for served in items],
        [0] * count,
        [NEVER] * count,
        [SHOWN if shown else 0] * count,
        [0] * count,
    )


def rank_of(held: Held, engagement: Engagement) -> int | None:
    """The rank of the engagement's item; None where it wasn't served, or to somebody else."""
    if held.user_id != str(engagement.user_id):
        return None
    try:
        return held.item_ids.index(str(engagement.item_id))
    except ValueError:
        return None


def size_of(impression: Impression) -> int:
    """About how many bytes an impression takes in memory, with what is held of it."""
    size = 1_000 + 500 * len(impression.items)
    block = impression.features
    if block is not None:
        size += len(block.user_keys) + len(block.item_keys) + len(block.history)
        size += len(block.outcomes) + len(block.dense)
    return size
