"""A definition reads back as it was built; each error names file, line, key, value and remedy."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.app.app_file import app_of, read_app
from recsys.app.definition import CLICK_RATES, App, EventKind, Field
from recsys.config.policy_config import SOURCES, WATCH, PolicyConfig
from recsys.config.system_config import Config
from recsys.config.yaml_with_lines import YamlError
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA

ROOT = Path(__file__).parent.parent.parent.parent
DIGEST_OF_THE_FEED = "6e719fc155844ed5957347979c02613d"  # as before features could be declared


def yaml_of(app: App) -> str:
    """The definition as a file."""
    declared = app.features
    fields = {
        part: {n: {"vector": f.length} if f.kind == "vector" else f.kind for n, f in names.items()}
        for part, names in app.fields.items()
    }
    content: dict[str, Any] = {
        "app": app.name,
        "events": {
            name: {"label": event.label or "none", "weight": event.weight}
            for name, event in app.events.items()
        },
        "fields": fields,
        "groups": list(app.groups),
        "shown": app.shown,
        "window": app.window_s,
        "history": {"of": list(declared.history_of), "length": app.history},
        "repeats": app.repeats,
        "features": {
            "half_lives": [f"{hours:g}h" for hours in declared.half_lives_h],
            "rates": list(declared.entities),
            "age": declared.item_age,
            "near": declared.near,
            "list": list(declared.list_context) or ((declared.whole_list or app.shown != "list") and []),
        },
        "sources": app.sources,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


names = st.from_regex(r"[a-z][a-z0-9_.-]{0,9}", fullmatch=True).filter(
    lambda name: name not in ("shown", "watch", "true", "false", "null", "yes", "no", "on", "off")
)
weights = st.floats(0.01, 1000).map(lambda weight: round(weight, 2))


@st.composite
def apps(draw: st.DrawFn) -> App:
    kinds = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    labels = st.sampled_from(["positive", "negative", ""])
    events = {kind: EventKind(draw(labels), draw(weights)) for kind in kinds}
    events[kinds[0]] = EventKind("positive", draw(weights))
    plain = st.sampled_from(["category", "list", "number"]).map(Field)
    vector = st.integers(1, 64).map(lambda length: Field("vector", length))
    fields = {
        "item": draw(st.dictionaries(names, plain | vector, max_size=4)),
        "user": draw(st.dictionaries(names, plain, max_size=3)),
    }
    texts = [n for n, f in fields["item"].items() if f.kind in ("category", "list")]
    groups = tuple(draw(st.lists(st.sampled_from(texts), unique=True))) if texts else ()
    rates = st.sampled_from(["all", "user", "item", "user×item", "profile×item", "item×context"])
    entities = tuple(draw(st.lists(rates, unique=True)))
    compared = st.lists(st.sampled_from(entities), unique=True) if entities else st.just([])
    shown = draw(st.sampled_from(["view", "list", "clicks"]))
    hours = st.lists(st.integers(1, 400), min_size=1, max_size=4, unique=True)
    return App(
        name=draw(names),
        events=events,
        fields=fields,
        groups=groups,
        shown=shown,
        window_s=float(draw(st.integers(1, 100_000))),
        history=draw(st.integers(1, 200)),
        repeats=draw(st.booleans()),
        sources=draw(st.dictionaries(st.sampled_from(SOURCES), st.integers(0, 1000))),
        features=Declared(
            half_lives_h=tuple(sorted(map(float, draw(hours)))),
            entities=entities,
            history_of=tuple(draw(st.lists(st.sampled_from(kinds), unique=True))),
            item_age=draw(st.booleans()),
            list_context=(ranked := tuple(draw(compared))),
            whole_list=shown == "list" and (bool(ranked) or draw(st.booleans())),
        ),
    )


@settings(max_examples=60, deadline=None)
@given(apps())
def test_a_definition_reads_back_as_it_was_built(app: App) -> None:
    read = app_of(yaml_of(app))
    assert read == app and read.digest == app.digest
    assert read.feature_set().digest == app.feature_set().digest


# A definition, the line of its fault, and what the error says.
FAULTS = [
    ("", 1, "expected a mapping, found None"),
    ("[]", 1, "expected a mapping, found []"),
    ("app: news\nevents: [", 2, "expected the node content"),
    ("app: a\napp: b", 2, "the key 'app' is repeated"),
    ("app: a\ncolour: red", 2, "unknown key 'colour'; there are app, events, features, fields"),
    ("app: 3", 1, "app is 3, expected a name of letters"),
    ("events: {}", 1, "events is {}, expected kinds of engagement, e.g. {click: positive}"),
    (
        "events:\n" + "".join(f"  k{n}: positive\n" for n in range(57)),
        1,
        "events is 57, expected at most 56 kinds with a label",
    ),
    ("events:\n  click: maybe", 2, "events.click is 'maybe', expected one of positive, negative"),
    ("events:\n  click: none", 1, "events is ['click'], expected at least one kind with label: pos"),
    ("events:\n  click: positive\n  1x: none", 3, "events.1x is '1x', expected a name of letters"),
    ("events:\n  watch: positive", 2, "events.watch is 'watch', expected another name: this one is"),
    ("events:\n  shown: positive", 2, "events.shown is 'shown', expected another name: this one is"),
    ("events:\n  click: {label: positive, wait: 3}", 2, "unknown key 'wait'; there are label, value, weigh"),
    (
        "events:\n  click:\n    label: positive\n    weight: 0",
        4,
        "events.click.weight is 0, expected a number above 0",
    ),
    ("fields: 3", 1, "expected a mapping, found 3"),
    ("fields:\n  thing: {}", 2, "unknown key 'thing'; there are context, item, user"),
    ("fields:\n  item: 3", 2, "fields.item is 3, expected names with their kinds"),
    ("fields:\n  item:\n    a: text", 3, "fields.item.a is 'text', expected one of category, list"),
    ("fields:\n  item:\n    a b: list", 3, "fields.item.a b is 'a b', expected a name of letters"),
    ("fields:\n  item:\n    a: vector", 3, "fields.item.a is 'vector', expected {vector: LENGTH}"),
    ("fields:\n  item: {a: {vector: 2.5}}", 2, "fields.item.a is 2.5, expected a whole number of"),
    ("fields:\n  user: {a: {vector: 2}}", 2, "fields.user.a is 'vector', expected {vector: LENGTH}"),
    ("groups: author", 1, "groups is 'author', expected a list of names"),
    ("groups:\n  - author", 2, "groups.0 is 'author', expected an item field of kind category or"),
    ("fields: {item: {a: number}}\ngroups: [a]", 2, "groups.0 is 'a', expected an item field of ki"),
    ("shown: sometimes", 1, "shown is 'sometimes', expected one of view, list, clicks"),
    ("page: {layout: grid}", 1, "page.layout is 'grid', expected one of swipe, list"),
    ("page: {colour: red}", 1, "unknown key 'colour'; there are duration, emblem, layout"),
    ("page: {names: {buy: Buy}}", 1, "unknown key 'buy'; there are click"),
    ("page: {names: {click: ''}}", 1, "page.names.click is '', expected what a button says, 1 to"),
    ("page: {title: [a]}", 1, "page.title is ['a'], expected a name"),
    ("rendered: yes please", 1, "rendered is 'yes please', expected true or false"),
    ("rendered: true", 1, "rendered is True, expected false with shown: view"),
    ("shown: clicks\nrendered: true", 2, "rendered is True, expected false with shown: clicks"),
    ("window: 3 weeks", 1, "window is '3 weeks', expected a duration of up to a year, e.g. 90s"),
    ("window: 0", 1, "window is 0, expected a duration of up to a year"),
    ("window: .nan", 1, "window is nan, expected a duration of up to a year"),
    ("repeats: often", 1, "repeats is 'often', expected true or false"),
    (
        "features: all",
        1,
        "features is 'all', expected a mapping with against, age, counts, distinct, expressions, fu",
    ),
    (
        "features:\n  speed: 1",
        2,
        "unknown key 'speed'; there are against, age, counts, distinct, expressions, functions, ",
    ),
    ("features:\n  half_lives: 6h", 2, "features.half_lives is '6h', expected one to six durations"),
    ("features:\n  half_lives: []", 2, "features.half_lives is [], expected one to six durations"),
    ("features:\n  half_lives:\n  - 1h\n  - x", 4, "features.half_lives.1 is 'x', expected a durati"),
    ("features:\n  rates:\n  - brand", 3, "rates: entity 'brand' isn't one, or a pair, of user, con"),
    ("features:\n  rates: [item, item]", 2, "features.rates.1 is 'item', expected each name once"),
    (
        "features:\n  rates: [user×item, user * item]",
        2,
        "features.rates.1 is 'user * item', expected each name once",
    ),
    ("features:\n  age: 1", 2, "features.age is 1, expected true or false"),
    ("features:\n  list: item", 2, "features.list is 'item', expected a list of names"),
    (
        "features:\n  rates: [user]\n  list: [item]",
        3,
        "features.list has 'item', which isn't among features.rates",
    ),
    ("history: 0", 1, "history is 0, expected a whole number of 1 to 200"),
    ("history: {of: [sale]}", 1, "history.of.0 is 'sale', expected one of click"),
    ("history: {length: 201}", 1, "history.length is 201, expected a whole number of 1 to 200"),
    ("history:\n  all: true", 2, "unknown key 'all'; there are length, of"),
    ("sources:\n  magic: 3", 2, "unknown key 'magic'; there are again"),
    ("sources:\n  magic@1: 3", 2, "sources: there is no plug-in 'magic' of the group 'recsys.sources'"),
    ("sources: [popular]", 1, "expected a mapping, found ['popular']"),
    ("sources: {popular: many}", 1, "sources.popular is 'many', expected a whole number of 0 to 1"),
    ("sources: {popular: true}", 1, "sources.popular is True, expected a whole number of 0 to 100"),
    (
        "events:\n  click: {label: positive, value: 3}",
        2,
        "events.click.value is 3, expected a name of letters",
    ),
    (
        "fields:\n  item:\n    item: category\ngroups: [item]",
        3,
        "a group can't be named 'item', which is a built-in entity: rename the field",
    ),
    (
        "fields:\n  item:\n    duration: category",
        3,
        "a group can't be named 'duration', which is a built-in entity: rename the field",
    ),
    (
        "fields:\n  item:\n    age: number\nfeatures: {age: true}",
        3,
        "two columns are named 'item.age': rename the field or the feature",
    ),
    (
        "fields:\n  item:\n    near: number\nfeatures: {near: true}",
        3,
        "two columns are named 'item.near': rename the field or the feature",
    ),
    (
        "fields: {user: {age: number}}\nfeatures:\n  numbers:\n  - age",
        4,
        "features.numbers has 'age', expected one of user.age",
    ),
    (
        "features:\n  numbers: [user.age]",
        2,
        "features.numbers has 'user.age', expected none, since none is declared",
    ),
    (
        "features:\n  rates: [item]\n  against:\n    item: user",
        4,
        "features.against has 'user', which isn't among features.rates: add it there",
    ),
    (
        "features:\n  rates: [item, all]\n  against: {item: all}",
        3,
        "features.against has 'item' against 'all', expected another entity: all rates are relative",
    ),
    ("features:\n  against: [item]", 2, "features.against is ['item'], expected a mapping from na"),
    ("features:\n  against: {item: []}", 2, "features.against.item is [], expected at least one na"),
    ("features:\n  counts: [sale]", 2, "features.counts has 'sale', expected one of click, view"),
    (
        "features:\n  rates: [item]\n  last: {sale: item}",
        3,
        "features.last has 'sale', expected one of click, view",
    ),
    (
        "features:\n  rates: [item]\n  last:\n    click:\n    - user×item",
        4,
        "features.last has 'user×item', which isn't among features.rates: add it there",
    ),
    (
        "features:\n  distinct:\n    sale: {item: user}",
        3,
        "features.distinct has 'sale', expected one of click, view",
    ),
    (
        "features:\n  rates: [item, user×item]\n  distinct:\n    click:\n      user×item: user",
        5,
        "features.distinct.click counts by 'user×item', expected one of features.rates: user or ever",
    ),
    (
        "features:\n  rates: [item]\n  distinct: {click: {user: item}}",
        3,
        "features.distinct.click counts by 'user', expected one of features.rates: user or everybody's",
    ),
    (
        "features:\n  expressions: {band: {bucket: item/shown.fast, at: [1" + "0" * 400 + "]}}",
        2,
        "features.expressions.band.at is [1000",
    ),
    (
        "features:\n  rates: [item]\n  distinct: {click: {item: duration}}",
        3,
        "features.distinct.click.item is 'duration', expected user",
    ),
    (
        "features:\n  distinct: {click: {user: profile}}",
        2,
        "features.distinct.click.user is 'profile', expected item, duration or a categorical field",
    ),
    (
        "features:\n  expressions:\n    x: {sum: [a, b]}",
        3,
        "unknown key 'sum'; there are at, bucket, difference, log, ratio",
    ),
    (
        "features:\n  expressions:\n    x: {log: events, ratio: [events, events]}",
        3,
        "features.expressions.x is {'log': 'events', 'ratio': ['events', 'events']}, expected one of",
    ),
    (
        "features:\n  expressions:\n    x: {bucket: events}",
        3,
        "features.expressions.x is {'bucket': 'events'}, expected one of difference, ratio, log, buck",
    ),
    (
        "features:\n  expressions:\n    x: {bucket: events, at: [1, .inf]}",
        3,
        "features.expressions.x.at is [1, inf], expected ascending numbers",
    ),
    (
        "features:\n  expressions:\n    x: {bucket: events, at: [2, 1]}",
        3,
        "features.expressions.x has the edges [2.0, 1.0], expected ascending numbers, of a bucket",
    ),
    (
        "features:\n  expressions:\n    x: {ratio: events}",
        3,
        "features.expressions.x reads 1 columns, expected: difference 2, ratio 2, log 1, bucket 1",
    ),
    (
        "features:\n  expressions:\n    x: {log: event}",
        3,
        "features.expressions.x reads 'event', which isn't a column; did you mean 'events'?",
    ),
    (
        "features:\n  expressions:\n    x: {log: y}\n    y: {log: x}",
        3,
        "features.expressions.x reads 'y', which is computed after it: declare it before",
    ),
    (
        "features:\n  position: true\n  expressions:\n    x: {log: list.position}",
        4,
        "features.expressions.x reads 'list.position', which isn't a column",
    ),
    (
        "features:\n  expressions:\n    events: {log: hour.sin}",
        1,
        "two columns are named 'events': rename the field or the feature",
    ),
    (
        "features:\n  functions:\n    f: {of: [events]}",
        3,
        "features.functions.f.call is None, expected name@version or module:name@version",
    ),
    (
        "features:\n  functions:\n    f: {call: absent.module:f@1, of: [events]}",
        3,
        "features.functions.f has the call 'absent.module:f@1': plug-in 'absent.module:f' of the group ",
    ),
    (
        "features:\n  functions:\n    f: {call: 'tests.support.operator_app:match@2', of: [events]}",
        3,
        "features.functions.f reads 1 columns, expected: 3",
    ),
]


@pytest.mark.parametrize(("text", "line", "message"), FAULTS)
def test_an_error_names_file_line_key_value_and_remedy(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError, match=re.escape(f"news/app.yaml:{line}: {message}")):
        app_of(text, "news/app.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"app\.yaml: expected a readable definition of an app"):
        read_app(tmp_path / "app.yaml")
    (tmp_path / "app.yaml").write_bytes(b"app: \xff")
    with pytest.raises(ValueError, match=r"app\.yaml: expected a readable definition of an app"):
        read_app(tmp_path / "app.yaml")


@pytest.mark.parametrize("text", ["app: &name [*name]", "[" * 5_000])
def test_a_text_without_an_end_is_refused(text: str) -> None:
    with pytest.raises(YamlError, match="app.yaml:1: an alias within itself, or hundreds of levels"):
        app_of(text)


def test_an_empty_definition_has_defaults() -> None:
    app = app_of("{}")
    assert app == App(features=Declared(near=True)) and app.labels == ("click",)
    assert app.schema.kinds == ("click", "view")  # shown by view, so clients may send one
    assert app_of("shown: list").schema.kinds == ("click",)


def test_units_of_durations() -> None:
    for text, seconds in (("90s", 90), ("1.5m", 90), ("2h", 7200), ("14d", 1_209_600), ("30", 30)):
        assert app_of(f"window: {text}").window_s == seconds


def test_positive_labels_come_first_and_negative_ones_subtract() -> None:
    app = app_of("events: {hide: {label: negative, weight: 3}, view: none, buy: positive}")
    assert app.labels == ("buy", "hide")
    policy = app.config(Config()).policy
    assert policy.weights == {"buy": 1.0, "hide": -3.0, WATCH: 0.0}
    assert policy.relative and policy.temperature == 0.1
    colder = replace(Config(), policy=PolicyConfig(temperature=0.05))
    assert app.config(colder).policy.temperature == 0.05


def test_a_system_takes_window_history_and_sources() -> None:
    app = app_of("shown: list\nwindow: 5m\nhistory: 7\nsources: {popular: 9}\nrepeats: true")
    config = app.config(Config())
    assert config.join.window_s == 300.0 and not config.serve.rendered
    assert app_of("shown: list\nrendered: true").config(Config()).serve.rendered
    assert config.sessions.history == 7 and config.policy.sources == {"popular": 9}
    assert config.sessions.repeats and not app_of("{}").config(Config()).sessions.repeats
    assert app_of("{}").config(Config()).policy.sources == Config().policy.sources
    again = app_of("repeats: true").config(Config()).policy.sources
    assert again == Config().policy.sources | {"again": 20}
    rates = app_of("shown: clicks").config(Config()).model
    assert rates == replace(Config().model, **CLICK_RATES)
    assert app_of("{}").config(Config()).model == Config().model


def test_covisits_fade_with_the_slowest_declared_half_life() -> None:
    fades = {
        text: app_of(text).config(Config()).covisits
        for text in ("{}", "features: {half_lives: [1h, 24h]}", "features: {half_lives: [3d, 40d]}")
    }
    hours = [(covisits.pairs_h, covisits.trend_h) for covisits in fades.values()]
    assert hours == [(168.0, 24.0), (168.0, 24.0), (960.0, 960.0)]


def test_each_part_of_a_definition_changes_its_digest() -> None:
    app = App()
    changed = [
        replace(app, shown="list"),
        replace(app, history=7),
        replace(app, window_s=9.0),
        replace(app, events={"click": EventKind("positive", 2.0)}),
        replace(app, features=Declared(item_age=True)),
        replace(app, events={"click": EventKind("positive", value="price")}),
        replace(app, features=Declared(counts=("click",))),
    ]
    assert len({a.digest for a in (app, *changed)}) == 8


def test_features_of_older_systems_keep_their_digest() -> None:
    assert FeatureSet(FEED_SCHEMA).digest == DIGEST_OF_THE_FEED
    digests = {
        "news": ("161b95b8edce3a8815f3a6ac0f6f2a5c", "e37b99ac69fa09d0eaa018357f6f49bb"),
        "shop": ("1037a55577e86e7347be698cbcf2d755", "99cca646a7f690b656cf15b226febeae"),
        "kuairand": ("703874d837b8c286e5094b026cf9bacd", "adff65de651da760c70f9ab3e02313ba"),
    }
    for name, expected in digests.items():
        package = "plugins" if name == "kuairand" else "examples"
        app = read_app(ROOT / package / name / "app.yaml")
        older = replace(app.features, trend=False, visit_s=0.0, last=(), whole_list=False)
        older = replace(older, near=name != "kuairand")
        app = replace(app, features=older)
        assert (app.digest, app.feature_set().digest) == expected


SHOP = """
app: shop
events: {click: positive, purchase: {label: positive, weight: 5}, not_interested: negative, visit: none}
fields: {item: {category: category, sizes: list, price: number}}
shown: clicks
"""


def test_a_page_shows_a_button_for_each_kind_that_neither_opens_nor_watches() -> None:
    shown = app_of(SHOP).shown_as
    assert (shown["app"], shown["layout"], shown["opens"]) == ("shop", "list", "click")
    buttons = {kind["kind"]: kind["name"] for kind in shown["kinds"] if kind["button"]}
    assert buttons == {"purchase": "Purchase", "not_interested": "Not interested"}
    assert shown["categories"] == ["category", "sizes"] and shown["groups"] == ["category"]
    video = app_of("events: {view: none, long_view: positive, skip: negative, like: positive}").shown_as
    assert (video["layout"], video["opens"]) == ("swipe", None)
    assert [kind["kind"] for kind in video["kinds"] if kind["button"]] == ["like"]
    assert app_of("events: {view: positive}\nshown: clicks").shown_as["opens"] == "view"


def test_a_page_takes_names_and_fields_from_the_definition_and_changes_no_digest() -> None:
    app = app_of(SHOP + "page: {layout: swipe, title: label, names: {purchase: Buy}}")
    assert app.shown_as["layout"] == "swipe"
    assert app.shown_as["fields"]["title"] == ["label"]
    assert app.shown_as["fields"]["price"] == ["price"]
    assert {kind["kind"]: kind["name"] for kind in app.shown_as["kinds"]}["purchase"] == "Buy"
    assert app.digest == app_of(SHOP).digest
