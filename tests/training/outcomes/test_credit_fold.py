"""Credits of interleaved lists, from a log: each list once, and what its items earned in the end."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.harness.local_system import small_config
from experiments.assignment.definition import INTERLEAVED, Experiment, read_experiment
from recsys.config.policy_config import PolicyConfig
from recsys.events.event_types import Impression, Stamp, encode
from recsys.events.records import EVENTS, EXAMPLES, Example, pack, topics
from recsys.log.protocol import Append, MemoryLog
from training.outcomes.credit_fold import InterleavingCredits, read_credits

LABELS = ("long_view", "like")
DUEL = "name: duel\nkind: interleaving\ncredit: {like: 1.0}\narms:\n  control:\n  treatment: {overrides: {weights.like: 3.0}}\n"  # fmt: skip  # noqa: E501


def duel() -> Experiment:
    return read_experiment(DUEL, "duel.yaml", PolicyConfig(), LABELS)


def listed(n: int) -> Impression:
    stamp = Stamp(arms={"duel": INTERLEAVED})
    return Impression(time_ms=1_000 + n, request_id=f"r{n}", user_id=f"u{n % 40}", items=[],
                      stamp=stamp, teams=["control", "treatment"])  # fmt: skip


def example(offset: int, index: int, like: float, correction: bool = False) -> Example:
    return Example(
        partition=0, offset=offset, index=index, labels=[1.0, like], sequence=0,
        request_id="", user_id="", item_id="v0", surface="feed", shown_ms=0, closed_ms=10**9,
        correction=correction,
    )  # fmt: skip


def read(folder: Path, lists: Sequence[Impression], examples: Sequence[Example]) -> InterleavingCredits:
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    log.append(EVENTS, [Append(0, b"k", encode(its)) for its in lists])
    log.append(EXAMPLES, [Append(0, b"k", pack(its)) for its in examples])
    return read_credits(log, small_config(folder), LABELS, duel(), 0)


def test_a_list_that_was_sent_twice_is_credited_once(tmp_path: Path) -> None:
    lists = [listed(n) for n in range(60)]
    examples = [example(n, n % 2, 1.0) for n in range(60)]
    its = read(tmp_path, [*lists, *lists[40:], listed(60)], examples)
    assert its.repeats == 20 and its.credits.lists_U.sum() == 61
    assert its.credits.picked_U2.sum(0).tolist() == [30.0, 30.0]
    assert sum(its.credits.first_picks) == 61


def test_what_a_correction_takes_back_is_earned_by_nobody(tmp_path: Path) -> None:
    first = [example(0, 0, 1.0), example(1, 1, 0.0)]
    said = [*first, example(0, 0, 0.0, True), example(1, 1, 1.0, True)]
    its = read(tmp_path, [listed(0), listed(1)], said)
    assert its.credits.picked_U2.tolist() == [[0.0, 0.0], [0.0, 1.0]] and its.uncredited == 0


def test_credits_are_shared_as_the_list_says_and_by_picks_where_it_says_nothing(tmp_path: Path) -> None:
    told = [msgspec.structs.replace(listed(n), shares=[0.25, 0.75]) for n in range(40)]
    its = read(tmp_path, [*told, listed(40)], [example(n, 1, 1.0) for n in range(41)])
    assert its.credits.picked_U2.sum(0).tolist() == [0.0, 41.0]
    assert its.credits.shared_U2.sum(0).tolist() == [10.0, 31.0]
