"""Guesses a definition from samples of tables: what columns mean, kinds of fields, labels, half-lives.

Names of columns decide first, then their values. ``recsys init`` shows the guess; a person corrects the file.
"""

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

import msgspec
import numpy as np
import yaml

from recsys.app.data_files import Entities, Interactions, list_of, moment_of
from recsys.features.columns import RESERVED

_USER: Final = (
    "user|visitor|customer|viewer|member|account|reviewer|profile|player|reader|listener|guest"
    "|traveller|traveler|household|shopper|buyer|client|subscriber|person"
)
_ITEM: Final = (
    "item|movie|product|article|video|song|track|book|news|post|sku|asin|isbn|recipe|anime|game|episode"
    "|podcast|hotel|listing|job|course|restaurant|document|story|photo|stock|film|venue|poi|business"
)
_ROLES: Final = {
    "user": rf"({_USER})s?(_?(id|no|key))?|u_?id",
    "item": rf"(parent_)?({_ITEM})s?(_?(id|no|key|code))?|content_?id|i_?id",
    "time": r".*(time|timestamp|date|datetime)(_?(ms|s|utc))?|ts|t|at|when|.*_at",
    "rating": r".*(rating|score|stars)|rate|overall",
    "kind": r".*(event|action|behaviou?r|interaction)(_?(type|name|kind))?|type|kind",
    "request": r"(request|impression|list|slate|search|query)_?id",
    "visit": r"session_?id",
}
_SHOWN: Final = r"impressions?|shown?|exposures?|served?|displayed"
_NEGATIVE: Final = r".*(hide|dislike|hate|downvote|skip|unlike|remove|block|report|unfollow|refund).*"
_WEIGHTS: Final = {r".*(purchase|buy|bought|transaction|order|booked).*": 5, r".*(cart|basket).*": 3}
_UNITS: Final = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_CODE: Final = r".*_(id|code)|.*(category|genre|brand|type|section|topic|gender)"
_LIST: Final = r"[^|]+(\|[^|]+)+"
_LONGEST: Final = 4096  # vector of a definition
_FEW: Final = 50  # values of a column of kinds, at most
_WHOLE: Final = 2_000  # first rows of a sample, in which engagements are sought among shown items …
_APART: Final = 0.1  # … and the least share of them that is found where they have rows of their own
_FOUND: Final = 20  # engagements, for a share
_REPEATED: Final = 0.1  # share of rows from which on items repeat
_RATED: Final = 5  # categories of items with rates: tastes follow any of them
_HOUR_S: Final = 3600.0

Columns = Mapping[str, Sequence[Any]]


