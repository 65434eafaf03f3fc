"""What holds for every run of the tests."""

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# One thread, as in each part of the system: workers share the cores, and threads of torch that wait spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example may take long where other processes run: its time says nothing of what is tested.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where slow tests are left out, hypothesis tries a third of its examples; ``make test`` tries all.

    A test of services is refused in a file that ``make test`` doesn't find by its text.
    """
    for path in {item.path for item in items if item.get_closest_marker("services")}:
        if "mark.services" not in path.read_text():
            raise pytest.UsageError(
                f"{path} has a test of services: expected the text mark.services"
            )
    if "not slow" not in config.option.markexpr:
        return
    functions = {getattr(its.obj, "__func__", its.obj) for its in items if hasattr(its, "obj")}
    machines = {its.cls for its in items if getattr(its, "cls", None)}
    for holders, name in ((functions, "_hypothesis_internal_use_settings"), (machines, "settings")):
        for holder in holders:
            its = getattr(holder, name, None)
            if isinstance(its, settings):
                few = max(10, its.max_examples // 3)
                setattr(holder, name, settings(its, max_examples=min(few, its.max_examples)))
