"""Change of a running app's definition: checks a new definition against the one that runs. Pure."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from recsys.app.app_file import app_of
from recsys.app.definition import App
from recsys.config.yaml_with_lines import YamlWithLines
from recsys.features.feature_set import FeatureSet
from recsys.model.wider_set import united

_ANEW: Final = "stored keys and labels mean this: declare it as before, or begin a new state folder"
_RESTART: Final = "it isn't a feature: keep it here, and change it with `recsys down` and `recsys up --app`"
_COLUMNS: Final = ("number", "time", "not declared")  # fields that are a column each


def read_change(text: str, file: Path, before: App, logged: FeatureSet) -> tuple[App, FeatureSet]:
    """The definition in the text of a file, and the set to log for it while the models of ``before`` go on.
    ``logged``: the set that these read. Raises ValueError with file, line and remedy for what can't change
    while the system runs."""
    app, marked = app_of(text, file), YamlWithLines(text, file)
    old, new = (dict(_fixed(one)) for one in (before, app))
    for path in dict.fromkeys((*new, *old)):
        value, expected = (parts.get(path, "not declared") for parts in (new, old))
        if value == expected or (path[0] == "fields" and _is_column(value, expected)):
            continue
        restarts = path[-1] == "weight" or path[0] in ("window", "repeats", "sources", "rendered")
        remedy, name = _RESTART if restarts else _ANEW, ".".join(path)
        raise marked.error(f"{name} is {value!r}, expected {expected!r}: {remedy}", *path)
    try:
        return app, united(logged, app.feature_set(logged.kind))
    except ValueError as error:
        raise marked.error(str(error), "features") from None


def _is_column(value: object, expected: object) -> bool:
    """Whether a field that is a column of its own came or went."""
    return "not declared" in (value, expected) and value in _COLUMNS and expected in _COLUMNS


def _fixed(app: App) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All that isn't a feature, each with its keys in the file."""
    for part, fields in app.fields.items():
        for name, field in fields.items():
            kind = f"{field.kind} of {field.length}" if field.length else field.kind
            yield ("fields", part, name), kind
    keyed = [n for n, f in app.fields.get("item", {}).items() if f.kind not in _COLUMNS]
    yield ("fields", "item"), keyed
    for kind, event in app.events.items():
        for name, value in msgspec.to_builtins(event).items():
            yield ("events", kind, name), value
    yield ("app",), app.name
    yield ("events",), app.labels
    yield ("shown",), app.shown
    yield ("groups",), app.schema.groups
    yield ("window",), app.window_s
    yield ("repeats",), app.repeats
    yield ("sources",), app.sources
    yield ("rendered",), app.rendered
    yield ("history", "of"), app.features.history_of
