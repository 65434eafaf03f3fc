from typing import Any

import numpy as np
from numba import njit, types

from recsys.arrays.compiled import read_only
from recsys.arrays.prefetch import LINE, prefetch_line

_NUMBERS = read_only(types.float32, 1)


@njit(types.float32(_NUMBERS, types.int64))  # not cached, so that its code can be seen
def _first_number(numbers: Any, offset: Any) -> Any:
    prefetch_line(numbers, offset)
    return numbers[0]


def test_a_hint_changes_nothing_and_may_point_anywhere() -> None:
    numbers = np.arange(64, dtype=np.float32) + 7
    for offset in (0, LINE, -(10**12), 10**15):
        assert _first_number(numbers, offset) == 7
    assert numbers.tolist() == list(range(7, 71))


def test_a_hint_compiles_to_a_prefetch_instruction() -> None:
    code = "".join(_first_number.inspect_asm().values())
    assert "prefetcht0" in code or "prfm" in code  # x86, ARM
