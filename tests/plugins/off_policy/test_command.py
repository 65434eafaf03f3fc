"""A little real run: lists are weighed by exact chances; interleaved ones are credited, and made again."""

import json
import random
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.assignment.definition import INTERLEAVED, read_experiment
from plugins.answer_explanation.answer_check import EQUAL, AnswerChecker
from plugins.answer_explanation.reconstructed_session import find_impression
from plugins.off_policy import logged_lists
from plugins.off_policy.command import estimate_policy
from plugins.off_policy.estimates import estimates
from plugins.off_policy.logged_lists import BY_SCORE, EARLY, GONE, OTHER_CANDIDATES, SAMPLED, read_lists
from plugins.off_policy.logged_lists import TEAM_DRAFT as DRAFTED
from plugins.off_policy.target_policy import read_target
from recsys.config.system_config import Config
from recsys.events.event_types import Impression, decode, encode
from recsys.events.records import EVENTS, EXAMPLES, Example, unpack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log, Record
from recsys.process.open_log import open_log
from runtime.cli.main import app
from tests.support.serving import policy_cases as toy
from training.outcomes.credit_fold import interleaving_readout, read_credits


@dataclass
class Run:
    folder: Path
    config: Config
    log: Log
    asked: list[str]

    def impressions(self) -> dict[tuple[int, int], Impression]:
        found = {}
        for partition in range(self.log.partitions(EVENTS)):
            for record in self.log.read(EVENTS, partition, 0, 100_000):
                event = decode(record.value)
                if isinstance(event, Impression):
                    found[partition, record.offset] = event
        return found

    def examples(self) -> list[Example]:
        return [
            unpack(record.value, Example)
            for partition in range(self.log.partitions(EXAMPLES))
            for record in self.log.read(EXAMPLES, partition, 0, 100_000)
        ]

    def lists(self, text: str, most: int = 5_000) -> Any:
        features = feature_set(self.config)
        target = read_target(text, "p", self.config.policy, features.schema.labels)
        return read_lists(self.log, self.config, features, target, most)

    def command(self, text: str, *more: str) -> Any:
        file = self.folder / "p.yaml"
        file.write_text(text)
        words = ["counterfactual", str(file), "--state", str(self.folder), *more]
        return CliRunner().invoke(app, words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, draw = tmp_path_factory.mktemp("run"), random.Random(1)
    with pytest.MonkeyPatch.context() as patch:  # lists are drawn by request id: the same in each run
        patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=draw.getrandbits(128)))
        return folder, toy.run(folder)


@pytest.fixture
def run(made: tuple[Path, list[str]]) -> Iterator[Run]:
    config = toy.config_of(made[0])
    log = open_log(config)
    yield Run(made[0], config, log, made[1])
    log.close()


SAME = "name: same\nreward: {long_view: 1, like: 0.5}\n"


