"""A little real run in one process: what its parts left on the log is enough to make its answers again."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from benchmarks.harness.local_system import START_MS, LocalSystem, small_config
from plugins.answer_explanation.answer_check import DIFFERENT, EQUAL, GONE, AnswerCheck, AnswerChecker
from plugins.answer_explanation.command import explanation_lines, explanation_values
from plugins.answer_explanation.reconstructed_session import find_impression
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config
from recsys.events.control_records import Experiments
from recsys.events.event_types import Impression, Item, User, encode
from recsys.events.hashing import partition_of, uniform
from recsys.events.records import DELTAS, EVENTS, ITEM_STATE, ItemState, unpack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log, Record
from recsys.process.open_log import open_log
from runtime.cli.main import app
from runtime.supervision import launch_plan as plans
from runtime.supervision.launch_plan import Plan, RayPorts
from serving.followers.followers import Batch
from serving.request import Request
from training.archive.writer import Archive

PORTS = RayPorts(*range(len(RayPorts.__struct_fields__)))
EXPERIMENT = """
name: more
traffic: 1.0
arms:
  control: {share: 0.3}
  treatment: {share: 0.7, overrides: {explore: 0.5, weights.like: 3.0, per_author: 1}}
"""


def item(n: int, **more: Any) -> Item:
    fields = {"author": f"a{n % 7}", "tags": [f"t{n % 5}", f"s{n % 3}"], "topic": f"t{n % 5}",
              "duration_ms": 8_000 + 500 * (n % 9)}  # fmt: skip
    return Item(time_ms=START_MS, item_id=f"v{n}", fields=fields | more)


def request_of(n: int) -> Request:
    """In turn about a plain one, one with items left out, with candidates, and with filters."""
    user = f"u{n % 6}"
    if n % 5 == 1:
        return Request(user, n=3, context={"surface": "feed"}, exclude_ids=("v1", "v2", "nobody"))
    if n % 5 == 2:
        its = ("v3", "v4", "v5", "v6", "v7", "gone")
        return Request(user, n=4, candidate_ids=its, by_score=user == "u1")
    if n % 5 == 3:
        filters = {"tags": ["t1", "s2"], "duration_ms": {"min": 8_500, "max": 11_000}}
        return Request(user, n=6, filters=filters, by_score=user == "u2")
    return Request(user, n=6, surface="similar")


async def live(system: LocalSystem, requests: int, first: int = 0, turns: bool = True) -> list[str]:
    """Viewers ask and watch; the ids of their requests."""
    asked = []
    for n in range(first, first + requests):
        system.now_ms += 1_000
        answer = await system.ask(request_of(n))
        asked.append(answer.request_id)
        if uniform(0, n) < 0.8:
            await system.watch(answer)
        if turns and n % 3 == 0:
            system.turn()
    return asked


def asked_of(config: Config, items: int) -> list[str]:
    """Requests to a system with that many items, which has ended; their ids."""

    async def answers(system: LocalSystem) -> list[str]:
        system.publish([item(n) for n in range(items)])
        await system.start()
        asked = await live(system, 16)
        await system.stop()
        return asked

    return asyncio.run(answers(LocalSystem(config)))


async def scenario(system: LocalSystem) -> list[str]:
    """Items come, change and go, an experiment begins, another replica answers, a session can't be read."""
    system.publish([item(n) for n in range(60)])
    for n in range(4):
        system.profile(User(time_ms=START_MS, user_id=f"u{n}", fields={"country": f"c{n % 2}"}))
    await system.start()
    asked = await live(system, 25)
    changed = [item(n, author="another", tags=["t1"]) for n in range(0, 30, 3)]
    changed = [msgspec.structs.replace(its, time_ms=system.now_ms) for its in changed]
    gone = Item(time_ms=system.now_ms, item_id="v8", removed=True)
    system.publish([*changed, gone, item(60), item(61)])
    system.experiments(Experiments(revision=1, configs={"more": EXPERIMENT}))
    asked += await live(system, 10, first=25)
    system.counters.oldest.states._records = 10_000  # all counters are told again
    asked += await live(system, 25, first=35)
    await system.restart_replica()
    asked += await live(system, 6, first=60, turns=False)
    system.sessions.blobs["u0"] = b"damaged"
    asked += await live(system, 6, first=66, turns=False)
    await system.stop()
    return asked


