"""A catalogue whose vectors resemble those that training leaves, and user sides that search for them.

Each item has an author and tags, which give its vector its content (recsys/model/retrieval_vectors.py), and a
learned row: a pull towards its topic and a part of its own, with lognormal sizes; topics vary more in some
directions than in others. Compared with the vectors after a replay of KuaiRand (7,583 items): norms of 0.64,
0.91 and 1.34 (1st, 50th and 99th percentile) there, 0.65, 0.92 and 1.93 here; share of the variance in the
first 4, 8 and 16 of 32 directions 0.36, 0.52 and 0.73 there, 0.33, 0.51 and 0.74 here; with 256 lists, 32 of
them hold 0.95 of the best 27 there and 0.93 here, 64 of them 0.99 and 0.98.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from recsys.events.event_types import Item

TOPICS: Final = 300
_DECAY: Final = 0.93  # of the size of each direction to that of the one before
_PULL, _OWN, _STRAY = (0.6, 0.3, 0.2)  # towards the topic; one's own; share of items beside their author's


@dataclass
class Plan:
    """Topics and authors of the items, and the distribution of their rows."""

    draw: np.random.Generator
    dim: int
    author: Any  # (N,)
    topic: Any  # (N,)
    second: Any  # (N,) another topic, -1 for none

    def __post_init__(self) -> None:
        size = _DECAY ** np.arange(self.dim)
        self._size = size * np.sqrt(1 / (size**2).sum())
        self._turn = np.linalg.qr(self.draw.normal(size=(self.dim, self.dim)))[0]
        self._centres = self.directions(TOPICS)

    def directions(self, count: int) -> Any:
        """Random vectors (count, V) of norm about one, larger in some directions than in others."""
        return (self.draw.normal(size=(count, self.dim)) * self._size) @ self._turn

    def item(self, n: int, number: int | None = None) -> Item:
        """Item ``n`` (mod N); under another number it is a new one of the same kind."""
        tags = [f"t{t}" for t in (self.topic[n], self.second[n]) if t >= 0]
        fields = {"author": f"a{self.author[n]}", "tags": tags, "duration_ms": 9_000}
        return Item(time_ms=1, item_id=f"v{n if number is None else number}", fields=fields)

    def rows(self, numbers: Any) -> Any:
        """Learned rows (n, V) of some items."""
        sizes = self.draw.lognormal(-0.5, 0.6, (len(numbers), 1))
        rows = _PULL * self._centres[self.topic[numbers]] + _OWN * self.directions(len(numbers))
        return (sizes * rows).astype(np.float32)

    def moves(self, rows: Any) -> Any:
        """Rows after one more step of learning."""
        size = 0.05 * np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows + size * self.directions(len(rows))).astype(np.float32)

    def liked(self, count: int) -> list[Any]:
        """Numbers of items that ``count`` people liked lately: of two topics, and of one author."""
        by_topic, by_author = (np.argsort(a, kind="stable") for a in (self.topic, self.author))
        topics, authors = self.topic[by_topic], self.author[by_author]
        liked = []
        for _ in range(count):
            some = self.draw.integers(0, len(topics), 2)
            picked = [self._near(by_topic, topics, topics[i], 4) for i in some]
            picked.append(self._near(by_author, authors, authors[self.draw.integers(len(authors))], 2))
            liked.append(np.concatenate(picked))
        return liked

    def user_sides(self, vectors: Any, liked: list[Any]) -> Any:
        """User vectors of these people (n, V)."""
        sides = np.array([1.2 * vectors[numbers].mean(0) for numbers in liked])
        return (sides + 0.2 * self.directions(len(sides))).astype(np.float32)

    def _near(self, order: Any, ordered: Any, value: Any, count: int) -> Any:
        low, high = np.searchsorted(ordered, value), np.searchsorted(ordered, value, "right")
        return order[self.draw.integers(low, high, count)]


def plan(items: int, dim: int, seed: int) -> Plan:
    draw = np.random.default_rng(seed)
    share = 1 / np.arange(1, TOPICS + 1) ** 0.7
    share /= share.sum()
    authors = max(100, items // 20)
    about = draw.choice(TOPICS, authors, p=share)
    weight = 1 / np.arange(1, authors + 1) ** 0.8
    author = draw.choice(authors, items, p=weight / weight.sum())
    elsewhere = draw.choice(TOPICS, items, p=share)
    topic = np.where(draw.random(items) < _STRAY, elsewhere, about[author])
    second = np.where(draw.random(items) < 0.5, draw.choice(TOPICS, items, p=share), -1)
    return Plan(draw, dim, author, topic, second)
