"""``app.yaml``: reads the definition of an app. Each error names file, line, key, value and what is
expected."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from recsys import plugins
from recsys.app.definition import BY_CLICK, BY_LIST, BY_VIEW, FIELD_KINDS, App, EventKind, Field
from recsys.app.page import LAYOUTS, SHOWN_FIELDS, Page
from recsys.config.policy_config import SOURCES
from recsys.config.yaml_values import YamlValues
from recsys.features.families.declared import FAMILIES, Declared, faults

APP_FILE: Final = "app.yaml"  # in a state folder: the definition of its system
_HISTORY: Final = 200
_NAME_LENGTH: Final = 40
_LABELS: Final = 56  # the joiner has a bit for each (training/joining/impression_state.py)
_FEATURES: Final = {key for family in FAMILIES for key in family.keys}
_KEYS: Final = {
    "app", "events", "fields", "groups", "shown", "window", "features", "history", "repeats", "sources",
    "files", "rendered", "page",
}  # fmt: skip


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
    return _Reader(YamlValues(text, file)).app()


class _Reader:
    """Reads one text: ``path`` leads to a value."""

    def __init__(self, values: YamlValues) -> None:
        self._values = values

    def app(self) -> App:
        top = self._values.section(_KEYS)
        events = self._events(top.get("events", {"click": "positive"}))
        features = self._features(top.get("features", {}))
        history, history_of = self._history(top, events)
        shown = self._values.one_of((BY_VIEW, BY_LIST, BY_CLICK), top.get("shown", BY_VIEW), "shown")
        app = App(
            name=self._values.name(top.get("app", "app"), "app"), events=events,
            fields=self._fields(top.get("fields", {})),
            groups=self._values.names(top.get("groups", []), "groups"),
            shown=shown,
            window_s=self._values.seconds(top.get("window", 60), "window"),
            features=replace(features, history_of=history_of), history=history,
            repeats=self._values.flag(top.get("repeats", False), "repeats"),
            sources=self._sources(top.get("sources", {})),
            rendered=self._values.flag(top.get("rendered", False), "rendered"),
            page=self._page(top.get("page", {}), events),
        )  # fmt: skip
        self._check(app)
        return app

    def _check(self, app: App) -> None:
        """Checks parts against each other."""
        if app.rendered and app.shown != BY_LIST:
            raise self._values.expected(f"false with shown: {app.shown}", True, "rendered")
        texts = [n for n, f in app.fields.get("item", {}).items() if f.kind in ("category", "list")]
        for at, name in enumerate(app.groups):
            if name not in texts:
                expected = f"an item field of kind category or list ({', '.join(texts) or 'none'})"
                raise self._values.expected(expected, name, "groups", at)
        for path, reason in faults(app.features_as_declared()):
            raise self._values.error(reason, *path)

    def _events(self, raw: Any) -> dict[str, EventKind]:
        if not isinstance(raw, dict) or not raw:
            raise self._values.expected("kinds of engagement, e.g. {click: positive}", raw, "events")
        events = {}
        for name, value in raw.items():
            if self._values.name(name, "events", name) in ("shown", "watch"):
                raise self._values.expected("another name: this one is a counter's", name, "events", name)
            label, weight, named = value, 1.0, ""
            if isinstance(value, dict):
                self._values.section({"label", "weight", "value"}, "events", name)
                if "value" in value:
                    named = self._values.name(value["value"], "events", name, "value")
                label = value.get("label", "")
                weight = self._values.positive(value.get("weight", 1.0), "events", name, "weight")
            label = "" if label in (None, "", "none") else label
            if label:
                self._values.one_of(("positive", "negative", "none"), label, "events", name)
            events[name] = EventKind(label, weight, named)
        if not any(event.label == "positive" for event in events.values()):
            raise self._values.expected("at least one kind with label: positive", list(events), "events")
        if (labels := sum(bool(event.label) for event in events.values())) > _LABELS:
            raise self._values.expected(f"at most {_LABELS} kinds with a label", labels, "events")
        return events

    def _fields(self, raw: Any) -> dict[str, dict[str, Field]]:
        parts: dict[str, dict[str, Field]] = {}
        for part, names in self._section(raw, {"item", "user", "context"}, "fields").items():
            if not isinstance(names, dict):
                raise self._values.expected("names with their kinds", names, "fields", part)
            fields = parts[part] = {}
            for name, value in names.items():
                path = ("fields", part, name)
                self._values.name(name, *path)
                length = 0
                if isinstance(value, dict) and set(value) == {"vector"}:
                    length, value = self._values.length(value["vector"], *path, most=4096), "vector"
                self._values.one_of(tuple(FIELD_KINDS), value, *path)
                if value == "vector" and (part != "item" or not length):
                    raise self._values.expected("{vector: LENGTH}, of an item", value, *path)
                fields[name] = Field(value, length)
        return parts

    def _history(self, top: dict[str, Any], events: dict[str, EventKind]) -> tuple[int, tuple[str, ...]]:
        raw = top.get("history", 20)
        if not isinstance(raw, dict):
            return self._values.length(raw, "history", least=1, most=_HISTORY), ()
        self._values.section({"of", "length"}, "history")
        kinds = self._values.names(raw.get("of", []), "history", "of")
        for at, kind in enumerate(kinds):
            self._values.one_of(tuple(events), kind, "history", "of", at)
        return self._values.length(raw.get("length", 20), "history", "length", least=1, most=_HISTORY), kinds

    def _sources(self, raw: Any) -> dict[str, int]:
        added = {name for name in raw if "@" in str(name)} if isinstance(raw, dict) else set()
        numbers = self._section(raw, added | set(SOURCES), "sources")
        for name in added:
            try:
                plugins.load_version(plugins.SOURCES, name)
            except ValueError as error:
                raise self._values.error(f"sources: {error}", "sources", name) from None
        return {name: self._values.length(n, "sources", name, most=1000) for name, n in numbers.items()}

    def _page(self, raw: Any, events: dict[str, EventKind]) -> Page:
        section = self._section(raw, {"layout", "names", *SHOWN_FIELDS}, "page")
        names = self._section(section.get("names"), set(events), "page", "names")
        for kind, name in names.items():
            if not isinstance(name, str) or not 0 < len(name) <= _NAME_LENGTH:
                expected = f"what a button says, 1 to {_NAME_LENGTH} characters"
                raise self._values.expected(expected, name, "page", "names", kind)
        fields = {role: section[role] for role in SHOWN_FIELDS if role in section}
        for role, name in fields.items():
            self._values.name(name, "page", role)
        layout = section.get("layout", "")
        return Page(layout and self._values.one_of(LAYOUTS, layout, "page", "layout"), fields, names)

    def _features(self, raw: Any) -> Declared:
        if not isinstance(raw, dict):
            raise self._values.expected(f"a mapping with {', '.join(sorted(_FEATURES))}", raw, "features")
        self._section(raw, _FEATURES, "features")
        parts = [family.read(raw, self._values) for family in FAMILIES]
        return Declared(**{name: value for part in parts for name, value in part.items()})

    def _section(self, raw: Any, keys: set[str], *path: str) -> dict[str, Any]:
        """The mapping under keys of the file, with these keys only; empty if nothing is there."""
        return self._values.section(keys, *path) if raw else {}
