"""Seeds of tests that try many: a few that each commit draws, or all of them in ``make test-long``."""

import os
import random
import subprocess
from collections.abc import Sequence
from functools import cache
from typing import Final, TypeVar

from tests.support.paths import ROOT

Case = TypeVar("Case")
LONG: Final = bool(os.environ.get("RECSYS_TEST_LONG"))


@cache
def drawn_by() -> str:
    """Text that decides the draw: RECSYS_TEST_SEED, or the hash of the commit that is checked out."""
    if given := os.environ.get("RECSYS_TEST_SEED"):
        return given
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "0"
    except OSError:  # no git
        return "0"


def seeds(test: str, few: int, of: int) -> list[int]:
    """Draws ``few`` of the numbers below ``of``; ``make test-long`` gets all of them."""
    return drawn(test, few, range(of))


def drawn(test: str, few: int, of: Sequence[Case]) -> list[Case]:
    """Draws ``few`` of the cases, in their order; ``make test-long`` gets all of them."""
    places = range(len(of))
    if not LONG:
        places = sorted(random.Random(f"{test} {drawn_by()}").sample(places, few))
    return [of[place] for place in places]
