"""Expected answers of the canary's world by their stamps alone, and checks of answers against them.

``Oracle`` computes by formulas: it has no replica and no pipeline, and sees no delta. Scores are compared to
the last bit, and every item is in every list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.answers.versioned_world import (
    CYCLE,
    ITEMS_N,
    NOW_MS,
    Formula,
    Rows,
    config_in,
    counted,
    experiment_of,
    item_of,
    session_of,
    small,
    version_of_item,
)
from experiments.assignment.definition import read_experiments
from experiments.assignment.policy import Policies, Policy
from recsys.config.system_config import Config, tables_of
from recsys.events.event_types import FeatureBlock, Stamp
from recsys.events.hashing import Id, key_of
from recsys.features.catalogue import Catalogue
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set_file import feature_set
from recsys.features.request_features import RequestFeatures
from recsys.model.model import build_model
from recsys.model.ranker import watch_seconds
from recsys.model.retrieval_vectors import content_vectors
from serving.scorers.probabilities import probabilities, user_vector

_ANSWERS: Final = 4_000  # size of the cache


@dataclass(frozen=True)
class Expected:
    """Expected content of an answer: scores by item, the items of each source, and the features of all
    items."""

    scores: dict[str, float]
    vector: str
    popular: str
    authors: dict[str, str]
    features: RequestFeatures


class Oracle:
    """Computes answers from stamps by formulas alone: no replica, no pipeline, no deltas."""

    def __init__(self, config: Config) -> None:
        self.features, self._config = feature_set(config), config
        self._models = [build_model(self.features, config_in(config, n).model) for n in (0, 1)]
        self._written: tuple[int, int] | None = None
        self._builder = FeatureBuilder(self.features)
        self._numbers = {key_of("item", f"v{n}"): n for n in range(ITEMS_N)}
        self._built: dict[tuple[Any, ...], RequestFeatures] = {}
        self._policies: dict[str, Policy] = {}
        self._answers: dict[tuple[Any, ...], Expected] = {}

    def of(self, stamp: Stamp, user: str) -> Expected:
        """Expected answer. Raises KeyError for a stamp whose policy isn't that of its arms."""
        key = (stamp.epoch, stamp.step, stamp.catalogue_offset, stamp.item_state_offset,
               stamp.session_offset, stamp.policy, stamp.arms.get("canary"), user)  # fmt: skip
        expected = self._answers.get(key)
        if expected is None:
            if len(self._answers) >= _ANSWERS:
                self._answers.clear()
                self._built.clear()
            expected = self._answers[key] = self._expect(stamp, user)
        return expected

    def _expect(self, stamp: Stamp, user: str) -> Expected:
        features, model = self._features(stamp, user), self._models[stamp.epoch % 2]
        tables = {
            t.name: Formula(t.name, t.dim, stamp.epoch, stamp.step, self._numbers)
            for t in tables_of(model.config)
        }
        if self._written != (stamp.epoch, stamp.step):
            self._written = stamp.epoch, stamp.step
            value = small(stamp.epoch, stamp.step)
            model.write_dense(np.full(model.dense_size(), value, np.float32))
        rows: Any = tables
        predicted = probabilities(model, rows, [features])
        scores = self._score(predicted, self._policy(stamp))
        groups = features.items_NI[:, self.features.group_columns()]
        vectors = content_vectors(groups, self._config.model.vector_dim)
        vectors = vectors + tables["items"].lookup(features.items_NI[:, 0])
        nearest = int(np.argmax(vectors @ user_vector(model, rows, features)))
        versions = [version_of_item(n, stamp.catalogue_offset) for n in range(ITEMS_N)]
        return Expected(
            {f"v{n}": float(score) for n, score in enumerate(scores)},
            f"v{nearest}",
            f"v{stamp.item_state_offset % ITEMS_N}",
            {f"v{n}": f"c{version % CYCLE}" for n, version in enumerate(versions)},
            features,
        )

    def _features(self, stamp: Stamp, user: str) -> RequestFeatures:
        key = (stamp.catalogue_offset, stamp.item_state_offset, stamp.session_offset, user)
        if key not in self._built:
            catalogue = Catalogue(self.features, 16)
            for n in range(ITEMS_N):
                catalogue.apply(item_of(n, version_of_item(n, stamp.catalogue_offset)))
            counters = self.features.counter_table()
            counters.set(*counted(self.features, stamp.item_state_offset))
            session = session_of(self.features, user, stamp.session_offset)
            self._built[key] = self._builder.build(
                session, "feed", {}, np.arange(ITEMS_N), catalogue, counters, NOW_MS
            )
        return self._built[key]

    def _score(self, predicted: Rows, policy: Policy) -> NDArray[np.float64]:
        """Score as the pipeline defines it: the weighted sum, watch time in minutes."""
        labels, weights = self.features.schema.labels, policy.config.weights
        total = np.zeros(len(predicted))
        for k, label in enumerate(labels):
            total += weights.get(label, 0.0) * predicted[:, k]
        minutes = watch_seconds(predicted[:, len(labels)]) / 60.0
        out: NDArray[np.float64] = total + weights["watch"] * minutes
        return out

    def _policy(self, stamp: Stamp) -> Policy:
        revision = int(stamp.arms["canary"][1:])
        name = f"{revision}"
        if name not in self._policies:
            base, texts = self._config.policy, {"canary": experiment_of(revision)}
            self._policies[name] = Policies(base, read_experiments(texts, base)).resolve("u0")
        policy = self._policies[name]
        if policy.digest != stamp.policy:
            raise KeyError(stamp.policy)
        return policy


