from typing import Any

import numpy as np
import pytest
from numba import njit, types

from recsys.arrays.compiled import read_only
from recsys.arrays.prefetch import LINE, prefetch_line, prefetch_once

_NUMBERS = read_only(types.float32, 1)


@njit(types.float32(_NUMBERS, types.int64))  # not cached, so that its code can be seen
def _kept(numbers: Any, offset: Any) -> Any:
    prefetch_line(numbers, offset)
    return numbers[0]


@njit(types.float32(_NUMBERS, types.int64))  # not cached, so that its code can be seen
def _passed(numbers: Any, offset: Any) -> Any:
    prefetch_once(numbers, offset)
    return numbers[0]


@pytest.mark.parametrize("kind", [_kept, _passed])
def test_a_hint_changes_nothing_and_may_point_anywhere(kind: Any) -> None:
    numbers = np.arange(64, dtype=np.float32) + 7
    for offset in (0, LINE, -(10**12), 10**15):
        assert kind(numbers, offset) == 7
    assert numbers.tolist() == list(range(7, 71))


@pytest.mark.parametrize(("kind", "name"), [(_kept, "prefetcht0"), (_passed, "prefetchnta")])
def test_it_is_the_instruction_that_is_meant(kind: Any, name: str) -> None:
    code = "".join(kind.inspect_asm().values())
    assert name in code or "prfm" in code  # x86, ARM