@dataclass
class Guess:
    """A guessed definition. ``rows``: file, column, and what it is taken for."""

    definition: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The content of ``app.yaml``."""
        head = "# Guessed by `recsys init`: correct what is wrong. docs/reference/app.md has each key.\n"
        options = {"sort_keys": False, "allow_unicode": True, "width": 100}
        return f"{head}{yaml.safe_dump(self.definition, default_flow_style=None, **options)}"


def guess(
    name: str, samples: Mapping[str, Columns], given: Mapping[str, str], shown_kind: str = "",
    repeated: Callable[[Interactions], float] | None = None,
) -> Guess:  # fmt: skip
    """The definition of an app. ``samples``: some rows by file; ``given``: columns that a person named, by
    role; ``shown_kind``: the kind of rows that are shown items; ``repeated``: see ``repeated_share``, by
    default of the samples. Raises ValueError if no file has users and items."""
    out, tables, merged = Guess({"app": name, "fields": {}}), dict[str, Any](), dict[str, Columns]()
    table: Any
    kinds = _kinds_of_files(samples, given)
    if "interactions" not in kinds.values():
        names = "; ".join(f"{file} has {', '.join(columns)}" for file, columns in samples.items())
        raise ValueError(
            f"no file has a column of users and one of items ({names}): name them with --user and --item"
        )
    for kind in dict.fromkeys(kinds.values()):
        files = [file for file in samples if kinds[file] == kind]
        if not kind:
            why = "not used: no column of items or users; name it with --item or --user"
            out.rows += [(file, "", why) for file in files]
            continue
        columns: Columns = {
            name: [value for file in files for value in samples[file].get(name, ())]
            for name in samples[files[0]]
        }
        roles, part = _roles(columns, given), kind.removesuffix("s")
        if kind == "interactions":
            table, events, rows = _interactions(columns, roles, shown_kind)
        else:
            table, out.definition["fields"][part], rows = _entities(part, columns, roles[part])
        merged[kind], tables[kind] = columns, msgspec.structs.replace(table, files=files)
        for file in files:
            if missing := [n for n in table.columns if n not in samples[file]]:
                lacks = f"{file} lacks column {missing[0]!r} of {files[0]}"
                raise ValueError(f"{lacks}: make one table of both (docs/how-to/own-data.md)")
        out.rows += [(files[0], *row) for row in rows]
        out.rows += [(file, "", f"more rows like those of {files[0]}") for file in files[1:]]
    table, columns = tables["interactions"], merged["interactions"]
    positive = [k for k, v in events.items() if "positive" in str(v)]
    if not positive:
        kinds_met = ", ".join(events) or ", ".join(table.shown)
        what = f"{table.kind!r} has {kinds_met}, expected a kind that tells what viewers like"
        raise ValueError(f"{what}: add such rows, or name another column with --kind")
    share = repeated_share([columns], table) if repeated is None else repeated(table)
    out.definition |= {"events": events, "repeats": share > _REPEATED}
    out.rows.append((table.files[0], "", f"repeats: {share:.0%} of the rows are of an item again"))
    categories = _coarsest(tables, merged, out.definition["fields"].get("item", {}))[:_RATED]
    shown = "list" if table.shown or table.labels else "clicks"
    if table.shown and "view" in events:
        shown = "view"
    features = _features(out.definition, categories, positive, shown)
    out.definition |= {
        "groups": categories[:2],
        "shown": shown,
        "window": "60s",
        "history": {"of": positive, "length": 50},
        "features": {"half_lives": _half_lives(columns, table)} | features,
        "files": {kind: msgspec.to_builtins(table) for kind, table in tables.items()},
    }
    return out


def _kinds_of_files(samples: Mapping[str, Columns], given: Mapping[str, str]) -> dict[str, str]:
    """The kind of each file; empty for one without ids. Of files with users and items, one that has each
    item once, as posts with their writers do, has items if the items of another occur again and again."""
    kinds, ids = dict[str, str](), dict[str, list[str]]()
    for file, columns in samples.items():
        roles = _roles(columns, given)
        kinds[file] = next((f"{part}s" for part in ("item", "user") if part in roles), "")
        if {"user", "item"} <= roles.keys():
            is_log = {"kind", "rating"} & roles.keys()
            kinds[file] = "interactions"
            ids[file] = [] if is_log else list(map(str, columns[roles["item"]]))
    repeat = [file for file, names in ids.items() if len(set(names)) < len(names)]
    for file in ids.keys() - repeat:
        if ids[file] and any(samples[file].keys() - samples[other].keys() for other in repeat):
            kinds[file] = "items"
    return kinds


def _entities(
    part: str, columns: Columns, id_: str
) -> tuple[Entities, dict[str, Any], list[tuple[str, str]]]:
    """A table of items or users, its fields with their kinds, and rows about them."""
    kinds = {n: _kind_of(v, n) for n, v in columns.items() if n != id_}
    units = {n: _unit(_present(columns[n])) for n, kind in kinds.items() if kind == "time"}
    unit = next(iter(units.values()), None)
    kinds |= {n: "" for n, other in units.items() if other != unit}  # a table has one unit
    if part == "user":
        kinds |= {n: "" for n, kind in kinds.items() if isinstance(kind, dict)}
    reserved = RESERVED if part == "user" else (*RESERVED, "age", "near")
    names = _distinct({n: _clean(n) for n in kinds}, reserved)
    about: dict[str, Any] = {"unit": unit} if unit else {}
    table = Entities(id=id_, fields={name: n for n, name in names.items()}, **about)
    rows = [(id_, _taken_for(part, columns[id_]))]
    rows += [(n, _taken_for(kind, columns[n])) for n, kind in kinds.items()]
    return table, {names[n]: kind for n, kind in kinds.items() if kind}, rows


def _features(
    definition: Mapping[str, Any], categories: Sequence[str], positive: Sequence[str], shown: str
) -> dict[str, Any]:
    """Features but half-lives. ``categories`` of items, those that tastes follow; ``positive`` kinds."""
    rates = ["all", "item", "user", *categories, *(f"user×{name}" for name in categories)]
    rates += ["user×item"] if definition["repeats"] else []
    features: dict[str, Any] = {"rates": rates, "near": True}
    fields = definition["fields"]
    times = [name for name, kind in fields.get("item", {}).items() if kind == "time"]
    features |= {"age": times[0]} if times else {}
    if shown == "clicks":
        features |= {"trend": True, "visit": "30m"}
    users = fields.get("user", {}).items()
    if numbers := [f"user.{name}" for name, kind in users if kind == "number"]:
        features["numbers"] = numbers
    if definition["repeats"] and positive:
        features["last"] = {positive[0]: ["user×item"]}
    return features


def _coarsest(
    tables: Mapping[str, Any], merged: Mapping[str, Columns], fields: Mapping[str, Any]
) -> list[str]:
    """Categories of items of three values or more, those with the fewest values first: tastes follow genres
    rather than names."""
    if "items" not in tables:
        return []
    table = tables["items"]
    columns, names = merged["items"], [n for n, k in fields.items() if k == "category"]
    values = {name: set(map(str, _present(columns[table.fields[name]]))) for name in names}
    coarsest = sorted((n for n in names if len(values[n]) > 2), key=lambda n: len(values[n]))
    return [name for name, kind in fields.items() if kind == "list"] + coarsest


def _roles(columns: Columns, given: Mapping[str, str]) -> dict[str, str]:
    """Columns by role, each once."""
    roles = {role: column for role, column in given.items() if column in columns}
    fits = {
        "time": lambda v: _unit(v) is not None,
        "rating": lambda v: bool(_numbers(v)),
        "kind": lambda v: not _numbers(v) and len(set(map(str, v))) <= _FEW,
    }
    for role, pattern in _ROLES.items():
        for column, values in columns.items():
            free = role not in roles and column not in roles.values()
            if free and re.fullmatch(pattern, _clean(column)) and fits.get(role, bool)(values):
                if not any(isinstance(x, dict | list) for x in values):
                    roles[role] = column
    visit, users = roles.pop("visit", ""), columns.get(roles.get("user", "")) or [""]
    is_one = 2 * Counter(map(str, users)).most_common(1)[0][1] > len(users)  # or most have none
    return roles | ({"user": visit} if visit and is_one and "user" not in given else {})


def _interactions(
    columns: Columns, roles: Mapping[str, str], shown_kind: str
) -> tuple[Interactions, dict[str, Any], list[tuple[str, str]]]:
    """The table, its kinds of event with labels, and rows about them."""
    about: dict[str, Any] = {"user": roles["user"], "item": roles["item"]}
    events, rows = dict[str, Any](), list[tuple[str, str]]()
    if "time" in roles:
        about |= {"time": roles["time"], "unit": _unit(columns[roles["time"]])}
        if about["unit"] is None:
            first = f"{roles['time']!r} has {str(columns[roles['time']][0])[:40]!r}"
            raise ValueError(f"{first}, expected times such as 2026-01-31 12:00: convert them")
    else:
        _check_times(columns, roles)
    if shown_kind and "kind" not in roles:
        raise ValueError(f"--shown {shown_kind!r} needs a column of kinds: name it with --kind")
    flags = [n for n, v in columns.items() if n not in roles.values() and _is_flag(v)]
    if all(re.fullmatch(_NEGATIVE, n.lower()) for n in flags):
        flags = []  # without a positive one, each row is a click
    if "kind" in roles:
        about |= {"kind": roles["kind"]}
        counts = Counter(str(x).strip() for x in _present(columns[roles["kind"]]))
        if shown_kind and shown_kind not in counts:
            raise ValueError(f"{roles['kind']!r} has no {shown_kind!r}; it has {', '.join(counts)}")
        about["shown"] = [k for k in counts if k == shown_kind or re.fullmatch(_SHOWN, k.lower())]
        kinds = [kind for kind, _ in counts.most_common() if kind not in about["shown"]]
        if about["shown"]:
            about["shown"] += _shown_kinds(columns, roles, about["shown"])
        about |= {"request": roles["request"]} if about["shown"] and "request" in roles else {}
        names = _event_names(kinds)
        about["names"] = {kind: name for kind, name in names.items() if kind != name}
        events = {name: _label(kind) for kind, name in names.items()}
        if about["shown"] and "view" in events:  # what was seen of a logged list
            events["view"] = "none"
    elif "rating" in roles:
        about["rating"] = roles["rating"]
        numbers = sorted(_numbers(columns[roles["rating"]]))
        least = max(numbers) * 0.8
        above = sum(x >= least for x in numbers) / len(numbers)
        if not 0.05 <= above <= 0.95:
            least = numbers[len(numbers) // 2]
        about["at_least"] = round(least, 3)
        events = {"like": "positive", "rate": "none"}
        share = sum(x >= least for x in numbers) / len(numbers)
        what = f"from {least:g} on: like ({share:.0%} of the rows), else: rate"
        rows.append((roles["rating"], what))
    elif flags:
        about |= {"labels": _event_names(flags)}
        about |= {"request": roles["request"]} if "request" in roles else {}
        events = {kind: _label(kind) for kind in about["labels"].values()}
    else:
        events = {"click": "positive"}
        rows.append(("", "each row: click. If a column says what happened, name it with --kind"))
    table = Interactions(**about)
    rows = [(n, _taken_for(role, columns[n])) for role, n in roles.items()] + rows
    rows += [("", f"event {kind}: {_words(label)}") for kind, label in events.items()]
    rows += [(n, _taken_for("not read", v)) for n, v in columns.items() if n not in table.columns]
    return table, events, rows


def _check_times(columns: Columns, roles: Mapping[str, str]) -> None:
    """Raises ValueError for a column of times with too many values that are none: without it, rows would
    count in the order of the file."""
    for name, values in columns.items():
        if name not in roles.values() and re.fullmatch(_ROLES["time"], _clean(name)):
            bad = [value for value in values if _unit([value]) is None]
            if 0 < len(bad) <= len(values) / 2:
                raise ValueError(
                    f"{name!r} has {str(bad[0])[:40]!r}, and in all {len(bad)} of {len(values)} values that "
                    "are no times, expected ones such as 2026-01-31 12:00: correct these rows or leave them "
                    "out, or name another column with --time"
                )


def _shown_kinds(columns: Columns, roles: Mapping[str, str], shown: Sequence[str]) -> list[str]:
    """Kinds of engagement whose rows are shown items, since nearly none has a row of its own as one. Rows of
    one viewer may be far from each other in a sample, so few are enough."""
    names = [roles[role] for role in ("user", "item", "request") if role in roles]
    rows = list(zip(*(map(str, columns[name]) for name in names), strict=True))[:_WHOLE]
    hits_of = dict[str, list[bool]]()
    kinds = [str(kind).strip() for kind in columns[roles["kind"]][:_WHOLE]]
    pairs = {row for row, kind in zip(rows, kinds, strict=True) if kind in shown}
    for row, kind in zip(rows, kinds, strict=True):
        if kind not in shown:
            hits_of.setdefault(kind, []).append(row in pairs)
    return [k for k, hits in hits_of.items() if len(hits) >= _FOUND and sum(hits) < _APART * len(hits)]


def _event_names(kinds: Sequence[str]) -> dict[str, str]:
    """Names of kinds of event, or of columns of 0 and 1; no two alike, and none a counter's."""
    return _distinct({kind: _clean(kind).removeprefix("is_") for kind in kinds}, ["shown", "watch"])


