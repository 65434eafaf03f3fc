"""Says often what happens often, but not each time: for logs of what every request may meet."""

from collections import Counter


class Seldom:
    """``due`` is the number of times something happened since it was last told; 0: not yet again."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._told_s: dict[str, float] = {}
        self._count: Counter[str] = Counter()

    def due(self, what: str, now_s: float) -> int:
        self._count[what] += 1
        told_s = self._told_s.get(what)
        if told_s is not None and now_s - told_s < self._every_s:
            return 0
        self._told_s[what] = now_s
        return self._count.pop(what)
