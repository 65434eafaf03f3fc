"""The definitions that ship: they read, and mean what the code beside them means."""

from dataclasses import replace
from pathlib import Path

import pytest

from plugins.kuairand.events import FLAGS, LABELS, WINDOW_S
from recsys.app.app_file import read_app
from recsys.config.policy_config import WATCH, PolicyConfig
from recsys.config.system_config import Config
from recsys.events.event_types import ENGAGEMENT_KINDS
from recsys.features.feature_set_file import FEED_SCHEMA
from tests.support.paths import ROOT

FILES = sorted([*ROOT.glob("examples/*/app.yaml"), *ROOT.glob("plugins/*/app.yaml")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_each_definition_reads_and_has_columns(file: Path) -> None:
    app = read_app(file)
    features = app.feature_set()
    names = features.dense_names
    assert app.name == file.parent.name and len(set(names)) == len(names) > 20
    assert len([name for name in names if name.startswith("list.rank")]) == len(features.ranked)


def test_there_are_four_definitions() -> None:
    assert [file.parent.name for file in FILES] == ["news", "shop", "short_video", "kuairand"]


def test_short_video_is_the_feed() -> None:
    app = read_app(ROOT / "examples/short_video/app.yaml")
    assert replace(app.schema, kinds=()) == FEED_SCHEMA
    assert sorted(app.schema.kinds) == sorted(ENGAGEMENT_KINDS)
    config = app.config(Config())
    assert config.policy.weights | {WATCH: 0} == PolicyConfig().weights | {WATCH: 0}
    assert config.join == Config().join and config.sessions == Config().sessions


def test_kuairand_has_the_labels_of_its_reader() -> None:
    app = read_app(ROOT / "plugins/kuairand/app.yaml")
    assert app.labels == LABELS and app.window_s == WINDOW_S and app.shown == "list"
    assert set(app.schema.kinds) == {kind for kind, _ in FLAGS} | {"view"}
