"""What the demo tells about a candidate, and the settings that it runs with."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from examples.short_video import promotion_demo
from examples.short_video.demo_run import SETTINGS
from examples.short_video.demo_start import ProgressLines
from examples.short_video.demo_system import NotReady
from experiments.evidence.verdict import CANARY
from experiments.promotion.kinds.candidate import TAKING_OVER
from experiments.promotion.kinds.line_state import ENDED, LIVE, SHADOW
from recsys.config.loader import load
from recsys.config.policy_config import check_rules
from recsys.config.system_config import Config, override


def followed(monkeypatch: pytest.MonkeyPatch, *stages: str) -> list[str]:
    """Headings while the candidate goes through these stages."""
    left = list(stages)

    class View:
        def __init__(self, *_: Any) -> None: ...

        def turn(self) -> list[dict[str, Any]]:
            stage = left.pop(0) if len(left) > 1 else left[0]
            return [{"line": "other", "stage": LIVE}] + (
                [{"line": "mine", "stage": stage, "why": "it is worse"}] if stage else []
            )

        def table(self, rows: list[dict[str, Any]]) -> str:
            return f"{len(rows)} rows"

    monkeypatch.setattr(promotion_demo, "CandidateView", View)
    monkeypatch.setattr(promotion_demo, "open_log", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(promotion_demo, "_POLL_S", 0.0)
    headings: list[str] = []
    console = Console(file=io.StringIO())
    promotion_demo._follow(Config(), "mine", headings.append, console)
    return headings


def test_each_stage_of_the_candidate_is_told_once_until_it_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    told = followed(monkeypatch, "", SHADOW, SHADOW, CANARY, TAKING_OVER, LIVE)
    assert told == [promotion_demo._TEXT[s] for s in (SHADOW, CANARY, TAKING_OVER, LIVE)]


def test_a_candidate_that_is_not_promoted_ends_the_demo_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(NotReady, match="mine wasn't promoted: it is worse"):
        followed(monkeypatch, SHADOW, ENDED)


def test_the_settings_of_the_demo_are_those_of_a_system() -> None:
    config = override(load(str(SETTINGS)), promotion_demo.SETTINGS)
    assert config.promotion.least_examples == 1_000
    assert [rule.do for rule in config.policy.rules] == ["vary"]
    check_rules(config.policy, ("author", "tags"))
    places = sum(config.policy.sources.values())
    assert places <= config.serve.candidates, "else the last sources get none"


def test_progress_is_a_line_now_and_then() -> None:
    for every_s, expected in ((0.0, 3), (60.0, 0)):
        console = Console(file=io.StringIO())
        lines = ProgressLines(console, every_s)
        for n in range(3):
            lines.say(f"{n} of 3")
        assert len(console.file.getvalue().splitlines()) == expected  # type: ignore[attr-defined]
