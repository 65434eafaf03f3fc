"""A recommender in the calling process: it learns, continues bit for bit, and survives kills."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import recsys
from recsys.client import ApiError, Recommendations
from recsys.config.system_config import Config
from runtime.one_process.one_process import in_one_process
from runtime.one_process.recommender import Recommender
from runtime.supervision.run_file import AlreadyRuns

APP = """
app: kitchen
events: {click: positive, view: {}}
fields: {item: {category: category, price: number}}
window: 60s
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.yaml").write_text(APP)
    return tmp_path / "app.yaml"


def opened(app: Path, at_once: bool = True) -> Recommender:
    return Recommender(app.parent / "state", app, learn_at_once=at_once)


def publish(feed: Recommender) -> None:
    kinds = ("kitchen", "garden")
    fields = {f"mug{n}": {"category": kinds[n % 2], "price": 10 + n} for n in range(120)}
    assert feed.upsert_items(fields).accepted == 120


def watch(feed: Recommender, user: str) -> Recommendations:
    """The user clicks what is for the kitchen, and looks at all."""
    answer = feed.recommend(user, n=6)
    for item in answer.items:
        if int(str(item.item_id)[3:]) % 2 == 0:
            feed.engage(answer, user, item.item_id, "click")
        feed.engage(answer, user, item.item_id, "view", watch_ms=3_000)
    return answer


def digest(feed: Recommender) -> str:
    return str(feed.system.learner.shards.digest)


def test_the_name_that_users_import() -> None:
    assert recsys.Recommender is Recommender
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = recsys.Other


def test_what_a_call_did_is_learned_when_it_returns_and_a_later_start_continues(app: Path) -> None:
    with opened(app) as feed:
        publish(feed)
        for n in range(12):
            watch(feed, f"u{n % 3}")
        answer, step, before = feed.recommend("u1", n=6), feed.system.learner.worker.step, digest(feed)
        assert answer.stamp.step == step > 0
        assert feed.session("u1")["events"] > 20
        liked = [int(str(item.item_id)[3:]) % 2 == 0 for item in answer.items]
        assert sum(liked) >= 4, "half of them would be chance"
    with opened(app) as feed:
        assert (digest(feed), feed.system.learner.worker.step) == (before, step)
        again = feed.recommend("u1", n=6)
        assert again.stamp.step == step and again.stamp.session_offset > answer.stamp.session_offset
        watch(feed, "u2")
        assert feed.system.learner.worker.step > step
        feed.delete_user("u1")
        assert feed.session("u1")["events"] == 0
        with pytest.raises(ApiError, match="422"):
            feed.recommend("u1", n=-1)


def test_a_folder_that_a_process_uses_is_refused(app: Path) -> None:
    with opened(app), pytest.raises(AlreadyRuns, match="uses"):
        opened(app)
    with pytest.raises(ValueError, match="expected sqlite or the address"):
        in_one_process(Config(log=Config().log.__class__(url="kafka://")))


def test_threads_learn_behind_the_calls(app: Path) -> None:
    with opened(app, at_once=False) as feed:
        publish(feed)
        _until(lambda: len(feed.items("latest", 50)) == 50)
        for n in range(6):
            watch(feed, f"u{n}")
        _until(lambda: feed.status()["version"]["step"] > 0)
        assert feed.health()
    with opened(app) as feed:  # the other way of learning continues
        step = feed.system.learner.worker.step
        watch(feed, "u1")
        assert feed.system.learner.worker.step > step > 0
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"joiner", "learner", "counters", "answers", "house", "log-writer", "followers"}


def _until(holds: Iterator[bool] | object) -> None:
    until_s = time.monotonic() + 30
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < until_s
        time.sleep(0.02)


def _work_until_killed(app: Path, accepted: str) -> None:
    with opened(app) as feed, open(accepted, "ab", buffering=0) as file:
        publish(feed)
        for n in range(10_000):
            watch(feed, f"u{n % 5}")
            file.write(b"x")


@pytest.mark.services
@pytest.mark.pairs(4)
@pytest.mark.parametrize("kills", [3])
def test_a_killed_process_loses_nothing_that_was_accepted(app: Path, tmp_path: Path, kills: int) -> None:
    accepted = tmp_path / "accepted"
    for n in range(kills):
        before = accepted.stat().st_size if accepted.exists() else 0
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_work_until_killed, args=(app, str(accepted)))
        process.start()
        _until(lambda size=before: accepted.exists() and accepted.stat().st_size > size + 1)
        time.sleep(0.013 * n)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    lists = accepted.stat().st_size
    with opened(app) as feed:
        events = sum(feed.session(f"u{n}")["events"] for n in range(5))
        assert events >= lists * 9, "each list has six views and about three clicks"
        learned = digest(feed)
        feed.system.settle()
        assert digest(feed) == learned