def _distinct(wanted: Mapping[str, str], reserved: Sequence[str]) -> dict[str, str]:
    """The wanted names by key, numbered where one is reserved or another key has it."""
    names: dict[str, str] = {}
    for key, name in wanted.items():
        is_taken = name in names.values() or name in reserved
        names[key] = f"{name}_{len(names) + 1}" if is_taken else name
    return names


def _label(kind: str) -> Any:
    if re.fullmatch(_NEGATIVE, kind.lower()):
        return {"label": "negative", "weight": 1}
    weight = next((w for pattern, w in _WEIGHTS.items() if re.fullmatch(pattern, kind.lower())), 1)
    return "positive" if weight == 1 else {"label": "positive", "weight": weight}


def _words(label: Any) -> str:
    return f"{label['label']}, weight {label['weight']}" if isinstance(label, dict) else str(label)


def _half_lives(columns: Columns, table: Interactions) -> list[str]:
    """About a fiftieth and all of the span of the data, without its outer hundredths: the slow counters hold
    what viewers have always come back to."""
    times = sorted(_seconds(columns[table.time])) if table.time else []
    edge = len(times) // 100
    span_h = (times[-1 - edge] - times[edge]) / _HOUR_S if times else 0.0
    fast, slow = min(max(span_h / 50, 1.0), 72.0), min(max(span_h, 24.0), 8760.0)
    return [f"{hours:.0f}h" for hours in (fast, slow)]


