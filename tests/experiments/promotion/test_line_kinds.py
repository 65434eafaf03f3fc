import pytest

from experiments.promotion.kinds.candidate import CandidateState
from experiments.promotion.kinds.line_state import KINDS
from experiments.promotion.line_kinds import begin
from recsys.events.control_records import Candidate


def test_each_kind_is_found_in_its_folder() -> None:
    names = {kind.__module__.rpartition(".")[2] for kind in KINDS}
    assert names >= {"arm", "candidate", "features", "guard"}


@pytest.mark.parametrize("kind", ["offline", "merged", "student", "guard", "unheard of"])
def test_one_of_a_registry_is_a_candidate_whatever_its_training_was(kind: str) -> None:
    assert type(begin(Candidate(line="c1", registry="r", kind=kind))) is CandidateState
