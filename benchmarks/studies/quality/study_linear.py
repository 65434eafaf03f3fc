"""Online linear learners that score a replay's requests, as comparators of the quality study.

They read the keys of our feature set, score a request when it is made, and learn an example as soon as the
joiner emits it: earlier than our model, which waits for its step. Both come with the extra ``bench``.
"""

import importlib.util
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import FeatureBlock
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures

_LETTERS: Final = "abcdefgijklmnoqrstuvwxyz"  # of namespaces; h and p are the hour's and the profile's
_BITS: Final = (1 << 62) - 1


class Linear(Protocol):
    """Learner of the first label. ``move`` tells the time before each request."""

    name: str

    def move(self, now_ms: int) -> None: ...

    def score(self, request: RequestFeatures) -> list[float]:
        """A probability for each item of a request."""
        ...

    def learn(self, features: FeatureBlock, label: bool) -> None: ...


def linear_learners(features: FeatureSet) -> list[Linear]:
    """Installed learners; Vowpal Wabbit twice: with ids alone, and with all numeric features."""
    learners: list[Linear] = []
    if importlib.util.find_spec("vowpalwabbit") is not None:
        learners += [VowpalWabbit(features, counters=False), VowpalWabbit(features, counters=True)]
    if importlib.util.find_spec("river") is not None:
        learners.append(River(features))
    return learners


class VowpalWabbit:
    """Logistic regression with default rates; the user crossed with the item's groups, duration and context,
    the first group with the others, and duration with context. ``counters``: adds our numeric features."""

    def __init__(self, features: FeatureSet, counters: bool) -> None:
        from vowpalwabbit import Workspace

        self.name = "Vowpal Wabbit, all numbers" if counters else "Vowpal Wabbit, ids"
        self._features, self._counters = features, counters
        slots = [*features.user_slots, *features.item_slots]
        self._letters = {slot.name: _LETTERS[n] for n, slot in enumerate(slots)}
        crossed = " ".join(f"-q {pair}" for pair in self._crosses())
        self._learner = Workspace(f"--loss_function logistic --link logistic -b 24 {crossed} --quiet")

    def _crosses(self) -> list[str]:
        letters = self._letters
        groups = [letters[f"item.{name}"] for name in self._features.schema.groups]
        others = [*groups, letters["duration"], letters["context"]]
        return [
            *(letters["user"] + crossed for crossed in others),
            *(groups[0] + group for group in groups[1:]),
            letters["duration"] + letters["context"],
        ]

    def move(self, now_ms: int) -> None:
        """Learns at once."""

    def score(self, request: RequestFeatures) -> list[float]:
        user = self._user(request.user_U)
        rows = zip(request.items_NI, request.dense_NF, strict=True)
        return [float(self._learner.predict(user + self._item(keys, d))) for keys, d in rows]

    def learn(self, features: FeatureBlock, label: bool) -> None:
        user, item, dense = _arrays(features)
        self._learner.learn(f"{1 if label else -1}{self._user(user)}{self._item(item, dense)}")

    def _user(self, keys_U: NDArray[np.int64]) -> str:
        return _spaces(self._letters, self._features.user_slots, keys_U)

    def _item(self, keys_I: NDArray[np.int64], dense_F: NDArray[np.float32]) -> str:
        text = _spaces(self._letters, self._features.item_slots, keys_I)
        if self._counters and len(dense_F):
            text += " |z " + " ".join(f"{n}:{x:.4g}" for n, x in enumerate(dense_F.tolist()) if x)
        return text


class River:
    """``LogisticRegression`` with default rates over the same keys, nothing crossed."""

    name = "River, ids"

    def __init__(self, features: FeatureSet) -> None:
        from river.linear_model import LogisticRegression

        self._learner: Any = LogisticRegression()

    def move(self, now_ms: int) -> None:
        """Learns at once."""

    def score(self, request: RequestFeatures) -> list[float]:
        user = _ones(request.user_U)
        predictions = [self._learner.predict_proba_one(user | _ones(keys)) for keys in request.items_NI]
        return [float(chance.get(True, 0.5)) for chance in predictions]

    def learn(self, features: FeatureBlock, label: bool) -> None:
        user, item, _ = _arrays(features)
        self._learner.learn_one(_ones(user) | _ones(item), label)


def _arrays(block: FeatureBlock) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """An example's keys of user and item, and its numbers."""
    return (
        np.frombuffer(block.user_keys, np.int64),
        np.frombuffer(block.item_keys, np.int64),
        np.frombuffer(block.dense, np.float32),
    )


def _spaces(letters: dict[str, str], slots: Any, keys: NDArray[np.int64]) -> str:
    """Keys in Vowpal Wabbit's text format, a namespace for each slot; numbers are its own hashes."""
    parts = []
    for slot in slots:
        own = keys[slot.start : slot.stop]
        text = " ".join(str(key & _BITS) for key in own[own != 0].tolist())
        if text:
            parts.append(f" |{letters[slot.name]} {text}")
    return "".join(parts)


def _ones(keys: NDArray[np.int64]) -> dict[int, float]:
    return dict.fromkeys(keys[keys != 0].tolist(), 1.0)