@dataclass
class Watch:
    """Checks the answers of one client, one after the other."""

    oracle: Oracle
    requests: int = 0
    mixed: int = 0
    failed: int = 0
    went_back: int = 0
    first: list[str] = field(default_factory=list)  # messages of the first few errors
    _seen: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def see(
        self,
        user: str,
        stamp: Stamp,
        items: Sequence[tuple[Id, float | None, Sequence[str], Mapping[str, Any]]],
        degraded: Sequence[str],
        features: FeatureBlock | None = None,
    ) -> None:
        """Checks one answer, given as item, score, sources and fields of each rank."""
        self.requests += 1
        if degraded or len(items) != ITEMS_N:
            self._note("failed", f"degraded {list(degraded)}, {len(items)} items")
            return
        wrong = self._wrong(user, stamp, items, features)
        if wrong:
            self._note("mixed", f"{wrong} at {stamp}")
        self._order("weights", (stamp.epoch, stamp.step), stamp)
        self._order("items", (stamp.catalogue_offset,), stamp)
        self._order("states", (stamp.item_state_offset,), stamp)
        self._order("policy", (int(stamp.arms["canary"][1:]),), stamp)
        self._order(user, (stamp.session_offset,), stamp)

    def fail(self, why: str) -> None:
        self.requests += 1
        self._note("failed", why)

    def _wrong(
        self,
        user: str,
        stamp: Stamp,
        items: Sequence[tuple[Id, float | None, Sequence[str], Mapping[str, Any]]],
        features: FeatureBlock | None,
    ) -> str:
        try:
            expected = self.oracle.of(stamp, user)
        except KeyError:
            return "policy"
        for item_id, score, sources, fields in items:
            name = str(item_id)
            if score != expected.scores[name]:
                return f"score of {name} is {score}, expected {expected.scores[name]}"
            if fields["author"] != expected.authors[name]:
                return f"fields of {name}"
            if ("vector" in sources) != (name == expected.vector):
                return f"vector: {name}, expected {expected.vector}"
            if ("popular" in sources) != (name == expected.popular):
                return f"popular: {name}, expected {expected.popular}"
        order = [int(str(item_id)[1:]) for item_id, *_ in items]
        if features is not None and features != expected.features.rows(order).block():
            return "features"
        return ""

    def _order(self, what: str, version: tuple[int, ...], stamp: Stamp) -> None:
        if version < self._seen.get(what, version):
            self._note("went_back", f"{what} from {self._seen[what]} to {version}")
        self._seen[what] = version

    def _note(self, kind: str, why: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.first) < 5:
            self.first.append(f"{kind}: {why}")
