"""Rows of tables that a rehearsal plays, to a replay in the place of a running system, and their
judgement."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.app.app_file import read_app
from recsys.app.data_files import read_data_files
from recsys.config.system_config import laptop
from recsys.events.event_types import Engagement, Item, User
from replay.datasets.mapped_files import MappedFiles
from replay.direct_loop import DirectLoop
from replay.player import Player
from replay.rehearsal.played_system import PlayedSystem
from replay.rehearsal.rehearsed_rows import AskedRows, RehearsalOptions, judged, play, rows_of
from replay.replay_run import ReplayOptions, on_event_clock
from runtime.jobs.rehearsal import config_of, first_row_ms
from runtime.reports.rehearsal_page import page_of

START_S = 1_700_000_000
CLICKS = """
events: {click: positive, buy: {label: positive, weight: 5}}
fields: {item: {genre: category}}
shown: clicks
repeats: true
window: 5s
features: {rates: [all, item, user×genre], near: true}
files:
  interactions: {files: [log.csv], user: u, item: i, time: t, unit: s, kind: k}
  items: {files: [items.csv], id: i, time: at, unit: s, fields: {genre: genre}}
"""
SLATES = """
events: {click: positive}
fields: {item: {genre: category}}
shown: list
repeats: true
window: 5s
features: {rates: [all, item, user×genre]}
files:
  interactions:
    {files: [slates.csv], user: u, item: i, time: t, unit: s, request: r, labels: {clicked: click}}
  items: {files: [items.csv], id: i, time: at, unit: s, fields: {genre: genre}}
"""


@pytest.fixture(params=[CLICKS, SLATES], ids=["clicks", "slates"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> MappedFiles:
    """Each user clicks one genre; an item of each genre comes late."""
    (tmp_path / "app.yaml").write_text(request.param)
    rows, slates = ["u,i,k,t"], ["u,i,t,r,clicked"]
    for n in range(400):
        at_s, genre = START_S + 60 * n, n % 4
        item = genre + 4 * (n // 4 * 7 % 6)
        rows += [f"u{genre},{item},click,{at_s}"] + [f"u{genre},{item},buy,{at_s}"] * (n % 9 == 0)
        slates += [f"u{genre},{i},{at_s},r{n},{int(i == item)}" for i in {item, (item + 1) % 24}]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    (tmp_path / "slates.csv").write_text("\n".join(slates))
    late = START_S + 60 * 350
    items = "".join(f"{i},g{i % 4},{late if i >= 20 else 0}\n" for i in range(24))
    (tmp_path / "items.csv").write_text("i,genre,at\n" + items)
    app, tables = read_app(tmp_path / "app.yaml"), read_data_files(tmp_path / "app.yaml")
    return MappedFiles(app, tables, [tmp_path / name for name in tables.names])


FROM_MS = 1000 * (START_S + 60 * 200)


def test_rows_are_those_from_a_time_on_with_the_items_that_are_new_then(dataset: MappedFiles) -> None:
    events = list(rows_of(dataset, RehearsalOptions(FROM_MS, 170)))
    assert all(event.time_ms >= FROM_MS for event in events)
    items = [event.item_id for event in events if isinstance(event, Item)]
    assert sorted(items) == ["20", "21", "22", "23"] and not any(isinstance(e, User) for e in events)
    clicks = [e for e in events if isinstance(e, Engagement) and e.kind == "click"]
    assert len(clicks) == 170


def test_what_ends_before_a_time_is_as_if_the_tables_had_no_more(dataset: MappedFiles) -> None:
    whole = dataset.times_ms
    dataset.ends_ms = FROM_MS
    assert len(dataset.times_ms) < len(whole) and dataset.times_ms[-1] < FROM_MS
    assert all(event.time_ms < FROM_MS for event in dataset.events())


def test_a_replay_plays_the_rows_and_is_judged_beside_simple_lists(dataset: MappedFiles) -> None:
    config = on_event_clock(dataset, ReplayOptions(), dataset.app.config(laptop()))
    config = replace(config, model=replace(config.model, dim=4, vector_dim=8, hidden=(16,)))
    loop = DirectLoop(dataset.app.feature_set(), config)
    player = Player(dataset.app.feature_set(), config, loop)
    options = RehearsalOptions(FROM_MS, 150)
    for event in dataset.events(0, FROM_MS):
        for each in player.as_lists(event):
            player.play(each)
    asked = AskedRows()
    counts = play(PlayedSystem(player, 10), rows_of(dataset, options), "click", asked)
    assert counts["rows"] >= 150 and counts["lists"] in (150, 151)
    joined = sum(joiner.counts["examples"] for joiner in loop.joiners)
    assert joined > 500
    report = judged(dataset.app, dataset.events(0, FROM_MS), asked, asked)
    (measured,) = (each for each in report["questions"].values() if each["cases"] >= 50)
    assert measured["ours"]["hit@10"] > 0.8  # a user's genre has six items
    assert "transitions" in measured["lists"]
    (again,) = (e for e in report["replay"]["questions"].values() if e["cases"] >= 50)
    assert again["ours"] == measured["ours"] and not again["lists"]
    page = page_of("a <b>", report | went())
    assert "a &lt;b&gt;, rehearsed" in page and "transitions" in page and "<polyline" in page


def went() -> dict[str, Any]:
    return {"live": {"rows": 150, "rows in a list": 99}, "speed": {"most": 9.0, "reached": 5.0}}


def test_the_first_row_leaves_rows_on_both_sides(dataset: MappedFiles) -> None:
    times = dataset.times_ms
    labelled = [e for e in dataset.events() if isinstance(e, Engagement) and e.kind == "click"]
    first_ms = first_row_ms(dataset, 20, None)
    assert 18 <= sum(event.time_ms >= first_ms for event in labelled) <= 22
    assert first_row_ms(dataset, 10_000, None) == int(times[-(len(times) // 5)])
    assert first_row_ms(dataset, 10, str(FROM_MS)) == FROM_MS
    for wrong in (str(int(times[0])), str(int(times[-1]) + 1), "1999-01-01"):
        with pytest.raises(ValueError, match="--from is .*expected a time after the first row"):
            first_row_ms(dataset, 10, wrong)


def test_the_system_begins_at_the_first_row() -> None:
    config = config_of(laptop(), FROM_MS)
    assert (config.clock.start_ms, config.clock.speed) == (FROM_MS, 1.0)
    assert config.step.snapshot_s == 0 and config.serve.port != laptop().serve.port
