"""Replays by an app's definition: slates, and clicks without lists."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.app.app_file import app_of
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event, Impression, Item
from replay.datasets.dataset import DataError
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.player import Player
from replay.replay_run import ReplayOptions, ReplayResult, replay_data

NEWS = """
app: news
events: {open: positive, read: {label: positive, weight: 2}, report: {label: negative}}
fields:
  item: {section: category}
  user: {region: category}
groups: [section]
shown: list
window: 30s
history: {of: [open], length: 5}
features: {half_lives: [1h], rates: [all, item, user×section], age: true, list: [item]}
"""
SHOP = """
events: {buy: positive}
shown: clicks
window: 30s
features: {rates: [all, item]}
sources: {popular: 5, fresh: 20}
"""
START_MS = 1_700_000_000_000


def folder_of(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.mkdir()
    (path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def items(n: int) -> list[dict[str, Any]]:
    fields = [{"section": f"s{i % 3}"} for i in range(n)]
    return [
        {"type": "item", "time_ms": START_MS - i * 1000, "item_id": f"v{i}", "fields": fields[i]}
        for i in reversed(range(n))
    ]


def slates() -> list[dict[str, Any]]:
    """Lists of four, of which everybody opens the first section's."""
    lines = items(12)
    for n in range(60):
        time_ms, shown = START_MS + n * 10_000, [f"v{(n + i) % 12}" for i in range(4)]
        about = {"request_id": f"r{n}", "user_id": f"u{n % 3}"}
        served = [{"item_id": item} for item in shown]
        lines.append({"type": "impression", "time_ms": time_ms, "items": served} | about)
        for item in shown:
            if int(item[1:]) % 3 == 0:
                opened = {"type": "engagement", "time_ms": time_ms + 900, "item_id": item}
                lines.append(opened | about | {"kind": "open"})
    return lines


def clicks() -> list[dict[str, Any]]:
    return items(30) + [
        {
            "type": "engagement", "time_ms": START_MS + n * 5_000, "request_id": f"s{n % 4}",
            "user_id": f"u{n % 4}", "item_id": f"v{n * n % 30}", "kind": "buy",
        }
        for n in range(80)
    ]  # fmt: skip


def run(folder: Path, text: str) -> ReplayResult:
    dataset = open_dataset(folder, app_of(text))
    return replay_data(dataset, ReplayOptions(step_examples=16, step_every_s=20.0))


def test_a_log_is_replayed_by_its_definition_without_a_dataset_file(tmp_path: Path) -> None:
    replayed = run(folder_of(tmp_path / "news", slates()), NEWS)
    predictions = replayed.predictions
    assert list(predictions.scores) == ["open", "read", "report"]
    assert len(predictions.item_id) == 4 * 60 and replayed.steps > 5
    opened = np.array([int(str(item)[1:]) % 3 == 0 for item in predictions.item_id])
    assert (np.asarray(predictions.labels["open"]) == opened).all()
    scores, late = np.asarray(predictions.scores["open"]), np.arange(240) > 120
    assert scores[late & opened].mean() > scores[late & ~opened].mean() + 0.2


def test_engagements_without_a_request_label_the_newest_list_with_their_item(tmp_path: Path) -> None:
    lines = [dict(line, request_id="") if line["type"] == "engagement" else line for line in slates()]
    named, unnamed = (
        run(folder_of(tmp_path / name, log), NEWS).predictions
        for name, log in (("named", slates()), ("unnamed", lines))
    )
    assert list(unnamed.labels["open"]) == list(named.labels["open"])


def test_kinds_that_are_not_declared_are_counted_and_left_out(tmp_path: Path) -> None:
    lines = slates()
    lines.append(dict(lines[-1], kind="stare", time_ms=START_MS + 10**7))
    dataset = open_dataset(folder_of(tmp_path / "news", lines), app_of(NEWS))
    assert not [e for e in dataset.events() if isinstance(e, Engagement) and e.kind == "stare"]
    assert dataset.dead_letters == {"unknown engagement kind 'stare'": 1}


def test_views_are_read_without_a_declaration(tmp_path: Path) -> None:
    view = dict(slates()[-1], kind="view")
    folder = folder_of(tmp_path / "viewed", [*slates(), view])
    dataset = open_dataset(folder, app_of(NEWS.replace("shown: list", "shown: view")))
    assert [e for e in dataset.events() if isinstance(e, Engagement) and e.kind == "view"]
    assert not dataset.dead_letters


