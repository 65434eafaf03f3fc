"""How an index's lists lie in memory."""

from serving.index.ivf_index import IvfIndex
from serving.index.list_kernels import LANES


def pages_of(index: IvfIndex) -> list[int]:
    """The pages of all lists, list after list, as a search goes through them."""
    found = []
    for page, _, left in index.lists._ends.tolist():
        for _ in range(-(-left // LANES)):
            found.append(page)
            page = int(index.lists._chains[page, 0])
    return found
