"""``app.yaml``: reads the definition of an app. Each error names file, line, key, value and what is
expected."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from recsys import plugins
from recsys.app.definition import BY_CLICK, BY_LIST, BY_VIEW, FIELD_KINDS, App, EventKind, Field
from recsys.app.feature_checks import faults
from recsys.config.policy_config import SOURCES
from recsys.config.yaml_with_lines import YamlError, YamlWithLines
from recsys.features.feature_set import Declared
from recsys.features.operators import EXPRESSIONS, FUNCTION, Derived

APP_FILE: Final = "app.yaml"  # in a state folder: the definition of its system
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_NAME: Final = re.compile(r"[A-Za-z][\w.-]{0,63}")
_HISTORY: Final = 200
_LABELS: Final = 56  # the joiner has a bit for each (training/joining/impression_state.py)
_FEATURES: Final = {
    "half_lives", "rates", "age", "near", "trend", "visit", "position", "list",
    "numbers", "counts", "against", "last", "distinct", "expressions", "functions",
}  # fmt: skip
_KEYS: Final = {
    "app", "events", "fields", "groups", "shown", "window", "features", "history", "repeats", "sources",
    "files", "rendered",
}  # fmt: skip


def plain(name: str) -> str:
    """The one spelling of an entity's or a column's name."""
    return name.replace("*", "×").replace(" ", "")


def text_of(file: Path) -> str:
    """The text of a definition; raises ValueError for an unreadable file."""
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected a readable definition of an app ({error})") from error


def read_app(file: Path) -> App:
    """Reads and checks a definition; raises ValueError with file, line and remedy."""
    return app_of(text_of(file), file)


def app_of(text: str, file: object = "app.yaml") -> App:
    """The definition in a YAML text; raises ValueError with file, line and remedy."""
    return _Reader(YamlWithLines(text, file)).app()


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


class _Reader:
    """Reads one text: ``path`` leads to a value."""

    def __init__(self, marked: YamlWithLines) -> None:
        self._marked = marked

    def app(self) -> App:
        top = self._marked.mapping(_KEYS)
        events = self._events(top.get("events", {"click": "positive"}))
        features = top.get("features", {})
        if not isinstance(features, dict):
            names = ", ".join(sorted(_FEATURES))
            raise self._expected(f"a mapping with {names}", features, "features")
        history = self._history(top, events)
        shown = self._one_of((BY_VIEW, BY_LIST, BY_CLICK), top.get("shown", BY_VIEW), "shown")
        app = App(
            name=self._name(top.get("app", "app"), "app"), events=events,
            fields=self._fields(top.get("fields", {})), groups=self._names(top.get("groups", []), "groups"),
            shown=shown,
            window_s=self._seconds(top.get("window", 60), "window"),
            features=self._features(features, history[1], shown), history=history[0],
            repeats=self._flag(top.get("repeats", False), "repeats"),
            sources=self._sources(top.get("sources", {})),
            rendered=self._flag(top.get("rendered", False), "rendered"),
        )  # fmt: skip
        self._check(app)
        return app

    def _check(self, app: App) -> None:
        """Checks parts against each other."""
        if app.rendered and app.shown != BY_LIST:
            raise self._expected(f"false with shown: {app.shown}", True, "rendered")
        texts = [n for n, f in app.fields.get("item", {}).items() if f.kind in ("category", "list")]
        for at, name in enumerate(app.groups):
            if name not in texts:
                expected = f"an item field of kind category or list ({', '.join(texts) or 'none'})"
                raise self._expected(expected, name, "groups", at)
        times = [n for n, f in app.fields.get("item", {}).items() if f.kind == "time"]
        if app.features.age_field and app.features.age_field not in times:
            expected = f"true, false or an item field of kind time ({', '.join(times) or 'none'})"
            raise self._expected(expected, app.features.age_field, "features", "age")
        for path, reason in faults(app.features_as_declared()):
            raise self._marked.error(reason, *path)

    def _events(self, raw: Any) -> dict[str, EventKind]:
        if not isinstance(raw, dict) or not raw:
            raise self._expected("kinds of engagement, e.g. {click: positive}", raw, "events")
        events = {}
        for name, value in raw.items():
            if self._name(name, "events", name) in ("shown", "watch"):
                raise self._expected("another name: this one is a counter's", name, "events", name)
            label, weight, named = value, 1.0, ""
            if isinstance(value, dict):
                self._marked.mapping({"label", "weight", "value"}, "events", name)
                if "value" in value:
                    named = self._name(value["value"], "events", name, "value")
                label = value.get("label", "")
                weight = self._positive(value.get("weight", 1.0), "events", name, "weight")
            label = "" if label in (None, "", "none") else label
            if label:
                self._one_of(("positive", "negative", "none"), label, "events", name)
            events[name] = EventKind(label, weight, named)
        if not any(event.label == "positive" for event in events.values()):
            raise self._expected("at least one kind with label: positive", list(events), "events")
        if (labels := sum(bool(event.label) for event in events.values())) > _LABELS:
            raise self._expected(f"at most {_LABELS} kinds with a label", labels, "events")
        return events

    def _fields(self, raw: Any) -> dict[str, dict[str, Field]]:
        parts: dict[str, dict[str, Field]] = {}
        for part, names in self._section(raw, {"item", "user", "context"}, "fields").items():
            if not isinstance(names, dict):
                raise self._expected("names with their kinds", names, "fields", part)
            fields = parts[part] = {}
            for name, value in names.items():
                path = ("fields", part, name)
                self._name(name, *path)
                length = 0
                if isinstance(value, dict) and set(value) == {"vector"}:
                    length, value = self._length(value["vector"], *path, most=4096), "vector"
                self._one_of(tuple(FIELD_KINDS), value, *path)
                if value == "vector" and (part != "item" or not length):
                    raise self._expected("{vector: LENGTH}, of an item", value, *path)
                fields[name] = Field(value, length)
        return parts

    def _history(self, top: dict[str, Any], events: dict[str, EventKind]) -> tuple[int, tuple[str, ...]]:
        raw = top.get("history", 20)
        if not isinstance(raw, dict):
            return self._length(raw, "history", least=1), ()
        self._marked.mapping({"of", "length"}, "history")
        kinds = self._names(raw.get("of", []), "history", "of")
        for at, kind in enumerate(kinds):
            self._one_of(tuple(events), kind, "history", "of", at)
        return self._length(raw.get("length", 20), "history", "length", least=1), kinds

    def _features(self, raw: dict[str, Any], history_of: tuple[str, ...], shown: str) -> Declared:
        self._section(raw, _FEATURES, "features")
        hours = Declared.half_lives_h
        if "half_lives" in raw:
            path = ("features", "half_lives")
            if not isinstance(raw["half_lives"], list) or not 1 <= len(raw["half_lives"]) <= 6:
                raise self._expected("one to six durations", raw["half_lives"], *path)
            seconds = [self._seconds(x, *path, at) for at, x in enumerate(raw["half_lives"])]
            hours = tuple(sorted({s / 3600.0 for s in seconds}))
        age, listed = raw.get("age", False), raw.get("list", [])
        if not isinstance(age, str):
            age = self._flag(age, "features", "age")
        return Declared(
            half_lives_h=hours,
            entities=self._names(raw.get("rates", []), "features", "rates", pattern=None),
            history_of=history_of,
            item_age=bool(age),
            age_field=age if isinstance(age, str) else "",
            near=self._flag(raw.get("near", True), "features", "near"),
            trend=self._flag(raw.get("trend", False), "features", "trend"),
            visit_s=self._seconds(raw["visit"], "features", "visit") if "visit" in raw else 0.0,
            position=self._flag(raw.get("position", False), "features", "position"),
            list_context=self._names([] if listed is False else listed, "features", "list", pattern=None),
            whole_list=shown == BY_LIST and listed is not False,
            numbers=self._names(raw.get("numbers", []), "features", "numbers"),
            counts=self._names(raw.get("counts", []), "features", "counts"),
            against=self._pairs(raw.get("against", {}), "features", "against"),
            last=self._pairs(raw.get("last", {}), "features", "last"),
            distinct=tuple(
                (kind, *pair)
                for kind, counted in self._mapping(raw.get("distinct", {}), "features", "distinct")
                for pair in self._pairs(counted, "features", "distinct", kind)
            ),
            derived=(*self._expressions(raw), *self._functions(raw)),
        )

    def _expressions(self, raw: dict[str, Any]) -> Iterator[Derived]:
        section = ("features", "expressions")
        for name, value in self._mapping(raw.get("expressions", {}), *section):
            path = (*section, self._name(name, *section, name))
            keys = set(self._marked.mapping({*EXPRESSIONS, "at"}, *path)) - {"at"}
            if len(keys) != 1 or ("at" in value) != ("bucket" in value):
                expected = f"one of {', '.join(EXPRESSIONS)}; a bucket with at: its edges"
                raise self._expected(expected, value, *path)
            operator = keys.pop()
            edges = value.get("at", [])
            if not isinstance(edges, list) or not all(map(_is_number, edges)):
                raise self._expected("ascending numbers", edges, *path, "at")
            columns = self._some(value[operator], *path, operator)
            yield Derived(name, operator, columns, tuple(map(float, edges)))

    def _functions(self, raw: dict[str, Any]) -> Iterator[Derived]:
        section = ("features", "functions")
        for name, _ in self._mapping(raw.get("functions", {}), *section):
            path = (*section, self._name(name, *section, name))
            keys = self._marked.mapping({"call", "of"}, *path)
            call = keys.get("call")
            if not isinstance(call, str):
                raise self._expected("name@version or module:name@version", call, *path, "call")
            yield Derived(name, FUNCTION, self._some(keys.get("of"), *path, "of"), (), call)

    def _pairs(self, raw: Any, *path: str) -> tuple[tuple[str, str], ...]:
        """Pairs of a mapping from a name to one or several."""
        return tuple(
            (plain(name), other)
            for name, others in self._mapping(raw, *path)
            for other in self._some(others, *path, name)
        )

    def _mapping(self, raw: Any, *path: str) -> Iterable[tuple[str, Any]]:
        if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
            raise self._expected("a mapping from names", raw, *path)
        return raw.items()

    def _some(self, raw: Any, *path: str) -> tuple[str, ...]:
        """One name or a list of them."""
        names = self._names([raw] if isinstance(raw, str) else raw, *path, pattern=None)
        if not names:
            raise self._expected("at least one name", raw, *path)
        return names

    def _sources(self, raw: Any) -> dict[str, int]:
        added = {name for name in raw if "@" in str(name)} if isinstance(raw, dict) else set()
        numbers = self._section(raw, added | set(SOURCES), "sources")
        for name in added:
            try:
                plugins.load_version(plugins.SOURCES, name)
            except ValueError as error:
                raise self._marked.error(f"sources: {error}", "sources", name) from None
        return {name: self._length(n, "sources", name, most=1000) for name, n in numbers.items()}

    # --- values ---

    def _section(self, raw: Any, keys: set[str], name: str) -> dict[str, Any]:
        """The mapping under a key of the file, with these keys only; empty if nothing is there."""
        return self._marked.mapping(keys, name) if raw else {}

    def _expected(self, expected: str, value: Any, *path: str | int) -> YamlError:
        name = ".".join(map(str, path))
        return self._marked.error(f"{name} is {value!r}, expected {expected}", *path)

    def _name(self, value: Any, *path: str | int) -> str:
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self._expected("a name of letters, digits, '.', '_' and '-'", value, *path)
        return value

    def _names(self, raw: Any, *path: str | int, pattern: Any = _NAME) -> tuple[str, ...]:
        if not isinstance(raw, list) or not all(isinstance(x, str) for x in raw):
            raise self._expected("a list of names", raw, *path)
        names = tuple(map(plain, raw))
        for at, name in enumerate(raw):
            if pattern is not None:
                self._name(name, *path, at)
            if names[at] in names[:at]:
                raise self._expected("each name once", name, *path, at)
        return names

    def _one_of(self, values: tuple[str, ...], value: Any, *path: str | int) -> str:
        if value not in values:
            raise self._expected(f"one of {', '.join(values)}", value, *path)
        return str(value)

    def _flag(self, value: Any, *path: str | int) -> bool:
        if not isinstance(value, bool):
            raise self._expected("true or false", value, *path)
        return value

    def _positive(self, value: Any, *path: str | int) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise self._expected("a number above 0, below a million", value, *path)
        return float(value)

    def _length(self, value: Any, *path: str | int, least: int = 0, most: int = _HISTORY) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._expected(f"a whole number of {least} to {most}", value, *path)
        return value

    def _seconds(self, value: Any, *path: str | int) -> float:
        if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
            value = float(match[1]) * _UNITS[match[2]]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3.2e7:
            expected = "a duration of up to a year, e.g. 90s, 30m, 24h or 14d"
            raise self._expected(expected, value, *path)
        return float(value)
