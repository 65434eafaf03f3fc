"""A system with plug-ins: answers are explained to the bit; a missing plug-in is named with the remedy."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.answers.reconstruction_run import run_system
from benchmarks.harness.local_system import LocalSystem, small_config
from examples.plugin_package import recsys_example_plugins as example
from plugins.answer_explanation.answer_check import EQUAL, AnswerCheck, AnswerChecker
from recsys.events.event_types import Impression
from recsys.features.families.declared import Declared
from recsys.features.families.derived import Derived
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA, write_feature_set
from serving.request import Candidates

PACKAGE = "examples.plugin_package.recsys_example_plugins"
SOURCE, SHORT, FAILING = (f"{PACKAGE}:same_author@1", f"{PACKAGE}:short_first@1", f"{__name__}:failing@1")
FEATURES = FeatureSet(
    FEED_SCHEMA,
    declared=Declared(
        item_age=True,
        derived=(Derived("near", "function", ("item.age", "events"), (), f"{PACKAGE}:likeness@1"),),
    ),
)


class Failing:
    """A stage that fails now and then, for a reason that isn't in its arguments."""

    version = "1"

    def __init__(self) -> None:
        self.calls, self.fails = 0, True

    def __call__(self, replica: Any, query: Any, candidates: Candidates) -> Candidates:
        self.calls += 1
        if self.fails and self.calls % 4 == 0:
            raise ConnectionError("a service is away")
        return candidates.add_scores(FAILING, np.where(candidates.scores_N > 0.5, 0.3, 0.0))


failing = Failing()


@pytest.mark.slow
def test_answers_with_plug_ins_are_explained_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path / "state")
    policy = replace(config.policy, sources=config.policy.sources | {SOURCE: 30})
    serve = replace(config.serve, stages=(SHORT, FAILING))
    config = replace(config, policy=policy, serve=serve)
    write_feature_set(config, FEATURES)
    asked, steps = asyncio.run(run_system(LocalSystem(config), 60, 0))
    assert steps > 5
    failing.fails = False
    without = replace(config, serve=replace(serve, stages=()))  # the impressions name them
    checks = explained(without, asked)
    assert [check.verdict for check in checks] == [EQUAL] * 60, [check.why for check in checks]
    impressions = [i for check in checks if (i := check.impression)]
    assert any(SOURCE in item.sources for i in impressions for item in i.items)
    assert all(i.inputs is not None and i.inputs.stages == [SHORT, FAILING] for i in impressions)
    failed = [i for i in impressions if FAILING in i.degraded]
    assert 10 < len(failed) < 20 and len(impressions) == 60
    added = [answer.candidates for check in checks if (answer := check.answer)]
    assert all(candidates is not None and example.SHORT_FIRST in candidates.added for candidates in added[:5])

    monkeypatch.delattr(example, "short_first")
    (check, *_) = explained(config, asked[:1])
    assert check.verdict != EQUAL
    reason = f"plug-in '{PACKAGE}:short_first' of the group 'recsys.stages' can't be imported"
    assert reason in check.why and "pip install its package again" in check.why
    monkeypatch.setattr(example.SameAuthor, "version", "2")
    (check, *_) = explained(config, asked[:1])
    assert f"declare {PACKAGE}:same_author@2" in check.why


def explained(config: Any, asked: list[tuple[str, str]]) -> list[AnswerCheck]:
    system = LocalSystem(config)
    checker = AnswerChecker(system.log, config, system.features)
    checks = [checker.explain(request_id, user) for request_id, user in asked]
    system.close()
    return checks


def test_impressions_without_stages_are_encoded_as_before() -> None:
    from recsys.events.event_types import RequestInputs, encode

    impression = Impression(time_ms=1, request_id="r", user_id="u", items=[], inputs=RequestInputs())
    assert b"stages" not in encode(impression)