@dataclass
class Past:
    """What a run left, and the ids of its requests."""

    config: Config
    log: Log
    asked: list[str]

    def explain(self, asked: list[str] | None = None, config: Config | None = None) -> list[AnswerCheck]:
        its = config or self.config
        explainer = AnswerChecker(self.log, its, feature_set(its))
        return [explainer.explain(request_id) for request_id in asked or self.asked]

    def change(self, request_id: str, **fields: Any) -> None:
        """Makes the logged impression another one."""
        partition, offset, impression = self.impression(request_id)
        changed = msgspec.structs.replace(impression, **fields)
        key = str(changed.user_id).encode()
        self.log.replace(EVENTS, partition, [Record(offset, key, encode(changed))])

    def impression(self, request_id: str) -> tuple[int, int, Impression]:
        found = find_impression(self.log, request_id)
        assert found is not None
        return found

    def forget_holds(self, topic: str, partition: int, before: int) -> None:
        for name in self.log.holds(topic, partition):
            self.log.release(name, topic)
        self.log.trim(topic, partition, before)


def config_of(folder: Path) -> Config:
    """With a policy of its own for one of the surfaces."""
    surfaces = {
        "similar": {"explore": 0.4, "weights.like": 2.0, "sources": {"fresh": 40, "popular": 9, "vector": 9}}
    }
    return replace(small_config(folder), surfaces=surfaces)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, asyncio.run(scenario(LocalSystem(config_of(folder))))


@pytest.fixture
def past(run: tuple[Path, list[str]], tmp_path: Path) -> Iterator[Past]:
    folder = tmp_path / "state"
    shutil.copytree(run[0], folder)
    config = config_of(folder)
    log = open_log(config)
    yield Past(config, log, run[1])
    log.close()


def impression_of(found: AnswerCheck) -> Impression:
    assert found.impression is not None
    return found.impression


def test_every_answer_of_a_run_is_made_again(past: Past) -> None:
    found = past.explain()
    assert [f"{i.why} {i.differences[:2]}" for i in found if i.verdict != EQUAL] == []
    stamps = [its.impression.stamp for its in found if its.impression and its.impression.stamp]
    assert len({stamp.step for stamp in stamps}) > 5
    assert {stamp.arms.get("more") for stamp in stamps} == {None, "control", "treatment"}
    degraded = Counter(stage for its in found for stage in impression_of(its).degraded)
    assert degraded["session"] >= 1 and degraded["model"] >= 1
    sources = {name for its in found for one in impression_of(its).items for name in one.sources}
    assert {"covisit", "vector", "popular"} <= sources
    assert len({impression_of(its).inputs.item_state_from for its in found}) >= 1  # type: ignore[union-attr]


def test_an_answer_from_lists_is_made_again_by_the_centroids_that_were_written_down(tmp_path: Path) -> None:
    config = small_config(tmp_path / "state")
    config = replace(config, serve=replace(config.serve, index="ivf"))
    asked, log = asked_of(config, items=120), open_log(config)
    found = Past(config, log, asked).explain()
    assert [f"{i.why} {i.differences[:2]}" for i in found if i.verdict != EQUAL] == []
    assert impression_of(found[-1]).stamp.index  # type: ignore[union-attr]
    for file in (tmp_path / "state" / "indexes").iterdir():
        file.unlink()
    (last,) = Past(config, log, asked[-1:]).explain()
    assert last.verdict == GONE and "centroids" in last.why
    log.close()


