"""The mutation run changes what runs, and nothing else, and chooses the tests that may notice."""

import ast

from tests.support.mutation.operators import mutants
from tests.support.mutation.selection import ImportGraph
from tests.support.paths import ROOT

SOURCE = '''
"""Two 2s."""
from typing import Final

LIMIT: Final = 10


def clip(value: int, low: int = 0) -> int:
    """At most 3."""
    if value > LIMIT and not low:
        raise ValueError(f"value is {value + 1}, expected 4")
    return max(value, low)  # of 5


class Pair(Struct, frozen=True):
    """Two."""

    both = zip([], [], strict=True)
'''


def test_each_place_that_runs_is_changed_and_no_other() -> None:
    changed = {(mutant.was, mutant.now) for mutant in mutants("clip.py", SOURCE)}
    test = "if value > LIMIT and not low:"
    raising = 'raise ValueError(f"value is {value + 1}, expected 4")'
    assert changed == {
        ("LIMIT: Final = 10", "LIMIT: Final = (11)"),
        ("def clip(value: int, low: int = 0) -> int:", "def clip(value: int, low: int = (1)) -> int:"),
        (test, "if (value >= LIMIT) and not low:"),
        (test, "if (value <= LIMIT) and not low:"),
        (test, "if (value > LIMIT or not low):"),
        (test, "if value > LIMIT and (low):"),
        (test, "if (not (value > LIMIT and (not low))):"),
        (raising, "pass"),
        ("return max(value, low)  # of 5", "return (min(value, low))  # of 5"),
    }


def test_mutants_are_the_same_in_each_run_and_parse() -> None:
    first, again = mutants("clip.py", SOURCE), mutants("clip.py", SOURCE)
    assert [mutant.order() for mutant in first] == [mutant.order() for mutant in again]
    assert all(ast.parse(mutant.source) for mutant in first)


def test_the_mirrored_test_comes_first() -> None:
    graph = ImportGraph(ROOT, ("recsys/features", "tests/recsys"))
    tests = graph.tests_of("recsys/features/counter_kernels.py")
    assert tests[0] == "tests/recsys/features/test_counters.py"  # imports it through another module
    assert all(test.startswith("tests/recsys/") for test in tests)
