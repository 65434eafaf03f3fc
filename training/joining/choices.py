"""Rows for the choice model (recsys/model/choice_model.py): an engaged item and what it was chosen before."""

import math
from typing import Final

import msgspec
import numpy as np

from recsys.events.event_types import Choice, Impression
from training.joining.impression_state import SHOWN, ImpressionState

# Items of the list; of more every second, third … is taken, and stands for as many.
_MOST: Final = 8


def candidates_of(choice: Choice, index: int) -> bytes:
    """The logarithm of the number of candidates that an item of a list of candidates stands for, float32;
    empty where it was none. The examples of the list are the other rows."""
    standing = float(np.frombuffer(choice.standing, np.float32)[index])
    return np.float32(math.log(standing)).tobytes() if standing > 0 else b""


def chosen_before(state: ImpressionState, index: int, impression: Impression) -> bytes:
    """Rows (R, 1 + F) of an engaged item and its alternatives. Items that were engaged with, too, are none.
    Empty without any, and for an item that the sources didn't have."""
    block, items, choice = impression.features, len(impression.items), impression.choice
    assert block is not None, "logged without features"
    if not block.dense:
        return b""
    dense_NF = np.frombuffer(block.dense, np.float32).reshape(items, -1)
    others_KF, each = dense_NF[:0], 1.0
    if choice is msgspec.UNSET:
        standing_N = np.array([float(mark & SHOWN != 0) for mark in state.marks], np.float32)
        standing_N[index] = 1.0
    else:
        standing_N = np.frombuffer(choice.standing, np.float32)
        others_KF = np.frombuffer(choice.others, np.float32).reshape(-1, dense_NF.shape[1])
        each = choice.each
    if not standing_N[index]:
        return b""
    engaged_N = np.array(state.labels, np.int64) & 1 > 0
    (listed,) = np.nonzero((standing_N > 0) & ~engaged_N & (np.arange(items) != index))
    stride = max(1, -(-len(listed) // _MOST))
    listed = listed[(index + state.offset) % stride :: stride]
    if not len(listed) and not len(others_KF):
        return b""
    standing = np.ones(1), standing_N[listed] * stride, np.full(len(others_KF), each)
    rows = np.concatenate([dense_NF[index : index + 1], dense_NF[listed], others_KF])
    return np.column_stack([np.log(np.concatenate(standing)), rows]).astype(np.float32).tobytes()
