"""``dataset.yaml``: the description of an event log. Unknown keys are errors, with their line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from recsys.config.yaml_with_lines import YamlError, YamlWithLines
from recsys.events.event_types import ENGAGEMENT_KINDS
from recsys.events.field_schema import CATEGORICAL, NUMERIC, VECTOR
from replay.datasets.dataset import DataError

_KEYS: Final = {
    "name", "labels", "window_s", "horizon_s", "all_shown", "vectors", "fields", "groups",
    "utc_offset_h",
}  # fmt: skip
_PARTS: Final = {"item", "user", "context"}
_KINDS: Final = (CATEGORICAL, NUMERIC, VECTOR)


@dataclass(frozen=True)
class LogSettings:
    """Values of a dataset.yaml. ``fields``, when given, makes the scan of the log unnecessary."""

    labels: tuple[str, ...]
    window_s: float
    name: str = ""
    horizon_s: float = 3600.0  # a repeated event_id within it counts once
    all_shown: bool = False
    vectors: dict[str, int] = field(default_factory=dict)
    fields: dict[str, dict[str, str]] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    utc_offset_h: float = 0.0


def read_settings(file: Path) -> LogSettings:
    """Reads and checks a dataset.yaml; raises DataError with the line and the key."""
    try:
        marked = YamlWithLines(file.read_text("utf-8"), file)
        values = marked.mapping(_KEYS)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(file, f"a readable file ({error})") from error
    except YamlError as error:
        raise DataError(file, error.reason, line=error.line) from error
    check = _Check(file, marked)
    for key in ("labels", "window_s"):
        check(key in values, key, "the key is required", None)
    kinds = ", ".join(ENGAGEMENT_KINDS)
    labels = check.texts(values["labels"], "labels")
    check(len(labels) > 0, "labels", "at least one engagement kind", labels)
    for label in labels:
        check(label in ENGAGEMENT_KINDS, "labels", f"engagement kinds ({kinds})", label)
    vectors = values.get("vectors") or {}
    is_lengths = isinstance(vectors, dict) and all(_is_length(n) for n in vectors.values())
    check(is_lengths, "vectors", "a length of at least 1 by the field's name", vectors)
    all_shown = values.get("all_shown", False)
    check(isinstance(all_shown, bool), "all_shown", "true or false", all_shown)
    return LogSettings(
        labels=labels,
        window_s=check.number(values["window_s"], "window_s", above=0),
        name=str(values.get("name", "")),
        horizon_s=check.number(values.get("horizon_s", 3600.0), "horizon_s", above=-1e-9),
        all_shown=all_shown,
        vectors={str(name): length for name, length in vectors.items()},
        fields=_fields(values.get("fields"), check),
        groups=check.texts(values.get("groups") or [], "groups"),
        utc_offset_h=check.number(values.get("utc_offset_h", 0.0), "utc_offset_h", above=-24),
    )


class _Check:
    def __init__(self, file: Path, marked: YamlWithLines) -> None:
        self._file, self._marked = file, marked

    def __call__(self, holds: bool, key: str, expected: str, value: object) -> None:
        if not holds:
            actual = "" if value is None else f", found {value!r}"
            line = self._marked.line(*key.split("."))
            raise DataError(self._file, f"expected {expected}{actual}", line=line, field=key)

    def number(self, value: Any, key: str, above: float) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        self(is_number and value > above, key, f"a number above {above:g}", value)
        return float(value)

    def texts(self, value: Any, key: str) -> tuple[str, ...]:
        is_list = isinstance(value, list) and all(isinstance(x, str) for x in value)
        self(is_list, key, "a list of names", value)
        return tuple(value)


def _fields(value: Any, check: _Check) -> dict[str, dict[str, str]]:
    if value is None:
        return {}
    expected = f"names with their kind ({', '.join(_KINDS)}) under {', '.join(sorted(_PARTS))}"
    check(isinstance(value, dict), "fields", expected, value)
    for part, names in value.items():
        check(part in _PARTS and isinstance(names, dict), f"fields.{part}", expected, names)
        for name, kind in names.items():
            check(kind in _KINDS, f"fields.{part}.{name}", f"one of {', '.join(_KINDS)}", kind)
    return {part: dict(names) for part, names in value.items()}


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
