"""Which items may be shown to a user now. Each filter says how many it removed."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue
from recsys.hashing import Id
from recsys.session import Session

Mask = NDArray[np.bool_]


def wanted_items(
    catalogue: Catalogue, session: Session, exclude_ids: Iterable[Id], least: int
) -> tuple[Mask, dict[str, int]]:
    """A mask over the catalogue, and how many each filter removed.

    Where fewer than ``least`` would remain, what was seen may come again: an empty feed is worse.
    """
    wanted = catalogue.alive.copy()
    removed = {"gone": int(len(wanted) - wanted.sum())}
    excluded = (catalogue.index_of(item_id) for item_id in exclude_ids)
    removed["excluded"] = _clear(wanted, excluded)
    removed["hidden"] = _clear(wanted, map(catalogue.index_of_key, session.hidden))
    unseen = wanted.copy()
    seen = _clear(unseen, map(catalogue.index_of_key, session.seen))
    if unseen.sum() >= least:
        return unseen, removed | {"seen": seen}
    return wanted, removed | {"seen": 0}


def _clear(mask: Mask, indices: Iterable[int | None]) -> int:
    chosen = np.unique(np.array([i for i in indices if i is not None], np.int64))
    count = int(mask[chosen].sum())
    mask[chosen] = False
    return count