def test_a_log_without_a_definition_needs_a_dataset_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.yaml"):
        open_dataset(folder_of(tmp_path / "news", slates()))


def test_a_purchase_belongs_to_the_list_of_its_click(tmp_path: Path) -> None:
    lines = clicks()
    bought = [dict(line, kind="buy2", time_ms=line["time_ms"] + 1) for line in lines[-20::2]]
    bought.append(dict(lines[-1], kind="buy2", item_id="v3", time_ms=START_MS + 10**6))
    lines = sorted(lines + bought, key=lambda line: int(line["time_ms"]))
    text = SHOP.replace("{buy: positive}", "{buy: positive, buy2: positive}")
    predictions = run(folder_of(tmp_path / "shop", lines), text).predictions
    both = np.asarray(predictions.labels["buy"]) & np.asarray(predictions.labels["buy2"])
    assert both.sum() == 10 and np.asarray(predictions.labels["buy2"]).sum() == 11
    requests = np.unique(np.asarray(predictions.request_id))
    assert len(requests) == 81  # only the purchase without a click has one of its own


def test_candidates_beside_a_click_are_drawn_from_all_sources_alike(tmp_path: Path) -> None:
    """Also where a source draws at random by the same request."""
    lines = items(400)
    for n in range(200):
        item = n % 12 if n < 100 else 20 + n
        about = {"request_id": f"s{n}", "user_id": f"u{n % 5}", "item_id": f"v{item}"}
        time_ms = START_MS + n * 5_000
        lines.append({"type": "engagement", "time_ms": time_ms, "kind": "buy"} | about)
    text = SHOP.replace("popular: 5, fresh: 20", "popular: 12, fresh: 12") + "repeats: true\n"
    predictions = run(folder_of(tmp_path / "shop", lines), text).predictions
    late = np.asarray(predictions.time_ms) >= START_MS + 100 * 5_000
    others = late & ~np.asarray(predictions.labels["buy"], np.bool_)
    popular = [int(str(item)[1:]) < 20 for item in np.asarray(predictions.item_id, object)[others]]
    assert 0.3 < np.mean(popular) < 0.55  # one of six is of the whole catalogue


def test_a_click_is_learned_as_the_choice_from_candidates(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shop", clicks())
    replayed, again = run(folder, SHOP), run(folder, SHOP)
    predictions = replayed.predictions
    assert replayed.digest == again.digest and replayed.steps > 5
    bought = np.asarray(predictions.labels["buy"])
    requests, at = np.unique(predictions.request_id, return_inverse=True)
    assert len(requests) == 80 and (np.bincount(at, bought) == 1).all()
    sizes = np.bincount(at)
    assert sizes.max() == 7 and (sizes[-20:] > 1).all()
    for request in range(len(requests)):
        listed = [str(item) for item in np.asarray(predictions.item_id, object)[at == request]]
        assert len(set(listed)) == len(listed)
    scores = np.asarray(predictions.scores["buy"])
    assert scores[-60:].mean() < 0.9  # there are negatives


def test_items_of_a_basket_are_not_each_others_past() -> None:
    """The features of all lists of a moment are of before it; those of the next moment know it."""
    app = app_of(SHOP.replace("[all, item]", "[all, item, user]"))
    config = app.config(Config())
    features = app.feature_set(config.model.features)
    loop, lists = DirectLoop(features, config), list[Impression]()
    player, append = Player(features, config, loop), loop.append

    def noted(event: Event) -> None:
        lists.extend([event] if isinstance(event, Impression) else [])
        append(event)

    loop.append = noted  # type: ignore[method-assign]
    for n in range(9):
        player.play(Item(time_ms=START_MS, item_id=f"v{n}"))
    for after_ms, item in ((1_000, 1), (1_000, 2), (1_000, 3), (60_000, 4)):
        bought = Engagement(
            time_ms=START_MS + after_ms, request_id="", user_id="ann", item_id=f"v{item}", kind="buy"
        )
        for played in player.as_lists(bought):
            player.play(played)
    histories = [shown.features.history for shown in lists if shown.features is not None]
    counts = [np.frombuffer(h, np.int64).reshape(features.history_length, -1) for h in histories]
    assert [int((own[:, 0] != 0).sum()) for own in counts] == [0, 0, 0, 3]
    assert all(shown.choice for shown in lists)
