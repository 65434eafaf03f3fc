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
    others_KF, each, standing = dense_NF[:0], 1.0, [1.0] * items
    if choice is msgspec.UNSET:
        listed = [n for n, mark in enumerate(state.marks) if mark & SHOWN]
    else:
        standing = np.frombuffer(choice.standing, np.float32).tolist()
        others_KF = np.frombuffer(choice.others, np.float32).reshape(-1, dense_NF.shape[1])
        listed, each = [n for n, count in enumerate(standing) if count > 0], choice.each
        if not standing[index]:
            return b""
    labels = state.labels
    listed = [n for n in listed if n != index and not labels[n] & 1]
    stride = max(1, -(-len(listed) // _MOST))
    listed = [index, *listed[(index + state.offset) % stride :: stride]]
    rows = len(listed) + len(others_KF)
    if rows == 1:
        return b""
    rows_RF = np.empty((rows, 1 + dense_NF.shape[1]), np.float32)
    rows_RF[: len(listed), 1:] = dense_NF[listed]
    rows_RF[len(listed) :, 1:] = others_KF
    stood = [standing[n] for n in listed[1:]]
    if stride > 1:
        stood = (np.array(stood, np.float32) * stride).tolist()
    counts = [1.0, *stood] + [each] * len(others_KF)
    rows_RF[:, 0] = np.log(counts) if max(counts) != 1 or min(counts) != 1 else 0.0
    return rows_RF.tobytes()
