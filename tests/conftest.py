"""What holds for every run of the tests."""

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.seeds import LONG, drawn_by

# One thread, as in each part of the system: workers share the cores, and threads of torch that wait spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example may take long where other processes run: its time says nothing of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Garbage collection leaves out what is imported: going through it took a tenth of a run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests that are coroutines run in asyncio."""
    return "asyncio"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files that lack the text of a marker that ``-m`` asks for: importing all takes longer."""
    words = _asked(config)
    if not words or not collection_path.match("test_*.py"):
        return None
    text = collection_path.read_text()
    return True if any(f"mark.{word}" not in text for word in words) else None


def _asked(config: pytest.Config) -> list[str]:
    """Markers that each selected test has: the plain words of ``A and B and not C``."""
    return [word for word in config.option.markexpr.split(" and ") if word.isidentifier()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Checks the texts of markers, sorts pairs by rank, and bounds hypothesis.

    Hypothesis tries a third of its examples, others in each run; ``make test-long`` tries all.
    """
    for name in () if _asked(config) else ("services", "steady", "pairs"):
        for path in {item.path for item in items if item.get_closest_marker(name)}:
            if f"mark.{name}" not in path.read_text():
                raise pytest.UsageError(
                    f"{path} has a test marked {name}: expected the text mark.{name}, since "
                    f"-m {name} selects files by it"
                )
    items.sort(key=_rank, reverse=True)
    if LONG:
        return
    functions = {getattr(its.obj, "__func__", its.obj) for its in items if hasattr(its, "obj")}
    machines = {its.cls for its in items if getattr(its, "cls", None)}
    for holders, name in ((functions, "_hypothesis_internal_use_settings"), (machines, "settings")):
        for holder in holders:
            its = getattr(holder, name, None)
            if isinstance(its, settings):
                few = max(10, its.max_examples // 3)
                setattr(holder, name, settings(its, max_examples=min(few, its.max_examples)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tells after a failure how the same seeds are drawn again."""
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"seeds were drawn by RECSYS_TEST_SEED={drawn_by()}")


def _rank(item: pytest.Item) -> int:
    marker = item.get_closest_marker("pairs")
    return int(marker.args[0]) if marker else 0
