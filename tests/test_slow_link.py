"""Delay and loss of frames on the link of a slow host, without a network."""

from tests.support.systems.slow_link import Delays


def test_frames_come_in_order_after_the_delay() -> None:
    delays = Delays(delay_s=0.05, loss=0.0, seed=0)
    assert delays.wait_s(1.0) is None
    for number, now_s in enumerate((1.0, 1.01, 1.01)):
        delays.put(number % 2, b"%d" % number, now_s)
    assert delays.take(1.04) == []
    assert delays.wait_s(1.04) == 1.05 - 1.04
    assert delays.take(1.065) == [(0, b"0"), (1, b"1"), (0, b"2")]
    assert delays.wait_s(1.065) is None


def test_a_share_of_frames_is_lost() -> None:
    delays = Delays(delay_s=0.0, loss=0.1, seed=0)
    for _ in range(1000):
        delays.put(0, b"frame", 0.0)
    assert 850 < len(delays.take(0.0)) < 950
