"""Which items may be shown to a user now. Each filter says how many it removed."""

from collections.abc import Iterable

import numpy as np

from recsys.bitmap import Bitmap, Indices
from recsys.catalogue import Catalogue
from recsys.hashing import Id
from recsys.session import Session


def wanted_items(
    catalogue: Catalogue, session: Session, exclude_ids: Iterable[Id], least: int
) -> tuple[Bitmap, dict[str, int]]:
    """The items of the catalogue that may come, and how many each filter removed. What this costs hangs on
    the session: of the catalogue, only bits are copied.

    Where fewer than ``least`` would remain, what was seen may come again: an empty feed is worse.
    """
    wanted = catalogue.living.copy()
    removed = {"gone": len(wanted) - wanted.count}
    for name, found in (
        ("excluded", _known(catalogue.index_of(item_id) for item_id in exclude_ids)),
        ("hidden", _known(map(catalogue.index_of_key, session.hidden))),
    ):
        members = wanted.members(found)
        wanted.clear(members)
        removed[name] = len(members)
    seen = wanted.members(_known(map(catalogue.index_of_key, session.seen)))
    if wanted.count - len(seen) < least:
        seen = seen[:0]
    wanted.clear(seen)
    return wanted, removed | {"seen": len(seen)}


def _known(indices: Iterable[int | None]) -> Indices:
    return np.array([index for index in indices if index is not None], np.int64)
