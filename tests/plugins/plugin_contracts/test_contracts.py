"""The contract suite: the example keeps all contracts, and changed plug-ins break those that they should."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.plugin_package import recsys_example_plugins as example
from plugins.plugin_contracts.suite import CONTRACTS
from recsys import plugins
from replay.datasets.table_rows import BadRow, Block
from serving.request import Candidates


def broken(group: str, plugin: Any) -> dict[str, str]:
    """Broken contracts with the reason."""
    reasons = {}
    for name, contract in CONTRACTS[group].items():
        try:
            contract(plugin)
        except Exception as error:
            reasons[name] = str(error)
    return reasons


@pytest.mark.parametrize(
    ("group", "plugin"),
    [
        (plugins.OPERATORS, example.likeness),
        (plugins.READERS, example.access_log),
        (plugins.SOURCES, example.same_author),
        (plugins.STAGES, example.short_first),
    ],
)
def test_the_example_keeps_all_contracts(group: str, plugin: Any) -> None:
    assert len(CONTRACTS[group]) >= 4 and broken(group, plugin) == {}


class Operator:
    version, columns = "1", 2

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *columns_N: Any) -> Any:
        return columns_N[0] + columns_N[1]


class RandomOperator(Operator):
    def __call__(self, *columns_N: Any) -> Any:
        return super().__call__(*columns_N) + random.random()


class NumpyRandomOperator(Operator):
    def __call__(self, *columns_N: Any) -> Any:
        return super().__call__(*columns_N) + np.random.normal()


class ShortOperator(Operator):
    def __call__(self, *columns_N: Any) -> Any:
        return super().__call__(*columns_N)[1:]


class InfiniteOperator(Operator):
    def __call__(self, *columns_N: Any) -> Any:
        with np.errstate(all="ignore"):
            return columns_N[0] / columns_N[1]


class UnversionedOperator(Operator):
    version = ""


class RankingOperator(Operator):
    def __call__(self, *columns_N: Any) -> Any:
        return columns_N[0] - columns_N[1].mean()


class CountingOperator(Operator):
    def __call__(self, *columns_N: Any) -> Any:
        self.calls += 1
        return super().__call__(*columns_N) + self.calls


class RememberingOperator(Operator):
    """Two equal calls in a row are equal."""

    def __init__(self) -> None:
        self.last = self.before = b""

    def __call__(self, *columns_N: Any) -> Any:
        text = columns_N[0].tobytes()
        if text != self.last:
            self.last, self.before = text, self.last
        return super().__call__(*columns_N) + sum(self.before) % 7


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (Operator(), set()),
        (RandomOperator(), {"same output", "hidden state", "global randomness", "rows alone"}),
        (NumpyRandomOperator(), {"same output", "hidden state", "global randomness", "rows alone"}),
        (ShortOperator(), set(CONTRACTS[plugins.OPERATORS]) - {"version"}),
        (InfiniteOperator(), set(CONTRACTS[plugins.OPERATORS]) - {"version"}),
        (UnversionedOperator(), {"version"}),
        (RankingOperator(), {"rows alone"}),
        (CountingOperator(), {"same output", "hidden state", "rows alone"}),
        (RememberingOperator(), {"hidden state", "rows alone"}),
    ],
)
def test_operators_that_break_a_contract(plugin: Any, expected: set[str]) -> None:
    assert set(broken(plugins.OPERATORS, plugin)) == expected
    assert "no attribute columns" in broken(plugins.OPERATORS, lambda price: price)["shape"]


class Reader:
    sample = b"a,b\nc,d\n"

    def __call__(self, file: Path) -> Iterator[Block]:
        rows = [line.split(",") for line in file.read_text().splitlines()]
        columns = {"user": [row[0] for row in rows], "item": [row[1] for row in rows]}
        yield self.changed(Block([1, 2], columns, []))

    def changed(self, block: Block) -> Block:
        return block


class RandomReader(Reader):
    def changed(self, block: Block) -> Block:
        return block._replace(bad=[BadRow(3, "expected luck", str(random.random()))])


class UnevenReader(Reader):
    def changed(self, block: Block) -> Block:
        return block._replace(columns=block.columns | {"time": [1]})


class BackwardReader(Reader):
    def changed(self, block: Block) -> Block:
        return block._replace(lines=[2, 1])


class LargeReader(Reader):
    def changed(self, block: Block) -> Block:
        return Block(list(range(30_000)), {"user": ["a"] * 30_000}, [])


@pytest.mark.parametrize(
    ("plugin", "contract", "reason"),
    [
        (RandomReader(), "same output", "two calls with one input"),
        (RandomReader(), "global randomness", "it draws from random"),
        (UnevenReader(), "shape", "'time': 1} values, expected 2"),
        (BackwardReader(), "shape", "lines don't ascend: [2, 1]"),
        (LargeReader(), "shape", "more than 20000 rows"),
        (lambda file: [], "shape", "no attribute sample"),
    ],
)
def test_readers_that_break_a_contract(plugin: Any, contract: str, reason: str) -> None:
    assert broken(plugins.READERS, Reader()) == {}
    reasons = broken(plugins.READERS, plugin)
    assert reason in reasons[contract]


class Source(example.SameAuthor):
    """Changes what the example finds."""

    def __init__(self, change: Any) -> None:
        self.change, self.calls = change, 0

    def __call__(self, replica: Any, query: Any, viewer: Any, allowed: Any, k: int) -> Any:
        self.calls += 1
        return self.change(self, super().__call__(replica, query, viewer, allowed, k))


ALL_OF_SOURCES = set(CONTRACTS[plugins.SOURCES]) - {"version"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda source, found: found, set()),
        (
            lambda source, found: np.random.permutation(found),
            {"same output", "hidden state", "global randomness", "explain"},
        ),
        (lambda source, found: found[source.calls % 2 :], {"same output", "hidden state"}),
        (lambda source, found: found.tolist(), ALL_OF_SOURCES),
        (lambda source, found: found[:, None], ALL_OF_SOURCES),
        (lambda source, found: found + 1_000, ALL_OF_SOURCES),
        (lambda source, found: np.arange(200), ALL_OF_SOURCES),  # what the viewer has seen, too
        (lambda source, found: found[:0], {"shape"}),
    ],
)
def test_sources_that_break_a_contract(change: Any, expected: set[str]) -> None:
    assert expected <= set(broken(plugins.SOURCES, Source(change)))
    if not expected:
        assert broken(plugins.SOURCES, Source(change)) == {}


class Stage:
    """Changes the candidates, from the calls before it and the replica."""

    version = "1"

    def __init__(self, change: Any) -> None:
        self.change, self.calls = change, 0

    def __call__(self, replica: Any, query: Any, before: Candidates) -> Candidates:
        self.calls += 1
        changed: Candidates = self.change(self, replica, before)
        return changed


def added(before: Candidates, value: Any) -> Candidates:
    return before.add_scores("s", value + np.zeros(len(before.indices_N)))


def drawn(before: Candidates) -> Any:
    """Another number for each candidate: one for all would change no order."""
    return random.random() * np.arange(len(before.indices_N))


def in_place(before: Candidates) -> Candidates:
    before.scores_N[:] += 0.5
    return before


def by_address(replica: Any, before: Candidates) -> Any:
    """Another order of the candidates in each process."""
    return np.sin(np.arange(len(before.indices_N)) * float(id(replica) >> 4))


ALL_OF_STAGES = set(CONTRACTS[plugins.STAGES]) - {"version"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda stage, replica, before: added(before, 0.5), set()),
        (lambda stage, replica, before: np.arange(len(before.indices_N)) <= 2, set()),
        (
            lambda stage, replica, before: added(before, drawn(before)),
            {"same output", "hidden state", "global randomness", "explain"},
        ),
        (lambda stage, replica, before: added(before, stage.calls), {"same output", "hidden state"}),
        (lambda stage, replica, before: added(before, by_address(replica, before)), {"explain"}),
        (lambda stage, replica, before: in_place(before), {"shape"}),
        (lambda stage, replica, before: before.add_scores("s", np.zeros(3)), ALL_OF_STAGES),
        (lambda stage, replica, before: added(before, np.nan), ALL_OF_STAGES),
        (lambda stage, replica, before: None, ALL_OF_STAGES),
        (lambda stage, replica, before: before, {"shape"}),
    ],
)
def test_stages_that_break_a_contract(change: Any, expected: set[str]) -> None:
    stage = Stage(change)
    assert expected <= set(broken(plugins.STAGES, stage))
    if not expected:
        assert broken(plugins.STAGES, stage) == {}