@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_an_answer_of_shards_is_made_again_whatever_they_had_gone_on_to(tmp_path: Path, index: str) -> None:
    """A shard is ahead of the replica in a half of the requests, and one is gone at the end."""
    config = small_config(tmp_path / "state")
    config = replace(config, serve=replace(config.serve, index=index, retrieval_shards=2))

    async def gone(asked: bytes) -> bytes:
        raise ConnectionError("killed")

    async def scenario(system: LocalSystem) -> list[str]:
        system.publish([item(n) for n in range(160)])
        await system.start()
        asked = await live(system, 12)
        for n in range(12, 24):
            followers = system.service.live.followers
            followers.read, read = lambda: Batch(), followers.read  # type: ignore[method-assign]
            system.turn()  # the shards read on, and the replica doesn't
            system.now_ms += 1_000
            changed = msgspec.structs.replace(item(n, author="b"), time_ms=system.now_ms)
            system.publish([item(160 + n), changed])
            system.follow()
            asked += await live(system, 1, first=n, turns=False)
            followers.read = read  # type: ignore[method-assign]
            system.follow()
        assert system.service.shards is not None
        system.service.shards._shards[1] = gone
        asked += await live(system, 6, first=24)
        await system.stop()
        return asked

    asked, log = asyncio.run(scenario(LocalSystem(config))), open_log(config)
    found = Past(config, log, asked).explain()
    assert [f"{i.why} {i.differences[:2]}" for i in found if i.verdict != EQUAL] == []
    stamps = [impression_of(its).stamp for its in found]
    names = Counter(its.index.partition(":")[0] for its in stamps if its)
    assert names == {"2": len(asked)} and len({its.step for its in stamps if its}) > 5
    sources = Counter(name for its in found for one in impression_of(its).items for name in one.sources)
    assert sources["vector"] > 10 and sources["similar"] > 2
    degraded = [impression_of(its).degraded for its in found]
    assert all("retrieval" not in its for its in degraded[:24])
    assert sum("retrieval" in its for its in degraded[24:]) >= 3
    assert stamps[20] and stamps[20].index.count("-") == (0 if index == "flat" else 2)
    log.close()


def test_what_too_little_time_was_left_for_is_left_out_again(tmp_path: Path) -> None:
    config = small_config(tmp_path / "state")
    serve = replace(config.serve, rank_ms=1e9, short_candidates=20, stale_s=0.001)
    config = replace(config, serve=serve)
    asked, log = asked_of(config, items=60), open_log(config)
    found = Past(config, log, asked).explain()
    assert [f"{i.why} {i.differences[:2]}" for i in found if i.verdict != EQUAL] == []
    degraded = Counter(stage for its in found for stage in impression_of(its).degraded)
    assert degraded["rank:short"] >= 8 and degraded["stale"] >= 1
    log.close()


def test_what_is_shown_of_an_answer(past: Past) -> None:
    explainer = AnswerChecker(past.log, past.config, feature_set(past.config))
    found = explainer.explain(past.asked[44], "u2")
    shown = explanation_values(found, explainer.catalogue)
    lines = explanation_lines(shown)
    assert lines[0].endswith("equal to the last bit") and "u2" in lines[1]
    assert shown["candidates"]["ranked"] >= len(shown["items"]) > 0
    assert {"vector", "popular"} <= set(shown["candidates"]["by_source"])
    assert shown["removed"]["gone"] == 1 and shown["removed"]["seen"] > 0
    assert all(its["predictions"] and its["sources"] for its in shown["items"])
    assert msgspec.json.encode(shown)


def test_a_field_that_is_another_is_named(past: Past) -> None:
    request_id = past.asked[40]
    items = past.impression(request_id)[2].items
    score = items[1].score
    assert score is not None
    changed = [items[0], msgspec.structs.replace(items[1], score=score * (1 + 2**-50)), *items[2:]]
    past.change(request_id, items=changed)
    (found,) = past.explain([request_id])
    assert (found.verdict, [its.field for its in found.differences]) == (DIFFERENT, ["items[1].score"])


def test_a_number_of_the_features_that_is_another_is_named(past: Past) -> None:
    request_id = past.asked[41]
    block = past.impression(request_id)[2].features
    assert block is not None
    dense = bytearray(block.dense)
    dense[400] ^= 1
    past.change(request_id, features=msgspec.structs.replace(block, dense=bytes(dense)))
    (found,) = past.explain([request_id])
    assert [its.field for its in found.differences] == ["features.dense[100]"]


