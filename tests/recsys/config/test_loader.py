"""Settings: the file over the run, the environment over both, and errors that say where."""

import os
import re
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from recsys.config.loader import PREFIX, ConfigError, load
from recsys.config.log_config import LogConfig
from recsys.config.policy_config import PolicyConfig
from recsys.config.removed_keys import REMOVED
from recsys.config.safety_config import DoorsConfig
from recsys.config.system_config import (
    RUNS,
    Config,
    ParameterServerConfig,
    cluster,
    digest,
    laptop,
    named_ports,
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


def written(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_a_local_port_is_named_beside_a_certificate_alone() -> None:
    names = {
        *named_ports(replace(laptop(), doors=DoorsConfig(local_port=8_443))),
        *named_ports(replace(laptop(), doors=DoorsConfig(certificate="both.pem"))),
    }
    assert names == {"serve.port", "serve.dashboard_port"}
    doors = DoorsConfig(certificate="both.pem", local_port=8_443)
    assert named_ports(replace(laptop(), doors=doors))["doors.local_port"] == 8_443


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_name_is_its_run(name: str) -> None:
    assert load(name) == RUNS[name]()


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "extends: cluster\n"
        "log: {url: 'kafka://broker:9092'}\n"
        "model: {hidden: [8, 4]}\n"
        "policy: {weights: {like: 2}}\n",
    )
    base = cluster()
    assert load(file) == replace(
        base,
        name="mine",
        log=LogConfig(url="kafka://broker:9092", partitions=base.log.partitions),
        model=replace(base.model, hidden=(8, 4)),
        policy=replace(base.policy, weights=base.policy.weights | {"like": 2.0}),
    )


def test_a_file_that_extends_nothing_is_a_laptop(tmp_path: Path) -> None:
    assert load(written(tmp_path, "name: dev\n")) == replace(laptop(), name="dev")
    assert load(written(tmp_path, "")) == replace(laptop(), name="mine")


def test_a_removed_key_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "drift:\n  watch: true\n  react: true\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:3: drift.react is gone: an alarm .* Remove"):
        load(file)
    monkeypatch.setenv("RECSYS__DRIFT__MOST_GATHERED", "4")
    with pytest.raises(ConfigError, match=r"RECSYS__DRIFT__MOST_GATHERED: drift.most_gathered is gone"):
        load("laptop")


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS__LOG__PARTITIONS", "8")
    monkeypatch.setenv("recsys__serve__dashboard", "false")
    monkeypatch.setenv("RECSYS__MODEL__HIDDEN", "[64]")
    monkeypatch.setenv("RECSYS__POLICY__WEIGHTS__LONG_VIEW", "2.5")
    monkeypatch.setenv("RECSYS__SESSIONS", '{"seen": 9}')
    monkeypatch.setenv("RECSYS__STATE", "elsewhere")
    config = load(written(tmp_path, "log: {partitions: 2, retention_hours: 5}\n"))
    assert (config.log.partitions, config.log.retention_hours) == (8, 5)
    assert config.model.hidden == (64,)
    assert config.policy.weights == laptop().policy.weights | {"long_view": 2.5}
    assert config.serve == replace(laptop().serve, dashboard=False)
    assert config.sessions == replace(laptop().sessions, seen=9)
    assert config.state == "elsewhere"


def test_fixed_slots_come_from_the_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "policy: {fixed: {3: v7, 0: 12}}\n")
    assert load(file).policy.fixed == {0: 12, 3: "v7"} and list(load(file).policy.fixed) == [0, 3]
    monkeypatch.setenv("RECSYS__POLICY__FIXED", '{"3": "v8", "1": "v9"}')
    config = load(file)
    assert config.policy.fixed == {0: 12, 1: "v9", 3: "v8"}
    again = msgspec.json.decode(msgspec.json.encode(config), type=Config)  # as a replica is told
    assert again == config and digest(again) == digest(config)


def test_a_policy_keeps_the_digest_that_is_on_logs() -> None:
    assert digest(PolicyConfig()) == "25d988565a192a324b8b1027e0a3c2d8"
    assert digest(PolicyConfig(relative=True)) != digest(PolicyConfig())


