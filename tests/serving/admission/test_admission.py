"""Who is let in: simulated queues of one thread, with a clock of their own."""

import random
from collections import deque

import pytest

from serving.admission.admission import ONGOING, WAIT, Admission, Limit, TokenBuckets

SERVICE_S = 0.004


def admission_of() -> Admission:
    """With a deadline of 100 ms, and 25 ms where the queue stands."""
    return Admission(0.1, 0.025, 100)


class SimulatedQueue:
    """One thread that takes ``SERVICE_S`` for an answer; requests come at random, at a rate."""

    def __init__(self, admission: Admission, seed: int = 1) -> None:
        self.admission, self._random = admission, random.Random(seed)
        self.now_s, self.free_s = 100.0, 100.0
        self.queue: deque[float] = deque()
        self.latencies_s: list[float] = []
        self.refused = 0
        self.longest = 0

    def run(self, rate: float, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += self._random.expovariate(rate)
            self._serve_until(self.now_s)
            if self.admission.refusal(self.now_s):
                self.refused += 1
            else:
                self.admission.enter(self.now_s)
                self.queue.append(self.now_s)
                self.longest = max(self.longest, len(self.queue))

    def _serve_until(self, now_s: float) -> None:
        while self.queue:
            begins_s = max(self.free_s, self.queue[0])
            if begins_s + SERVICE_S > now_s:
                return
            came_s = self.queue.popleft()
            self.free_s = begins_s + SERVICE_S
            self.admission.leave(self.free_s)
            self.latencies_s.append(self.free_s - came_s)

    def p99_s(self) -> float:
        return sorted(self.latencies_s)[int(0.99 * len(self.latencies_s))]


def simulate(rate: float, seconds: float = 20.0) -> SimulatedQueue:
    made = SimulatedQueue(admission_of())
    made.run(rate, 1.0)
    made.latencies_s.clear()
    made.refused = 0
    made.run(rate, seconds)
    return made


def test_at_half_of_the_peak_nobody_is_refused() -> None:
    half = simulate(0.5 / SERVICE_S)
    assert half.refused == 0


def test_at_three_times_the_peak_all_time_is_used_and_the_admitted_wait_little() -> None:
    half, over = simulate(0.5 / SERVICE_S), simulate(3.0 / SERVICE_S)
    assert len(over.latencies_s) * SERVICE_S > 0.97 * 20.0
    assert over.p99_s() < 2 * half.p99_s()
    assert over.refused > len(over.latencies_s)


def test_a_burst_is_taken_and_a_queue_that_stands_is_cut() -> None:
    admission = admission_of()
    now_s = 5.0
    taken = take_all(admission, now_s)
    assert taken == pytest.approx(0.1 / admission.answer_s, abs=1)  # as many as come in time
    assert admission.refusal(now_s) == WAIT
    for _ in range(taken - 7):  # answered one after the other, each after a wait
        now_s += 0.0075
        admission.leave(now_s)
    assert admission.inside == 7 and admission.inside * admission.answer_s < 0.1
    assert admission.refusal(now_s) == WAIT  # it would come in time, but the queue stands
    for _ in range(7):
        now_s += 0.0075
        admission.leave(now_s)
    # The queue is empty, soon after a refusal: no burst is taken.
    assert take_all(admission, now_s) == pytest.approx(0.025 / admission.answer_s, abs=1)
    for _ in range(admission.inside):
        now_s += 0.0075
        admission.leave(now_s)
    now_s += 0.1
    assert take_all(admission, now_s) == pytest.approx(0.1 / admission.answer_s, abs=1)


def take_all(admission: Admission, now_s: float) -> int:
    """Number of requests that are admitted at once, until one is refused."""
    taken = 0
    while not admission.refusal(now_s):
        admission.enter(now_s)
        taken += 1
    return taken


def test_a_store_that_takes_its_time_is_no_queue() -> None:
    admission, now_s = admission_of(), 10.0
    for n in range(300):  # one each 5 ms, each inside for 45 ms, of which the store takes 40
        now_s += 0.005
        assert admission.refusal(now_s) == ""
        admission.enter(now_s)
        if n >= 8:
            admission.observe_io_wait(0.04 + 0.001 * (n % 3), now_s)
            admission.leave(now_s)
    assert admission.inside == 8 and admission.answer_s == pytest.approx(0.005, rel=0.2)
    for _ in range(20):  # as many inside with a quick store are a queue
        now_s += 0.005
        admission.enter(now_s)
        admission.observe_io_wait(0.0005, now_s)
        admission.leave(now_s)
    assert admission.refusal(now_s) == WAIT


def test_what_came_while_the_loop_hung_is_let_in() -> None:
    admission = admission_of()
    admission.enter(5.0)
    for _ in range(15):  # all at once, after a pause in which nothing was answered
        assert admission.refusal(5.2) == ""
        admission.enter(5.2)


def test_the_queue_is_bounded_however_much_comes() -> None:
    slow = SimulatedQueue(admission_of())
    slow.run(50.0 / SERVICE_S, 2.0)
    assert slow.longest <= 0.1 / SERVICE_S + 2


def test_what_an_answer_takes_is_learned_and_a_few_are_always_let_in() -> None:
    admission = admission_of()
    now_s = 0.0
    for _ in range(200):  # each takes 300 ms: longer than the deadline
        admission.enter(now_s)
        now_s += 0.3
        admission.leave(now_s)
    assert admission.answer_s == pytest.approx(0.3, rel=0.01)
    assert [admission.refusal(now_s) for _ in range(6) if not admission.enter(now_s)] == [
        "", "", "", WAIT, WAIT, WAIT,
    ]  # fmt: skip


def test_a_limit_counts() -> None:
    limit = Limit(2)
    limit.enter(0.0)
    assert limit.refusal(0.0) == ""
    limit.enter(0.0)
    assert limit.refusal(1e9) == ONGOING
    limit.leave(0.0)
    assert limit.refusal(0.0) == ""


def test_a_client_has_its_share_and_a_second_s_worth_at_once() -> None:
    buckets = TokenBuckets(rate=2.0)
    assert [buckets.take("a", 10.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert buckets.take("b", 10.0) == 0.0  # another's share is its own
    assert buckets.take("a", 10.25) == pytest.approx(0.25)  # asking costs nothing
    assert buckets.take("a", 10.5) == 0.0
    assert TokenBuckets(rate=0.0).take("a", 0.0) == 0.0


def test_only_so_many_clients_are_remembered() -> None:
    buckets = TokenBuckets(rate=1.0, clients=3)
    for n in range(50):
        buckets.take(f"c{n}", 0.0)
    assert len(buckets) == 3
    assert buckets.take("c49", 0.0) > 0 and buckets.take("c0", 0.0) == 0.0


def test_four_are_inside_at_least_however_long_answers_take() -> None:
    admission = Admission(1e-6, 1e-6, 100)
    for _ in range(4):
        assert admission.refusal(1.0) == ""
        admission.enter(1.0)
    assert admission.refusal(1.0) == WAIT
    assert Admission(1e-6, 1e-6, 1).refusal(1.0) == ""


def test_a_queue_stands_after_five_answers_and_30_ms() -> None:
    admission = admission_of()
    for _ in range(20):
        admission.enter(1.0)
    for answers in range(1, 6):
        assert not admission.has_standing_queue(1.1)
        admission.leave(1.0 + 0.005 * answers)
    assert not admission.has_standing_queue(1.029) and admission.has_standing_queue(1.031)
    assert admission.answer_s == pytest.approx(0.005)
    admission.leave(1.125)
    assert admission.answer_s == pytest.approx(0.005 + 0.05 * 0.095)
