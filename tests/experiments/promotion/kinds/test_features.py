from msgspec.structs import replace

from experiments.promotion.kinds.features import FeaturesState, newest_change, proposal
from experiments.promotion.kinds.line_state import LIVE, SHADOW
from recsys.config.system_config import ModelConfig
from recsys.events.control_records import Live
from recsys.features.feature_set import set_text
from tests.support.folded_control import C1, FIRST, folded, stage
from tests.support.training.small_feed import FEATURES

RECORD = proposal(FEATURES, ModelConfig(), 3, 50)


def test_it_begins_as_live_and_is_promoted_as_a_candidate() -> None:
    lifecycle = folded(FIRST, C1, RECORD)
    state = lifecycle.candidates[RECORD.line]
    assert isinstance(state, FeaturesState) and (state.stage, state.since_ms) == (SHADOW, 50)
    assert state.source(4) == 4 and lifecycle.candidates["c1"].source(4) is None
    lifecycle.fold(Live(line="main", epoch=1, candidate=RECORD.line))
    assert stage(lifecycle, RECORD.line) == LIVE


def test_the_newest_of_a_change_is_found_among_the_lines() -> None:
    again = replace(RECORD, line=f"{RECORD.line}-again")
    lines = folded(FIRST, RECORD, again, C1).candidates
    found = newest_change(lines.values(), set_text(FEATURES))
    assert found is not None and found.line == again.line
    assert newest_change(lines.values(), "another set") is None