def repeated_share(blocks: Iterable[Columns], table: Interactions) -> float:
    """Share of the rows in which viewers come back to items: two kinds of event with one are no return.
    State: 8 bytes a row."""
    names, hashes = [name for name in (table.user, table.item, table.kind) if name], array("q")
    for columns in blocks:
        missing = [None] * len(columns.get(table.user, ()))  # lines of JSON needn't have all
        rows = zip(*(columns.get(name, missing) for name in names), strict=True)
        hashes.extend(hash(tuple(map(str, row))) for row in rows if None not in row)
    return 1 - len(np.unique(np.array(hashes, np.int64))) / max(1, len(hashes))


def _kind_of(values: Sequence[Any], name: str) -> Any:
    """The kind of a field; empty for content such as titles."""
    some = [x if (listed := list_of(x)) is None else listed for x in _present(values)]
    if not some:
        return ""
    if all(isinstance(x, bool) for x in some):
        return "category"
    if any(isinstance(x, list) for x in some):
        lists = [x if isinstance(x, list) else [x] for x in some]
        numeric = all(isinstance(x, int | float) for x in lists[0])
        same = len(set(map(len, lists))) == 1
        is_vector = numeric and same and 1 < len(lists[0]) <= _LONGEST
        return {"vector": len(lists[0])} if is_vector else "" if len(lists[0]) > _LONGEST else "list"
    is_code = re.fullmatch(_CODE, _clean(name))
    if _numbers(some) and not is_code:
        return "time" if _unit(some) and min(_numbers(some)) > 1e8 else "number"
    if _unit(some) == "iso":
        return "time"
    if sum(bool(re.fullmatch(_LIST, str(x))) for x in some) > 0.1 * len(some):
        return "list"
    return "category" if len(set(map(str, some))) <= len(some) // 2 else ""


