"""Values of a YAML text, checked: each error names file, line, key, value and what is expected."""

import re
from collections.abc import Iterable
from typing import Any, Final

from recsys.config.yaml_with_lines import YamlError, YamlWithLines

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_NAME: Final = re.compile(r"[A-Za-z][\w.-]{0,63}")


def plain(name: str) -> str:
    """The one spelling of an entity's or a column's name."""
    return name.replace("*", "×").replace(" ", "")


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


class YamlValues:
    """Checks values of one text: ``path`` leads to a value. ``top``: its mapping, once ``section`` checked
    it."""

    def __init__(self, text: str, file: object) -> None:
        self._marked = YamlWithLines(text, file)

    @property
    def top(self) -> dict[str, Any]:
        top: dict[str, Any] = self._marked.value
        return top

    def section(self, keys: set[str], *path: str | int) -> dict[str, Any]:
        """The mapping at a path, with these keys only."""
        return self._marked.mapping(keys, *path)

    def error(self, reason: str, *path: str | int) -> YamlError:
        """An error about the value at ``path``."""
        return self._marked.error(reason, *path)

    def expected(self, expected: str, value: Any, *path: str | int) -> YamlError:
        """An error about a value, with what is expected instead."""
        name = ".".join(map(str, path))
        return self.error(f"{name} is {value!r}, expected {expected}", *path)

    def name(self, value: Any, *path: str | int) -> str:
        """A name of the definition."""
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self.expected("a name of letters, digits, '.', '_' and '-'", value, *path)
        return value

    def names(self, raw: Any, *path: str | int, pattern: Any = _NAME) -> tuple[str, ...]:
        """A list of names, each once, in their one spelling."""
        if not isinstance(raw, list) or not all(isinstance(x, str) for x in raw):
            raise self.expected("a list of names", raw, *path)
        names = tuple(map(plain, raw))
        for at, name in enumerate(raw):
            if pattern is not None:
                self.name(name, *path, at)
            if names[at] in names[:at]:
                raise self.expected("each name once", name, *path, at)
        return names

    def one_of(self, values: tuple[str, ...], value: Any, *path: str | int) -> str:
        """A text among some."""
        if value not in values:
            raise self.expected(f"one of {', '.join(values)}", value, *path)
        return str(value)

    def flag(self, value: Any, *path: str | int) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            raise self.expected("true or false", value, *path)
        return value

    def positive(self, value: Any, *path: str | int) -> float:
        """A number above 0."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise self.expected("a number above 0, below a million", value, *path)
        return float(value)

    def length(self, value: Any, *path: str | int, least: int = 0, most: int) -> int:
        """A whole number."""
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.expected(f"a whole number of {least} to {most}", value, *path)
        return value

    def seconds(self, value: Any, *path: str | int) -> float:
        """A duration in seconds, from a number or a text."""
        if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
            value = float(match[1]) * _UNITS[match[2]]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3.2e7:
            expected = "a duration of up to a year, e.g. 90s, 30m, 24h or 14d"
            raise self.expected(expected, value, *path)
        return float(value)

    def pairs(self, raw: Any, *path: str) -> tuple[tuple[str, str], ...]:
        """Pairs of a mapping from a name to one or several."""
        return tuple(
            (plain(name), other)
            for name, others in self.mapping(raw, *path)
            for other in self.some(others, *path, name)
        )

    def mapping(self, raw: Any, *path: str) -> Iterable[tuple[str, Any]]:
        """The items of a mapping from names."""
        if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
            raise self.expected("a mapping from names", raw, *path)
        return raw.items()

    def some(self, raw: Any, *path: str) -> tuple[str, ...]:
        """One name or a list of them."""
        names = self.names([raw] if isinstance(raw, str) else raw, *path, pattern=None)
        if not names:
            raise self.expected("at least one name", raw, *path)
        return names
