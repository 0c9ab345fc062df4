"""A pytest plugin: of all attempts one for each first wall, as attack, twin, and with the wall removed.

On an emulated processor all of them take a quarter of an hour. What a wall stops does not depend on the version of
cgroups or on who started us: `make test` makes every attempt, and here each wall is asked once whether it is there.
"""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the other ones. By name, whatever order they were shuffled into: each run asks the same questions."""
    chosen: dict[str, str] = {}
    parts: set[tuple[str, str]] = set()
    kept, left = [], []
    for item in sorted(items, key=lambda item: item.nodeid):
        mark = item.get_closest_marker("attack")
        words = mark.kwargs if mark else {"first": "", "part": "", "number": ""}
        part = words["first"], words["part"]
        if mark and part not in parts and chosen.setdefault(words["first"], words["number"]) == words["number"]:
            parts.add(part)
            kept.append(item)
        else:
            left.append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
