"""`recsys app apply`: its records in order, what it refuses, and that it may be given again."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.promotion.kinds.features import FEATURES, progress
from recsys.app.app_file import APP_FILE, app_of
from recsys.app.kept_definition import keep_definition
from recsys.config.part_configs import WorkersConfig
from recsys.config.system_config import Config, digest
from recsys.events.control_records import (
    ALONE,
    ANSWERS,
    FOLDED,
    Candidate,
    Decision,
    Definition,
    Live,
    ModelSize,
)
from recsys.events.event_types import Tick, encode
from recsys.events.records import EVENTS
from recsys.features.feature_set import read_set, set_text
from recsys.features.feature_set_file import write_feature_set
from recsys.log.protocol import Append, MemoryLog
from recsys.model.wider_set import covers
from recsys.process.open_log import create_topics
from recsys.process.part_process import Heartbeat, run_folder
from runtime.jobs.app_change import AppChange, Parts
from runtime.jobs.director_requests import propose
from tests.support.power_cut import power_cut
from tests.support.training.registry_cases import provenance, shard
from training.candidates.registry import Refused, Registry, plain_config
from training.lines.control import ControlReader, append_control

TEXT = """app: shop
fields: {item: {brand: category, price: number}}
features: {half_lives: [1h, 24h], rates: [all, item, brand]}
"""
WIDER = TEXT.replace("[1h, 24h]", "[1h, 6h, 24h]")
NARROWER = TEXT.replace(", brand]}", "]}")
SET, WIDE, NARROW = (app_of(text).feature_set() for text in (TEXT, WIDER, NARROWER))


class Watched(Parts):
    """Parts that note which records there were when they were waited for."""

    def __init__(self, log: MemoryLog, fails: str = "") -> None:
        self._log, self._fails = log, fails
        self.seen: list[tuple[str, list[str]]] = []

    def await_folds(self, sets: int) -> None:
        self._note(f"folds {sets}")

    def restart(self) -> None:
        self._note("restart")

    def _note(self, what: str) -> None:
        self.seen.append((what, stages(self._log)))
        if self._fails and what.startswith(self._fails):
            raise TimeoutError(what)


class Shop:
    """A system of a shop, without processes."""

    def __init__(self, folder: Path) -> None:
        self.config, self.log = replace(Config(), state=str(folder)), MemoryLog()
        create_topics(self.log, self.config)
        write_feature_set(self.config, SET)
        self.stored = folder / APP_FILE
        self.stored.write_text(TEXT, "utf-8")
        self.file = folder / "changed.yaml"

    def apply(self, text: str, fails: str = "") -> tuple[str, Watched]:
        self.file.write_text(text, "utf-8")
        parts = Watched(self.log, fails)
        return AppChange(self.log, self.config, self.file, parts, lambda line: None).run(), parts

    def records(self) -> list[object]:
        return ControlReader(self.log).turn()

    def live(self, name: str, epoch: int) -> None:
        candidate = next(r for r in self.records() if isinstance(r, Candidate) and r.line == name)
        before = [r for r in self.records() if isinstance(r, Live)]
        append_control(
            self.log,
            Live(
                line="main", epoch=epoch, parent_epoch=before[-1].epoch if before else 0, candidate=name,
                size=candidate.size,
            ),
        )  # fmt: skip

    def status(self) -> str:
        control = ControlReader(self.log)
        control.turn()
        return progress(control.lifecycle.definition, control.lifecycle.candidates.values())


def stages(log: MemoryLog) -> list[str]:
    return [r.stage for r in ControlReader(log).turn() if isinstance(r, Definition)]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_a_power_cut_leaves_the_new_definition(shop: Shop) -> None:
    with power_cut(shop.stored.parent):
        shop.apply(WIDER)
    assert shop.stored.read_text("utf-8") == WIDER


def test_a_new_feature_is_folded_then_logged_then_learned(shop: Shop) -> None:
    name, parts = shop.apply(WIDER)
    assert parts.seen == [("folds 2", [FOLDED]), ("restart", [FOLDED, ANSWERS])]
    *definitions, candidate = shop.records()
    assert stages(shop.log) == [FOLDED, ANSWERS, ALONE]
    for definition in definitions:
        assert isinstance(definition, Definition) and read_set(definition.reads) == WIDE
        assert read_set(definition.before) == SET and covers(read_set(definition.logged), SET)
    assert isinstance(candidate, Candidate) and candidate.line == name
    model = shop.config.model
    assert (candidate.kind, candidate.registry) == (FEATURES, "")
    assert candidate.size == ModelSize(model.dim, model.hidden, set_text(WIDE))
    assert shop.stored.read_text("utf-8") == WIDER
    keep_definition(shop.config, app_of(WIDER), shop.file)  # by `recsys up --app`
    shop.file.write_text(NARROWER, "utf-8")
    with pytest.raises(ValueError, match="use another state folder"):
        keep_definition(shop.config, app_of(NARROWER), shop.file)


def test_a_start_keeps_the_features_that_were_taken_up(shop: Shop) -> None:
    shop.apply(WIDER)
    weighted = WIDER + "events: {click: {label: positive, weight: 5}}\n"
    shop.file.write_text(weighted, "utf-8")
    keep_definition(shop.config, app_of(weighted), shop.file)
    assert shop.stored.read_text("utf-8") == weighted
    shop.file.write_text(TEXT, "utf-8")
    with pytest.raises(ValueError, match=f"other features than .*recsys app apply {shop.file}"):
        keep_definition(shop.config, app_of(TEXT), shop.file)
    assert shop.stored.read_text("utf-8") == weighted


def test_a_plug_in_that_is_live_keeps_its_features(shop: Shop) -> None:
    size = ModelSize(16, (128, 64), ranker="sequence@1")
    append_control(shop.log, Live(line="main", epoch=1, size=size))
    records = shop.records()
    with pytest.raises(ValueError, match="model.ranker is 'sequence@1', .* the built-in ranker first"):
        shop.apply(WIDER)
    assert shop.records() == records and shop.stored.read_text("utf-8") == TEXT


def test_a_removed_feature_needs_no_new_state(shop: Shop) -> None:
    name, parts = shop.apply(NARROWER)
    assert parts.seen == [] and stages(shop.log) == [ALONE]
    assert read_set(shop.records()[0].logged) == SET  # type: ignore[attr-defined]
    assert shop.status() == f"definition {app_of(NARROWER).digest[:8]}: logged, {name} is shadow"


def test_columns_that_nothing_reads_go_with_the_next_change(shop: Shop) -> None:
    name, _ = shop.apply(NARROWER)
    shop.live(name, 1)
    append_control(shop.log, Decision(line=name, verdict="hold", final=True))
    # A rollback would bring back the model that reads all.
    shop.apply(NARROWER.replace("[1h, 24h]", "[1h, 6h, 24h]"))
    wide = read_set(shop.records()[-2].logged)  # type: ignore[attr-defined]
    assert covers(wide, SET)
    shop.live(shop.records()[-1].line, 2)  # type: ignore[attr-defined]
    shop.apply(NARROWER.replace("[1h, 24h]", "[1h, 6h, 7d]"))
    assert not covers(read_set(shop.records()[-2].logged), SET)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("fails", "again"), [("folds", ["folds 2", "restart"]), ("restart", ["restart"])])
def test_an_interrupted_change_goes_on(shop: Shop, fails: str, again: list[str]) -> None:
    with pytest.raises(TimeoutError):
        shop.apply(WIDER, fails)
    assert shop.stored.read_text("utf-8") == TEXT
    name, parts = shop.apply(WIDER)
    assert [what for what, _ in parts.seen] == again and name
    assert stages(shop.log)[-1] == ALONE


def test_the_old_definition_ends_a_change(shop: Shop) -> None:
    with pytest.raises(TimeoutError):
        shop.apply(WIDER, "folds")
    assert "computed from the log" in shop.status()
    name, _parts = shop.apply(TEXT)
    assert name == "" and stages(shop.log)[-1] == ALONE
    assert read_set(shop.records()[-1].logged) == SET  # type: ignore[attr-defined]


def test_the_same_definition_again_proposes_no_second_candidate(shop: Shop) -> None:
    name, _ = shop.apply(WIDER)
    assert shop.apply(WIDER)[0] == name
    append_control(shop.log, Decision(line=name, verdict="hold", final=True, why="worse"))
    assert shop.status().endswith(f"{name} is ended (worse)")
    again, _ = shop.apply(WIDER)
    assert again not in ("", name)
    shop.live(again, 1)
    assert shop.apply(WIDER)[0] == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("price: number", "price: category"), r"changed.yaml:2: fields.item.price"),
        (TEXT.replace("[1h, 24h]", "[2h, 3h, 4h, 5h, 6h]"), r"changed.yaml:3: .*at most 6"),
        (TEXT.replace("item, brand", "item, hue"), r"changed.yaml:3: .*'hue'"),
    ],
)
def test_a_refused_definition_leaves_the_system_untouched(shop: Shop, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shop.apply(text)
    assert shop.records() == [] and shop.stored.read_text("utf-8") == TEXT


def test_without_the_first_events_nothing_new_can_be_counted(shop: Shop) -> None:
    shop.log.append(EVENTS, [Append(0, b"", encode(Tick(time_ms=n))) for n in range(9)])
    shop.log.trim(EVENTS, 0, 5)
    with pytest.raises(ValueError, match=r"partitions \[0\] are no longer all on the log"):
        shop.apply(WIDER)
    assert shop.records() == [] and shop.apply(NARROWER)[0]


def test_a_system_without_a_definition_has_fixed_features(shop: Shop) -> None:
    shop.stored.unlink()
    with pytest.raises(ValueError, match="started without a definition.*recsys up --app"):
        shop.apply(WIDER)


def test_folds_are_awaited_by_their_heartbeats(tmp_path: Path) -> None:
    parts = Parts(tmp_path, 0.5)
    with pytest.raises(TimeoutError, match="give the command again to continue"):
        parts.await_folds(2)
    for part, behind in (("session-fold", 0), ("counters", 499)):
        beat = Heartbeat(part, run_folder(tmp_path) / f"{part}.json")
        beat.gauge("sets", 2)
        beat.gauge("sets_behind", behind)
        beat.write()
    parts.await_folds(2)
    with pytest.raises(TimeoutError):
        parts.await_folds(3)


def test_each_worker_of_a_fold_is_awaited(tmp_path: Path) -> None:
    parts = Parts(tmp_path, 0.3, WorkersConfig(session_fold=2))

    def fold(name: str) -> None:
        beat = Heartbeat(name, run_folder(tmp_path) / f"{name}.json")
        beat.gauge("sets", 2)
        beat.gauge("sets_behind", 0)
        beat.write()

    fold("counters")
    fold("session-fold.0")
    with pytest.raises(TimeoutError):
        parts.await_folds(2)
    fold("session-fold.1")
    parts.await_folds(2)


def test_a_candidate_whose_features_are_no_longer_logged_is_refused(shop: Shop) -> None:
    model, registry = shop.config.model, Registry(shop.stored.parent / "registry")
    made = shard()
    learned = provenance(
        "offline-1", feature_set=SET.digest, model=digest(model), config=plain_config(model),
        log_id=shop.log.id,
    )  # fmt: skip
    registry.add(learned, *made.export(), made.applied)
    propose(shop.config, shop.log, "offline-1", registry.folder)
    logged = set_text(app_of(NARROWER).feature_set())
    definition = Definition(digest="d", reads=logged, logged=logged, before=logged, stage=ALONE)
    append_control(shop.log, definition)
    with pytest.raises(Refused, match="without some of its columns: it can't answer"):
        propose(shop.config, shop.log, "offline-1", registry.folder)
