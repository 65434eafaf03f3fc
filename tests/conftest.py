"""How the tests are shared between two processes: what needs services keeps one of them to itself.

Live systems have the machine's ports and processors to themselves only one at a time; so they stay in one
group, the first, while the other process goes through the rest.
"""

import pytest


@pytest.hookimpl(tryfirst=True)  # before those who read the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    live = [item for item in items if item.get_closest_marker("services")]
    for item in live:
        item.add_marker(pytest.mark.xdist_group("services"))
    chosen = set(map(id, live))
    items[:] = [*live, *(item for item in items if id(item) not in chosen)]
