"""The feature set that an answer was logged with: of the state folder's file, or one that the log names."""

from dataclasses import replace

import pytest

from plugins.answer_explanation.answer_check import logged_set
from recsys.events.control_records import ALONE, FOLDED, Definition
from recsys.events.records import CONTROL, pack, topics
from recsys.features.families.declared import Declared
from recsys.features.feature_set import set_text
from recsys.features.request_features import UnknownFeatureSet
from recsys.log.protocol import Append, MemoryLog
from recsys.model.wider_set import united
from tests.support.training.small_feed import FEATURES

WIDE = united(FEATURES, replace(FEATURES, declared=Declared(half_lives_h=(1.0, 6.0, 336.0))))


def test_logged_sets_are_those_of_file_and_control() -> None:
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    texts = {"reads": "", "logged": set_text(WIDE), "before": set_text(FEATURES)}
    for stage in (FOLDED, ALONE):
        log.append(CONTROL, [Append(0, b"", pack(Definition(digest="d", stage=stage, **texts)))])
    assert logged_set(log, FEATURES, WIDE.digest) == WIDE
    assert logged_set(log, FEATURES, FEATURES.digest) == FEATURES
    with pytest.raises(UnknownFeatureSet, match="never logged here"):
        logged_set(log, FEATURES, "0" * 32)