def test_a_policy_that_an_earlier_version_stored_has_its_digest() -> None:
    stored = msgspec.to_builtins(PolicyConfig())
    del stored["relative"]
    assert digest(msgspec.convert(stored, PolicyConfig)) == digest(PolicyConfig())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("state: x\nlogg: {}\n", ["mine.yaml:2", "no logg", "log, "]),
        ("log:\n  urll: x\n", ["mine.yaml:2", "no log.urll", "url"]),
        ("log:\n  partitions: four\n", ["mine.yaml:2", "log.partitions", "'four'", "int"]),
        ("log: 3\n", ["mine.yaml:1", "log is 3", "a mapping"]),
        ("log:\n", ["mine.yaml:1", "log is None", "a mapping"]),
        ("log: {partitions: 0}\n", ["mine.yaml", "log.partitions is 0", "1 to 1024"]),
        ("serve: {host: 'h:80/x'}\n", ["mine.yaml", "serve.host is 'h:80/x'", "without a port"]),
        ("policy: {sources: {vectr: 2}}\n", ["mine.yaml", "policy.sources.vectr is 2", "similar"]),
        ("policy: {fixed: {100: v1}}\n", ["mine.yaml", "policy.fixed.100 is 'v1'", "0 to 99"]),
        ("policy: {fixed: {0: 7, 2: '7'}}\n", ["mine.yaml", "policy.fixed.0 is 7", "one rank"]),
        ("policy: {fixed: {0: [v1]}}\n", ["mine.yaml:1", "policy.fixed.0 is ['v1']", "str"]),
        ("parameter_server: {delta_format: int4}\n", ["mine.yaml", "delta_format is 'int4'", "'int8'"]),
        ("nodes: 2\n", ["mine.yaml", "nodes is 2", "kafka://"]),
        ("\nextends: lap\n", ["mine.yaml:2", "extends is 'lap'", "cluster, laptop"]),
        ("extends: [laptop]\n", ["mine.yaml:1", "extends is ['laptop']"]),
        ("- a\n", ["mine.yaml:1", "a mapping"]),
        ("a: [\n", ["mine.yaml:2"]),
    ],
)
def test_an_error_in_a_file_says_where_and_what_is_known(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    missing = [part for part in expected if part not in str(caught.value)]
    assert not missing, str(caught.value)


def float_keys(kind: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, its in get_type_hints(kind).items():
        if its is float:
            yield (*above, name)
        elif is_dataclass(its):
            yield from float_keys(its, (*above, name))


KEYS = [*float_keys(Config), ("policy", "weights", "like"), ("surfaces", "home", "weights.like"),
        ("surfaces", "home", "weights", "like")]  # fmt: skip


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_each_number_is_finite(tmp_path: Path, value: str) -> None:
    """JSON has no others: what a system is started with would be stored as null."""
    assert len(KEYS) > 70
    for key in KEYS:
        text = value
        for name in reversed(key):
            text = f"{{{name}: {text}}}"
        with pytest.raises(ConfigError, match=f"{key[-1]} is -?(inf|nan), expected"):
            load(written(tmp_path, text))


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("RECSYS__LGO__URL", "x", ["RECSYS__LGO__URL", "no lgo", "log, "]),
        ("RECSYS__LOG__URLL", "x", ["RECSYS__LOG__URLL", "no log.urll", "partitions"]),
        ("RECSYS__LOG__PARTITIONS", "four", ["RECSYS__LOG__PARTITIONS", "'four'", "int"]),
        ("RECSYS__LOG", "sqlite", ["RECSYS__", "log"]),
        ("RECSYS__MODEL__HIDDEN", "12", ["RECSYS__MODEL__HIDDEN", "array"]),
        ("RECSYS__POLICY__WEIGHTS", "like", ["RECSYS__POLICY__WEIGHTS", "a mapping"]),
    ],
)
def test_an_error_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: list[str]
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load("laptop")
    missing = [part for part in expected if part not in str(caught.value)]
    assert not missing, str(caught.value)


def test_surfaces_come_from_the_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("surfaces:\n  home: {sources: {popular: 9}, weights.like: 3}\n")
    home = {"sources": {"popular": 9}, "weights.like": 3}
    assert load(str(file)).surfaces == {"home": home}
    monkeypatch.setenv("RECSYS__SURFACES", '{"home": {"explore": 0.5}, "detail": {"quota": 0}}')
    both = {"home": home | {"explore": 0.5}, "detail": {"quota": 0}}
    assert load(str(file)).surfaces == both


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_is_refused_with_what_holds_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    section, _, name = key.partition(".")
    expected = f"{key} is gone: {re.escape(REMOVED[key])}. Remove the key"
    with pytest.raises(ConfigError, match=f":1: {expected}"):
        load(written(tmp_path, f"{section}: {{{name}: 1}}\n"))
    monkeypatch.setenv(f"RECSYS__{section}__{name}".upper(), "1")
    with pytest.raises(ConfigError, match=f"environment variable .*: {expected}"):
        load("laptop")


def test_a_name_that_is_neither_run_nor_file() -> None:
    with pytest.raises(ConfigError, match="'desktop', expected one of cluster, laptop or"):
        load("desktop")


def test_a_table_is_set_by_its_own_path_and_the_others_keep_the_models(tmp_path: Path) -> None:
    from recsys.config.system_config import override, tables_of

    file = written(
        tmp_path,
        "model:\n"
        "  ttl_s: 60\n"
        "  tables:\n"
        "    features: {budget_mb: 64, admit_after: 2, sketch_mb: 0.5}\n"
        "    users: {ttl_s: 0, learning_rate: 0.5}\n",
    )
    config = override(load(file), {"model.tables.items.budget_mb": 3})
    features, items, users = tables_of(config.model)
    assert (features.budget_mb, features.admit_after, features.sketch_mb) == (64, 2, 0.5)
    assert (items.budget_mb, items.admit_after, items.ttl_s) == (3, 1, 60)
    assert (users.ttl_s, users.learning_rate) == (0, 0.5)
    assert items.learning_rate == 0.05 and features.ttl_s == 60
    assert features.learning_rate == config.model.row_rate


