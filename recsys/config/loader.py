"""Loads the configuration: a named run, overridden by a YAML file, overridden by the environment.

``load("laptop")`` is the run of that name; ``load("mine.yaml")`` reads a file like

    extends: cluster          # a run's name; default: laptop
    log: {url: "kafka://broker:9092"}

and ``RECSYS__LOG__URL=kafka://broker:9092`` in the environment overrides both. The types are the dataclasses
of ``recsys.config.system_config``; an unknown key is an error that names its position and the known keys, or
what holds instead of a key that is gone.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from recsys.config.removed_keys import REMOVED
from recsys.config.system_config import RUNS, Config
from recsys.config.yaml_with_lines import YamlError, YamlWithLines

PREFIX = "RECSYS__"
KeyPath = tuple[str, ...]  # e.g. ("log", "url")


class ConfigError(ValueError):
    """An error in the configuration, with its position and the expectation."""


def load(name_or_yaml: str, adapt: Callable[[Config], Config] = lambda base: base) -> Config:
    """The configuration of a run's name or a YAML file, overridden by the environment. ``adapt`` changes the
    defaults that the file overrides.

    Raises ConfigError for an unknown name or key, or an invalid value.
    """
    base, changes, position = _named(name_or_yaml)
    values: dict[str, Any] = msgspec.to_builtins(adapt(base))
    values = _lay(values, changes, Config, position)
    values = _lay(values, _environment(), Config, _variable)
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        # Each value has its type by now: this is a check of the dataclass itself, which names the key.
        raise ConfigError(f"{name_or_yaml}, with the environment: {error}") from None


def _named(name_or_yaml: str) -> tuple[Config, Mapping[str, Any], Callable[[KeyPath], str]]:
    """The base run, the file's changes, and a function that gives the file position of a key."""
    if name_or_yaml in RUNS:
        return RUNS[name_or_yaml](), {}, str
    file = Path(name_or_yaml)
    if not file.is_file():
        raise ConfigError(
            f"the configuration is {name_or_yaml!r}, expected one of {', '.join(sorted(RUNS))} "
            "or an existing YAML file"
        )
    try:
        marked = YamlWithLines(file.read_text(), file)
    except YamlError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(marked.value, dict | None):
        raise ConfigError(f"{file}:1: expected a mapping, found {marked.value!r}")
    changes = {"name": file.stem, **(marked.value or {})}
    extends = changes.pop("extends", "laptop")
    if extends not in list(RUNS):  # a list, since YAML values may be unhashable
        runs = ", ".join(sorted(RUNS))
        line = marked.line("extends")
        raise ConfigError(f"{file}:{line}: extends is {extends!r}, expected {runs}")
    return RUNS[extends](), changes, lambda path: f"{file}:{marked.line(*path)}"


def _environment() -> dict[str, Any]:
    """The nested values of ``RECSYS__...`` variables: JSON objects or strings."""
    from pydantic import create_model
    from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

    sections = {field.name: (field.type, None) for field in fields(Config)}
    for variable in os.environ:  # pydantic-settings ignores unknown sections
        section = variable.upper().removeprefix(PREFIX).partition("__")[0].lower()
        if variable.upper().startswith(PREFIX) and section not in sections:
            raise _unknown(f"environment variable {variable}", (section,), sections)
    shape: Any = create_model("Environment", __base__=BaseSettings, **sections)  # type: ignore[call-overload]
    try:
        return EnvSettingsSource(shape, env_prefix=PREFIX, env_nested_delimiter="__")()
    except SettingsError as error:
        raise ConfigError(f"environment, {PREFIX}...: {error}: {error.__cause__}") from error


def variable_of(key: str) -> str:
    """Environment variable that sets a key such as ``log.url``."""
    return _joined(key.split("."))


def _variable(path: KeyPath) -> str:
    return "environment variable " + _joined(path)


def _joined(path: Sequence[str]) -> str:
    return PREFIX + "__".join(path).upper()


def _lay(
    values: dict[str, Any],
    changes: Mapping[str, Any],
    kind: Any,
    position: Callable[[KeyPath], str],
    above: KeyPath = (),
) -> dict[str, Any]:
    """``values`` overridden by ``changes``, each checked against ``kind``: a dataclass or dict type."""
    laid = dict(values)
    types = get_type_hints(kind) if is_dataclass(kind) else {}
    for key, value in changes.items():
        path = (*above, str(key))
        if types and key not in types:
            raise _unknown(position(path), path, types)
        inner = types[key] if types else get_args(kind)[1]
        if is_dataclass(inner) or get_origin(inner) is dict:
            changed = _decoded(value) if isinstance(value, str) else value
            if not isinstance(changed, dict):
                about = f"{position(path)}: {'.'.join(path)} is {value!r}"
                raise ConfigError(f"{about}, expected a mapping")
            laid[key] = _lay(laid.get(key, {}), changed, inner, position, path)
        else:
            laid[key] = _converted(value, inner, position(path), path)
    return laid


def _converted(value: Any, kind: Any, where: str, path: KeyPath) -> Any:
    """Converts the value to ``kind``; a string from the environment may be a number, a boolean or JSON, and
    YAML makes dates of some texts."""
    if isinstance(value, date):
        value = value.isoformat()
    if isinstance(value, str) and get_origin(kind) is tuple:
        value = _decoded(value)
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {'.'.join(path)} is {value!r}: {error}") from None


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text  # the caller reports the wrong type


def _unknown(where: str, path: KeyPath, keys: Mapping[str, Any]) -> ConfigError:
    key = ".".join(path)
    if key in REMOVED:
        return ConfigError(f"{where}: {key} is gone: {REMOVED[key]}. Remove the key")
    return ConfigError(f"{where}: there is no {key}; there are {', '.join(sorted(keys))}")
