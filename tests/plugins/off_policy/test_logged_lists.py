"""Which lists of a log are judged: each once, and no more of them in memory than are asked for."""

import tracemalloc
from collections import Counter
from collections.abc import Sequence

from experiments.assignment.policy import Policy
from plugins.off_policy.logged_lists import EARLY, REPEATED, SAMPLED, chosen
from plugins.off_policy.propensities import same_candidates
from plugins.off_policy.target_policy import TargetPolicy
from recsys.config.policy_config import PolicyConfig, Rule
from recsys.events.event_types import Impression, RequestInputs, Stamp, encode
from recsys.events.records import EVENTS, EXAMPLES, Example, pack, topics
from recsys.log.protocol import Append, MemoryLog

WINDOW_MS = 1_000
TARGET = TargetPolicy("t", PolicyConfig(), {"like": 1.0})


def listed(n: int, size: int = 0) -> Impression:
    return Impression(time_ms=1_000 + n, request_id=f"r{n}", user_id=f"u{n % 40}", items=[],
                      inputs=RequestInputs(n=3), stamp=Stamp(), predicted=bytes(size))  # fmt: skip


def log_of(lists: Sequence[Impression], newest_ms: int) -> MemoryLog:
    """With one example, by which windows are over that end before ``newest_ms``."""
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    log.append(EVENTS, [Append(0, b"k", encode(its)) for its in lists])
    last = Example(
        partition=0, offset=0, index=0, labels=[0.0], sequence=0, request_id="r0",
        user_id="u0", item_id="v0", surface="feed", shown_ms=0, closed_ms=newest_ms,
    )  # fmt: skip
    log.append(EXAMPLES, [Append(0, b"k", pack(last))])
    return log


def test_what_is_unwanted_decides_which_candidates_there_are() -> None:
    def weighing(**weights: float) -> Policy:
        return Policy(PolicyConfig(weights=weights), "")

    logged = weighing(like=1.0, buy=0.0, dislike=-1.0)
    assert same_candidates(logged, weighing(like=3.0, buy=1.0, dislike=-2.0))
    assert not same_candidates(logged, weighing(like=1.0, buy=-1.0, dislike=-1.0))
    assert not same_candidates(logged, weighing(like=1.0, buy=0.0, dislike=0.0))


def test_rules_that_exclude_items_decide_which_candidates_there_are() -> None:
    def ruled(*rules: Rule) -> Policy:
        return Policy(PolicyConfig(rules=rules), "")

    boost, few = Rule("tag", "news", "boost", 0.5), Rule("tag", "ads", "limit", 2)
    fresh, none = Rule("tag", "fresh", "require"), Rule("tag", "ads", "limit", 0)
    assert same_candidates(ruled(fresh, none), ruled(none, boost, few, fresh))
    for rules in ((), (fresh,), (none,), (fresh, few)):
        assert not same_candidates(ruled(fresh, none), ruled(*rules))


def test_a_list_that_was_sent_twice_is_judged_once_where_it_came_first() -> None:
    first = [listed(n) for n in range(300)]
    log, left_out = log_of([*first[:200], *first[100:200], *first[200:]], 10_000), Counter[str]()
    found = chosen(log, WINDOW_MS, TARGET, 1_000, left_out)
    assert [its.request_id for _, its in found] == [its.request_id for its in first]
    assert [place for place, _ in found] == [(0, n) for n in (*range(200), *range(300, 400))]
    assert left_out == {REPEATED: 100}


def test_lists_that_are_left_out_by_the_sample_are_not_kept() -> None:
    lists = [listed(n, 20_000) for n in range(600)]
    log, left_out = log_of(lists, 1_501 + WINDOW_MS), Counter[str]()
    tracemalloc.start()
    found = chosen(log, WINDOW_MS, TARGET, 60, left_out)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    users = {its.user_id for _, its in found}
    assert 0 < len(users) < 40 and left_out[EARLY] == 98
    wanted = [its for its in lists[:502] if its.user_id in users]
    assert [its for _, its in found] == wanted and left_out[SAMPLED] == 502 - len(wanted)
    assert peak_bytes < 20_000 * (len(wanted) + 100)