def test_the_policy_that_was_served_is_worth_what_was_earned(run: Run) -> None:
    read = run.lists(SAME)
    lists = read.lists
    assert (lists.ratios_LR == 1).all() and (lists.unsupported_LR == 0).all()
    assert len(lists) == toy.LISTS - read.left_out[BY_SCORE] and read.gone == 0
    assert read.left_out == {BY_SCORE: toy.LISTS // 10, DRAFTED: toy.LISTS}
    # By the examples themselves, as they are now.
    newest = {(e.partition, e.offset, e.index): e for e in run.examples()}
    mine = {place for place, its in run.impressions().items()
            if not its.teams and its.inputs and not its.inputs.by_score}  # fmt: skip
    earned = sum(e.labels[0] + 0.5 * e.labels[2] for key, e in newest.items() if key[:2] in mine)
    assert feature_set(run.config).schema.labels[2] == "like" and earned > 10
    for its in estimates(lists):
        if its.name in ("ips", "snips"):
            assert its.value == pytest.approx(earned / len(mine))


def test_ratios_are_those_of_the_policies_own_draws(run: Run) -> None:
    """At the first rank, where nothing stands above: the logged chances scaled by hand."""
    uniform = run.lists("name: even\noverrides: {explore: 1.0, quota: 0.0}\nreward: click\n")
    first, places = uniform.lists.ratios_LR[:, 0], []
    explainer = AnswerChecker(run.log, run.config, feature_set(run.config))
    for place, its in run.impressions().items():
        if not its.teams and its.inputs is not None and not its.inputs.by_score:
            answer = explainer.check(its, place).answer
            assert answer is not None and answer.candidates is not None
            places.append(1 / len(answer.candidates.indices_N) / its.items[0].propensity)
    assert np.sort(first) == pytest.approx(np.sort(places))


def test_a_list_that_ends_sooner_keeps_its_weight_and_earns_nothing_below(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = "[{field: topic, value: t1, do: require}, {field: topic, value: t1, do: limit, amount: 2}]"
    short = f"name: short\noverrides: {{rules: {rules}}}\nreward: long_view\n"
    refused = run.lists(short)  # others would have been retrieved
    assert refused.left_out[OTHER_CANDIDATES] and not len(refused.lists)
    monkeypatch.setattr(logged_lists, "same_candidates", lambda *_: True)
    lists = run.lists(short).lists
    weights_LR, ended_LR = lists.ratios_LR.cumprod(1), lists.ended_LR
    assert ended_LR is not None and not ended_LR[:, 0].any()
    kept = weights_LR[:, 1] > 0
    assert kept.any() and ended_LR[kept, 2].all()
    assert (weights_LR[kept, 2] == weights_LR[kept, 1]).all()
    assert not lists.earned_LR[kept, 2].any() and not lists.predicted_LR[kept, 2].any()
    assert not lists.expected_LR[kept, 2].any() and lists.rewards_LR[:, 2].any()


def test_interleaved_lists_are_made_again_equal_with_their_teams(run: Run) -> None:
    explainer = AnswerChecker(run.log, run.config, feature_set(run.config))
    drafted = [its for its in run.impressions().values() if its.teams]
    assert len(drafted) == toy.LISTS
    for its in drafted:
        assert its.stamp is not None and its.stamp.arms == {"duel": INTERLEAVED}
        assert len(its.teams) == len(its.items) and set(its.teams) <= {"control", "treatment"}
    for its in drafted[::6]:
        found = explainer.explain(its.request_id, its.user_id)
        assert found.verdict == EQUAL, (found.why, found.differences)
        assert found.answer is not None and found.answer.impression.teams == its.teams
    both = {team for its in drafted for team in its.teams}
    assert both == {"control", "treatment"}


def test_another_team_on_the_log_is_a_difference(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    shutil.copytree(run.folder, folder)
    config = toy.config_of(folder)
    log = open_log(config)
    its = next(i for i in run.impressions().values() if i.teams)
    found = find_impression(log, its.request_id)
    assert found is not None
    partition, offset, _ = found
    other = msgspec.structs.replace(its, teams=[*its.teams[::-1], ""])
    log.replace(EVENTS, partition, [Record(offset, str(its.user_id).encode(), encode(other))])
    again = AnswerChecker(log, config, feature_set(config)).explain(its.request_id)
    assert [its.field for its in again.differences] == ["teams"]
    told = (([], []), ([0.5] * 9, ["shares"]))  # lists of before shares were logged have none
    for shares, fields in told:
        other = msgspec.structs.replace(its, shares=shares)
        log.replace(EVENTS, partition, [Record(offset, str(its.user_id).encode(), encode(other))])
        again = AnswerChecker(log, config, feature_set(config)).explain(its.request_id)
        assert [its.field for its in again.differences] == fields
    log.close()


def test_training_learns_from_interleaved_lists_and_credits_are_its_examples(run: Run) -> None:
    labels = feature_set(run.config).schema.labels
    experiment = read_experiment(toy.INTERLEAVING, "duel", run.config.policy, labels)
    read = read_credits(run.log, run.config, labels, experiment, 0)
    lists = toy.LISTS - read.waiting
    assert read.waiting < 15 and read.complete and read.credits.lists_U.sum() == lists
    over_ms = {e.partition: e.closed_ms - 30_000 for e in run.examples()}  # the newest of each is the last
    teams = {place: its.teams for place, its in run.impressions().items()
             if its.teams and its.time_ms <= over_ms[place[0]]}  # fmt: skip
    newest = {(e.partition, e.offset, e.index): e for e in run.examples()}
    earned = {"control": 0.0, "treatment": 0.0}
    for (partition, offset, index), its in newest.items():
        if (partition, offset) in teams:
            earned[teams[partition, offset][index]] += its.labels[2] + 0.5 * its.labels[0]
    assert min(earned.values()) > 5
    assert read.credits.picked_U2.sum(0).tolist() == pytest.approx(list(earned.values()))
    assert read.credits.shared_U2.sum() == pytest.approx(read.credits.picked_U2.sum())
    assert 0 < abs(read.credits.shared_U2 - read.credits.picked_U2).max()
    assert sum(read.credits.first_picks) == lists
    assert interleaving_readout(experiment, read).users == toy.USERS


def test_the_report_credits_from_the_log(run: Run) -> None:
    words = ["experiment", "report", "duel", "--state", str(run.folder)]
    told = json.loads(CliRunner().invoke(app, [*words, "--json", "-"]).stdout)
    assert told["kind"] == "interleaving" and toy.LISTS - 15 < told["lists"] < toy.LISTS
    assert told["verdict"] == "open" and told["credit"] == {"like": 1.0, "long_view": 0.5}
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and "interleaved lists of 36 users" in shown.stdout
    refused = CliRunner().invoke(app, ["experiment", "page", *words[2:], str(run.folder / "x.html")])
    assert refused.exit_code == 2 and "which has no page" in refused.stderr
    power = CliRunner().invoke(app, ["experiment", "power", "duel", "--state", str(run.folder)])
    assert power.exit_code == 2 and "expected an experiment of arms" in power.stderr


def test_the_command_tells_estimates(run: Run) -> None:
    text = "name: warm\noverrides: {temperature: 0.3}\nreward: like\nranks: 2\n"
    told = run.command(text, "--json", "-")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert [its["name"] for its in found["estimates"]] == ["ips", "snips", "dr", "sndr"]
    assert found["ranks"] == 2 == len(found["ess"]) and found["left_out"][DRAFTED] == toy.LISTS
    plain = run.command(text)
    assert plain.exit_code == 0 and "sndr" in plain.stdout and "effective sample size" in plain.stdout


def test_what_the_log_cannot_answer_is_refused_with_its_reason(run: Run) -> None:
    more = run.command("name: more\noverrides: {per_author: 9}\nreward: like\n")
    assert more.exit_code == 1 and "had no chance on the log" in more.stdout
    assert "sndr" not in more.stdout
    cold = run.command("name: cold\noverrides: {temperature: 0.001, explore: 0.0}\nreward: like\n")
    assert cold.exit_code == 1 and "effective sample size" in cold.stdout
    none = "overrides: {rules: [{field: topic, value: t1, do: limit, amount: 0}]}"
    other = run.command(f"name: without\n{none}\nreward: like\n")
    assert other.exit_code == 1 and "refused: all lists have other candidates" in other.stdout
    line = run.command("name: x\nline: cand-1\nreward: like\n")
    assert line.exit_code == 2 and "recsys propose" in line.stderr
    few = run.command(SAME, "--lists", "30")
    assert few.exit_code == 1 and "users, expected 30" in few.stdout
    assert run.command(SAME, "--lists", "0").exit_code == 2
    assert run.command(SAME, "--alpha", "0.7").exit_code == 2


def test_lists_of_a_time_range_and_of_some_users(run: Run) -> None:
    whole, some = run.lists(SAME), run.lists(SAME, most=60)
    users = set(some.lists.users_L.tolist())
    assert 0 < len(users) < toy.USERS and some.left_out[SAMPLED] > 0
    assert len(some.lists) == sum(user in users for user in whole.lists.users_L.tolist())
    times = sorted(its.time_ms for its in run.impressions().values())
    until = np.datetime64(times[50], "ms").astype(str) + "Z"
    early = run.lists(SAME + f"until: '{until}'\n")
    assert 30 < len(early.lists) < 60 and DRAFTED not in early.left_out


def test_lists_that_cannot_be_made_again_are_counted_and_many_of_them_refuse(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "snapshots")
    config = toy.config_of(folder)
    log = open_log(config)
    for topic in ("deltas",):
        for name in log.holds(topic, 0):
            log.release(name, topic)
        log.trim(topic, 0, log.end(topic, 0))
    log.close()
    file = folder / "p.yaml"
    file.write_text(SAME)
    found = estimate_policy(file, folder, 5_000, 0.05)
    assert found["left_out"][GONE] > 100
    assert "can't be recomputed" in found["refused"][0] and "weights of main" in found["refused"][0]


def test_lists_of_other_candidates_and_open_windows_are_left_out(run: Run) -> None:
    changed = toy.replace(run.config, policy=toy.replace(run.config.policy, trust_after=9))
    features = feature_set(run.config)
    target = read_target(SAME, "p", changed.policy, features.schema.labels)
    read = read_lists(run.log, run.config, features, target, 5_000)
    assert read.left_out[OTHER_CANDIDATES] == toy.LISTS - toy.LISTS // 10 and not len(read.lists)
    late = toy.replace(run.config, join=toy.JoinConfig(window_s=1e6))
    its = Run(run.folder, late, run.log, run.asked)
    assert its.lists(SAME).left_out[EARLY] == toy.LISTS - toy.LISTS // 10