def _taken_for(kind: Any, values: Sequence[Any]) -> str:
    """Description of a column in the table of the guess; of a number with three decimals and of an id with
    one, how it is read; of numbers that aren't, what is to do."""
    floats = [x for x in values if isinstance(x, str) and re.fullmatch(r"\d+\.0", x)]
    if kind in ("user", "item") and floats:
        return f"{kind}; {floats[0]} isn't {floats[0][:-2]}"
    thousands = [x for x in values if isinstance(x, str) and re.fullmatch(r"\d{1,3}\.\d{3}", x)]
    if kind == "number" and thousands:
        return f"number; {thousands[0]} is {float(thousands[0]):g}"
    commas = [x for x in values if isinstance(x, str) and re.fullmatch(r"\d+,\d+", x)]
    remedy = f"; for numbers, write {commas[0]} with a point" if commas else ""
    return str(kind or "content that isn't read") + remedy


def _present(values: Sequence[Any]) -> list[Any]:
    return [x for x in values if x not in (None, "")]


def _is_flag(values: Sequence[Any]) -> bool:
    return {str(x).strip().lower() for x in values} in ({"0", "1"}, {"true", "false"})


def _numbers(values: Sequence[Any]) -> list[float]:
    """All values as numbers; empty if more than a twentieth aren't numbers."""
    numbers = []
    for value in values:
        with suppress(TypeError, ValueError, OverflowError):
            numbers.append(float(value))
    numbers = [number for number in numbers if isfinite(number)]
    return numbers if len(numbers) >= 0.95 * len(values) else []


def _unit(values: Sequence[Any]) -> str | None:
    """The unit of times, by their size; iso for texts; None if they aren't times."""
    if numbers := _numbers(values):
        middle = sorted(numbers)[len(numbers) // 2]
        return next((unit for unit, per_s in _UNITS.items() if 1e8 < middle / per_s < 1e11), None)
    return "iso" if len(_seconds(values)) >= 0.95 * len(values) > 0 else None


def _seconds(values: Sequence[Any]) -> list[float]:
    """Times in seconds; others are left out."""
    if numbers := _numbers(values):
        per_s = _UNITS[_unit(values) or "s"]
        return [x / per_s for x in numbers]
    seconds = []
    for value in values:
        with suppress(ValueError):
            seconds.append(moment_of(str(value)).timestamp())
    return seconds


def _clean(name: str) -> str:
    """A column's name as one of the definition, of at most 56 letters: userId becomes user_id."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.partition(":")[0]).lower()
    plain = unicodedata.normalize("NFKD", snake).encode("ascii", "ignore").decode()  # ö becomes o
    text = re.sub(r"\W+", "_", plain).strip("_")
    return (text if text[:1].isalpha() else f"x_{text}")[:56]
