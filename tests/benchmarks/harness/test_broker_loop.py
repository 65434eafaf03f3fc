"""The real parts in lockstep give the same bits as one process."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.harness.broker_loop import replay_through_broker
from recsys.app.app_file import app_of
from replay.datasets.open_dataset import open_dataset
from replay.replay_run import ReplayOptions, replay_data
from tests.support.small_log import write_log

pytestmark = pytest.mark.pairs(4)

OPTIONS = ReplayOptions(warm_up=False, step_examples=12, step_every_s=60.0, through_broker="sqlite")
START_MS = 1_700_000_000_000
SHOP = """
events: {click: positive, buy: positive}
fields: {user: {country: category}}
shown: clicks
window: 30s
features: {rates: [all, item, user×item], age: true}
"""


def equal(dataset, options):
    """Both replays, after their steps and predictions were compared."""
    one = replay_data(dataset, options)
    real = replay_through_broker(dataset, options)
    assert one.steps == real.steps > 1
    assert one.digest == real.digest
    assert one.predictions.request_id == real.predictions.request_id
    assert one.predictions.version == real.predictions.version
    for label, scores in one.predictions.scores.items():
        assert np.array_equal(scores, real.predictions.scores[label]), label


def with_users(folder):
    """Adds profiles and removals between the lists of a log, and profiles alone before a last list."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    lists = [line for line in lines if line["type"] == "impression"]
    end_ms = lines[-1]["time_ms"]
    for n, line in enumerate(lists[3::4]):
        about = {"type": "user", "user_id": f"u{n * 7 % 40}", "time_ms": line["time_ms"] + 9_000}
        lines.append(about | ({"removed": True} if n % 5 == 4 else {"fields": {"country": f"c{n}"}}))
    for n in range(40):  # windows close at both times, and a step is due at the second
        after_ms = 200_000 if n < 2 else 270_000
        lines.append({"type": "user", "user_id": f"u{n}", "time_ms": end_ms + after_ms})
    lines.append(lists[-1] | {"request_id": "last", "time_ms": end_ms + 400_000})
    lines.sort(key=lambda line: line["time_ms"])
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    settings = folder / "dataset.yaml"  # a window that closes gives examples
    settings.write_text(settings.read_text().replace("all_shown: false", "all_shown: true"))
    return folder


@pytest.mark.services
@pytest.mark.parametrize(("log", "requests"), [("sqlite", 150), ("kafka", 12)])
def test_real_parts_predict_and_learn_the_same_bits(tmp_path, log, requests):
    dataset = open_dataset(write_log(tmp_path / "data", requests=requests))
    options = replace(OPTIONS, through_broker=log)
    equal(dataset, options)


@pytest.mark.services
def test_users_who_change_or_go_in_the_middle_of_a_log_are_the_same_to_the_real_parts(tmp_path):
    dataset = open_dataset(with_users(write_log(tmp_path / "data", requests=80)))
    equal(dataset, replace(OPTIONS, step_examples=64))  # steps of the clock, not of a count


@pytest.mark.services
def test_clicks_choose_from_the_same_lists_as_in_one_process(tmp_path):
    """Also those on items that were never published, whose age is unknown."""
    lines = [
        {"type": "item", "time_ms": START_MS - n * 1_000, "item_id": f"v{n}"} for n in reversed(range(30))
    ]
    for n in range(90):
        about = {"user_id": f"u{n % 7}", "item_id": f"v{n * n % 34}", "time_ms": START_MS + n * 5_000}
        lines.append(about | {"type": "engagement", "kind": "buy" if n % 6 == 5 else "click"})
        if n % 10 == 9:
            lines.append({"type": "item", "time_ms": about["time_ms"] + 1, "item_id": f"new{n}"})
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    equal(open_dataset(tmp_path, app_of(SHOP)), OPTIONS)


def test_what_only_one_process_can_do_is_refused(tmp_path):
    dataset = open_dataset(write_log(tmp_path / "data", requests=2))
    options = ReplayOptions(warm_up=False, through_broker="sqlite")
    for alone in ({"frozen_after_ms": 1}, {"sync_every_ms": 1000}, {"warm_up": True}):
        with pytest.raises(ValueError, match="without --through-broker"):
            replay_through_broker(dataset, replace(options, **alone))
    with pytest.raises(ValueError, match="expected sqlite, kafka"):
        replay_through_broker(dataset, replace(options, through_broker="mysql"))