def test_a_request_that_nobody_made_is_not_found(past: Past) -> None:
    assert past.explain(["nobody"])[0].verdict == GONE
    explainer = AnswerChecker(past.log, past.config, feature_set(past.config))
    assert "no impression" in explainer.explain("nobody", "u1").why


def test_an_impression_of_before_says_too_little(past: Past) -> None:
    past.change(past.asked[30], inputs=None)
    (found,) = past.explain([past.asked[30]])
    assert found.verdict == GONE and "doesn't hold its request" in found.why


def test_another_configuration_is_told(past: Past) -> None:
    other = replace(past.config, policy=PolicyConfig(temperature=0.2))
    (found,) = past.explain([past.asked[30]], other)
    assert found.verdict == GONE and "no known policy has the digest" in found.why


def test_a_session_of_another_digest_is_refused_and_scores_still_follow(past: Past) -> None:
    asked = past.impression(past.asked[40])[2].inputs
    past.change(past.asked[40], inputs=msgspec.structs.replace(asked, session="another"))
    (found,) = past.explain([past.asked[40]])
    assert found.verdict == GONE and "can't be reconstructed" in found.why
    assert found.scores is not None and found.scores[0] == found.scores[1] > 0


def test_what_retention_dropped_of_a_session_is_in_the_archive(past: Past) -> None:
    request_id = past.asked[44]
    impression = past.impression(request_id)[2]
    partition = partition_of(impression.user_id, past.config.log.partitions)
    assert impression.stamp is not None
    archive = Archive(past.log, Path(past.config.state) / "archive", lambda: START_MS)
    while archive.turn():
        pass
    archive.flush()
    past.forget_holds(EVENTS, partition, past.log.end(EVENTS, partition) - 1)
    assert past.explain([request_id])[0].verdict == EQUAL  # and so is the impression itself
    shutil.rmtree(Path(past.config.state) / "archive")
    assert "no impression" in past.explain([request_id])[0].why


def test_without_deltas_snapshots_serve_their_own_steps_alone(past: Past) -> None:
    past.forget_holds(DELTAS, 0, past.log.end(DELTAS, 0))
    found = past.explain()
    for its in found:
        stamp = impression_of(its).stamp
        assert stamp is not None
        assert (its.verdict == EQUAL) == (stamp.step % 5 == 0), its.why
    gone = [its for its in found if its.verdict == GONE]
    assert gone and all("are gone" in its.why and "deltas holds" in its.why for its in gone)


def test_counters_are_whole_again_once_all_were_told_again(past: Past) -> None:
    told = [unpack(r.value, ItemState) for r in past.log.read(ITEM_STATE, 0, 0)]
    again = next(n for n, state in enumerate(told) if state.parts and n)
    past.forget_holds(ITEM_STATE, 0, again)
    verdicts = [its.verdict for its in past.explain()]
    first = verdicts.index(EQUAL, verdicts.index(GONE))
    assert set(verdicts[first:]) == {EQUAL} and first < len(verdicts) - 15


def test_counters_that_were_trimmed_and_not_told_again_are_gone(past: Past) -> None:
    past.forget_holds(ITEM_STATE, 0, past.log.end(ITEM_STATE, 0) - 1)
    (found,) = past.explain([past.asked[-1]])
    assert found.verdict == GONE and "counters" in found.why
    assert found.scores is not None and found.scores[0] == found.scores[1] > 0


@pytest.mark.parametrize(("request_id", "status"), [("", 0), ("nobody", 2)])
def test_the_command(past: Past, request_id: str, status: int) -> None:
    plans.write(past.config, Plan(ray=PORTS))
    command = ["explain", request_id or past.asked[44], "--state", past.config.state]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == status, done.output
    said = CliRunner().invoke(app, [*command, "--user", "u2", "--json", "-"])
    assert said.exit_code == status
    assert msgspec.json.decode(said.output)["verdict"] == (EQUAL if status == 0 else GONE)