@pytest.mark.parametrize(
    "said", ["admit_after: 0", "budget_mb: -1", "ttl_s: -2", "learning_rate: -1", "sketch_mb: 0"]
)
def test_a_table_that_cannot_be_is_refused_by_its_key(tmp_path: Path, said: str) -> None:
    with pytest.raises(ConfigError, match=f"model.tables.*{said.partition(':')[0]}"):
        load(written(tmp_path, f"model: {{tables: {{items: {{{said}}}}}}}\n"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"min_insync": 2, "replication": 1}, "log.min_insync is 2, expected at most log.replication"),
        ({"ca_file": "/ca.pem"}, "log.ca_file is '/ca.pem', expected none without log.tls"),
        ({"cert_file": "/c.pem"}, "log.cert_file is '/c.pem', expected none without log.tls"),
        ({"tls": True, "key_file": "/k.pem"}, "log.key_file is '/k.pem', expected none without log.cert"),
        ({"user": "me"}, "log.user is 'me', expected none without log.sasl"),
        ({"sasl": "plain"}, "log.user is '', expected a name with log.sasl"),
        ({"sasl": "gssapi"}, "log.sasl is 'gssapi', expected one of"),
        ({"prefix": "a b"}, "log.prefix is 'a b', expected at most 100 of"),
        ({"compression": "lz4"}, "log.compression is 'lz4', expected one of"),
    ],
)
def test_settings_of_brokers_that_do_not_fit_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LogConfig("kafka://broker:9093", **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ca_file": "/ca"}, "ca_file is '/ca', expected none without parameter_server.tls"),
        ({"client_ca_file": "/ca"}, "client_ca_file is '/ca', expected none without"),
        ({"tls": True, "ca_file": "/ca"}, "cert_file is '', expected a file with parameter_server.tls"),
        ({"tls": True, "key_file": "/k"}, "key_file is '/k', expected none without .*cert_file"),
    ],
)
def test_settings_of_shards_tls_that_do_not_fit_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"parameter_server.{expected}"):
        ParameterServerConfig(**settings)
    ParameterServerConfig(tls=True, cert_file="/both")  # the machine's authorities, the key in it


def test_settings_of_brokers_fit_together() -> None:
    LogConfig("kafka://b:1", replication=3, min_insync=2, sasl="plain", user="me", password_file="/p")
    LogConfig("kafka://b:1", tls=True, ca_file="/ca", cert_file="/c", key_file="/k", min_insync=2)


@pytest.mark.parametrize(
    ("text", "start_ms", "speed"),
    [
        ("{start: 2020-01-01, speed: 100}", 1_577_836_800_000, 100.0),
        ("{start: 2020-01-01T00:00:00Z}", 1_577_836_800_000, 1.0),
        ("{start: 1577836800000, speed: 0.5}", 1_577_836_800_000, 0.5),
        ("{speed: 2}", None, 2.0),
        ("{}", None, 1.0),
    ],
)
def test_a_clock_starts_at_iso_time_or_milliseconds(
    tmp_path: Path, text: str, start_ms: int | None, speed: float
) -> None:
    file = tmp_path / "scaled.yaml"
    file.write_text(f"clock: {text}")
    clock = load(str(file)).clock
    assert (clock.start_ms, clock.speed) == (start_ms, speed)
    assert clock.is_machine is (text == "{}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{speed: 0}", "clock.speed is 0.0, expected above 0, at most 100000"),
        ("{speed: -1}", "clock.speed is -1.0, expected above 0"),
        ("{speed: .inf}", "clock.speed is inf, expected a finite number"),
        ("{speed: .nan}", "clock.speed is nan, expected a finite number"),
        ("{speed: 1.0e6}", "clock.speed is 1000000.0, expected above 0, at most 100000"),
        ("{start: tomorrow}", "clock.start is 'tomorrow', expected ISO time or epoch milliseconds"),
        ("{start: -5}", "clock.start is -5, expected ISO time"),
        ("{start: 9000-01-01}", "clock.start is '9000-01-01', expected ISO time"),
        ("{start: 2020-01-01T00:00+99:00}", "clock.start is"),
    ],
)
def test_a_clock_that_cannot_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "scaled.yaml"
    file.write_text(f"clock: {text}")
    with pytest.raises(ConfigError) as error:
        load(str(file))
    assert message in str(error.value)


def test_a_clock_of_several_nodes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scaled.yaml"
    file.write_text(
        "{nodes: 2, clock: {speed: 2}, log: {url: 'kafka://a:1'}, sessions: {url: 'redis://b:2'}}"
    )
    with pytest.raises(ConfigError, match="nodes is 2, but clock is start '', speed 2.0"):
        load(str(file))
