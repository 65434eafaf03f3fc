"""Bugs that can be planted, each with the invariant that finds it."""

from collections.abc import Callable

import pytest

Patch = pytest.MonkeyPatch

BUGS: dict[str, tuple[Callable[[Patch], None], set[str]]] = {}

JOINED = ("an example is appended once", "examples are those of an undisturbed join")

DIGEST = "digest is that of the undisturbed run"

AGAIN = "a delta published again is the same"

COUNTED = "nothing is lost or counted twice"

KEPT = "what was answered is kept"
