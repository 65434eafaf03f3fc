"""Which items may be shown to a user now. Each filter says how many it removed."""

from collections.abc import Collection, Iterable

import numpy as np

from recsys.arrays.bitmap import Bitmap, Indices
from recsys.events.hashing import Id
from recsys.features.catalogue import Catalogue
from recsys.features.session import Session


def wanted_items(
    catalogue: Catalogue, session: Session, exclude_ids: Iterable[Id], least: int
) -> tuple[Bitmap, dict[str, int], Indices]:
    """The items of the catalogue that may come, how many each filter removed, and which of the living were.
    What this costs hangs on the session: of the catalogue, only bits are copied.

    Where fewer than ``least`` would remain, what was seen may come again: an empty feed is worse.
    """
    wanted = catalogue.living.copy()
    removed = {"gone": len(wanted) - wanted.count}
    excluded = [index for index in map(catalogue.index_of, exclude_ids) if index is not None]
    taken = {
        "excluded": wanted.take(np.array(excluded, np.int64)),
        "hidden": wanted.take(_known(catalogue, session.hidden)),
        "seen": wanted.take(_known(catalogue, session.seen)),
    }
    if wanted.count < least:
        wanted.give_back(taken["seen"])
        taken["seen"] = np.empty(0, np.int64)
    removed |= {name: len(its) for name, its in taken.items()}
    return wanted, removed, np.concatenate(list(taken.values()))


def _known(catalogue: Catalogue, keys: Collection[int]) -> Indices:
    """The indices of those of the keys that are of items: all found at once, for there are hundreds."""
    found = catalogue.indices_of_keys(np.fromiter(keys, np.int64, len(keys)))
    return found[found >= 0]
