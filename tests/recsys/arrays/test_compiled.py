"""Compiled kernels are cached on disk, and recompiled after any change of the source that they contain."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from recsys.arrays.compiled import kernel

HEADER = "from numba import types\nfrom recsys.arrays.compiled import kernel\n"
SIGNATURE = "@kernel(types.int64(types.int64))\n"
LEAF = f"{HEADER}STEP = 1\n{SIGNATURE}def step(x):\n    return x + 1\n"
MIDDLE = f"{HEADER}import kernel_leaf\n{SIGNATURE}def twice(x):\n    return 2 * kernel_leaf.step(x)\n"
CALLER = (
    f"{HEADER}from kernel_leaf import STEP\nfrom kernel_middle import twice\n"
    f"{SIGNATURE}def call(x):\n    return twice(x) + 100 * STEP\n"
)


def imported(folder: Path) -> ModuleType:
    names = ("kernel_leaf", "kernel_middle", "kernel_caller")
    for name in names:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    try:
        return importlib.import_module("kernel_caller")
    finally:
        for name in names:
            sys.modules.pop(name, None)


def test_a_caller_is_recompiled_when_a_callee_or_constant_of_another_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    files = {"kernel_leaf": LEAF, "kernel_middle": MIDDLE, "kernel_caller": CALLER}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    first = imported(tmp_path)
    assert first.call(5) == 112 and not first.call.stats.cache_hits
    again = imported(tmp_path)
    assert again.call(5) == 112 and again.call.stats.cache_hits, "unchanged: read from disk"

    (tmp_path / "kernel_leaf.py").write_text(LEAF.replace("x + 1", "x + 10"))
    callee_changed = imported(tmp_path)
    assert callee_changed.call(5) == 130 and not callee_changed.call.stats.cache_hits

    (tmp_path / "kernel_leaf.py").write_text(LEAF.replace("STEP = 1", "STEP = 2"))
    assert imported(tmp_path).call(5) == 212


def test_kernels_of_a_read_only_install_are_compiled_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folder(function: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("recsys.arrays.compiled._KernelCache", no_folder)
    from numba import types

    @kernel(types.int64(types.int64))
    def plus_one(x: int) -> int:
        return x + 1

    assert plus_one(1) == 2


@pytest.mark.slow
def test_kernels_load_no_linear_algebra_of_scipy_and_leave_it_usable() -> None:
    code = """
import sys
import recsys.arrays.id_map
print("scipy.linalg" in sys.modules)
import numba, numpy as np
print(numba.njit(lambda a: a @ a)(np.full((2, 2), 2.0)).sum())
print("scipy.linalg" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "32.0", "True"]
