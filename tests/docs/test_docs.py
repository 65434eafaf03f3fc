"""The pages say what is so: links, commands, options, configuration keys and paths exist."""

import importlib.util
import re
import shlex
from dataclasses import fields, is_dataclass

import pytest

from recsys.config.system_config import Config
from replay.datasets.dataset_yaml import LogSettings
from runtime.cli.main import COMMANDS, load
from runtime.supervision.part_table import NAMES
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(page for page in DOCS.rglob("*.md") if "generated" not in page.parts),
]
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
THERE = {
    name: where for name, (where, _) in COMMANDS.items() if importlib.util.find_spec(where.partition(":")[0])
}
ENDINGS = {"py", "md", "json", "yaml", "parquet", "lock", "toml", "key", "token", "log", "out", "db"}
ROOTS = {
    "recsys", "serving", "training", "parameter_server", "experiments", "replay", "runtime", "benchmarks",
    "plugins", "examples", "tests", "docs",
}  # fmt: skip


def pages(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())(test)


def code_of(text):
    """Code spans and the lines of code blocks, continued lines joined."""
    for found in CODE.findall(text):
        if found.startswith("```"):
            yield from found.strip("`").replace("\\\n", " ").splitlines()[1:]
        else:
            yield found.strip("`")


def words_of(line):
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def commands_in(text):
    """(words after ``recsys``) of every command line."""
    for line in code_of(text):
        words = words_of(line)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] in ("recsys", ".venv/bin/recsys"):
            yield words[1:]


def faults_of(words):
    """What is wrong with a command line's command and its options."""
    if not words or words[0].isupper():
        return []
    name, rest = words[0], words[1:]
    rest = rest[: rest.index("--")] if "--" in rest else rest  # another program's options follow
    if name not in THERE:
        return [f"no command {name!r}"]
    command = load(THERE[name], name)
    if hasattr(command, "commands"):
        if not rest:
            return []
        if rest[0] not in command.commands:
            return [f"no command {name} {rest[0]!r}"]
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    return [
        f"{name} has no {word!r}"
        for word in rest
        if word.startswith("--") and word.partition("=")[0] not in known | {"--help"}
    ]


def options_of_all():
    found = {"--help"}
    for name, where in THERE.items():
        commands = [load(where, name)]
        for command in commands:
            commands.extend(getattr(command, "commands", {}).values())
            found |= {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    return found


def keys_of(node, above=""):
    """All dotted configuration keys, sections included."""
    for field in fields(node):
        value = getattr(node, field.name)
        yield above + field.name
        if is_dataclass(value):
            yield from keys_of(value, f"{above}{field.name}.")
        elif isinstance(value, dict):
            yield from (f"{above}{field.name}.{key}" for key in value)


def broken_links(text, folder):
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    inside = [link for link in links if not re.match(r"[a-z]+:|#", link)]
    return [link for link in inside if not (folder / link.partition("#")[0]).exists()]


def unknown_keys(text):
    """Names like ``step.wrong`` or ``RECSYS__STEP__WRONG=`` that the configuration doesn't have."""
    known = set(keys_of(Config()))
    sections = {key for key in known if is_dataclass(getattr(Config(), key, None))}
    wrong = set()
    for span in code_of(text):
        for key in re.findall(r"(?<![\w./])([a-z_]+\.[a-z_]+[a-z_.]*)(?![\w(/])", span):
            if key.split(".")[0] in sections and key.split(".")[-1] not in ENDINGS:
                wrong |= {key.rstrip(".")} - known
        for name in re.findall(r"RECSYS__([A-Z_]+)(?==)", span):
            wrong |= {name.lower().replace("__", ".")} - known
    return wrong


def missing_paths(text):
    """Paths that begin with one of our folders and aren't there. ``tests/test_<module>.py`` is no path."""
    found = [
        path for span in code_of(text) for path in re.findall(r"(?<![\w./:-])([a-z_]++/[\w./-]*+)(?!<)", span)
    ]
    ours = [path.rstrip(".") for path in found if path.split("/")[0] in ROOTS]
    return [path for path in ours if not (ROOT / path).exists()]


@pages
def test_relative_links_lead_somewhere(page):
    assert broken_links(page.read_text(), page.parent) == []


@pages
def test_commands_and_their_options_exist(page):
    faults = {" ".join(words): told for words in commands_in(page.read_text()) if (told := faults_of(words))}
    assert not faults


@pages
def test_options_named_alone_exist(page):
    ours = options_of_all() | {"--no-deps", "--strict", "--no-build-isolation"}  # pip's and mypy's
    ours |= {
        "--address",
        "--port",
        "--working-dir",
        "--submission-id",
        "--metadata-json",
        "--temp-dir",
    }  # of ray job submit and ray start
    ours |= {"--sample", "--seed"}  # of make mutants
    named = {
        word.partition("=")[0]
        for span in code_of(page.read_text())
        for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)
    }
    assert named <= ours


@pages
def test_configuration_keys_exist(page):
    assert unknown_keys(page.read_text()) == set()


def test_every_configuration_key_is_described():
    text = (DOCS / "reference" / "configuration.md").read_text()
    leaves = [
        key
        for key in keys_of(Config())
        if not re.match(r"policy\.(weights|sources)\.|compat\.kinds\.", key)
        and not is_dataclass(getattr(Config(), key, None))
    ]
    assert [key for key in leaves if f"`{key}`" not in text] == []


def test_every_key_of_a_data_set_is_described():
    text = (DOCS / "how-to" / "data.md").read_text()
    assert [name for name in LogSettings.model_fields if f"| `{name}` |" not in text] == []


def test_every_part_is_described():
    text = (DOCS / "reference" / "parts.md").read_text()
    assert [name for name in NAMES if f"| {name} |" not in text] == []


def test_every_command_is_described():
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in THERE if f"recsys {name}" not in text] == []


@pages
def test_paths_named_in_code_exist(page):
    assert missing_paths(page.read_text()) == []


def test_every_page_and_notebook_is_in_the_navigation_once():
    """The sidebar is made of the lists of docs/index.md and, for decisions, docs/decisions/index.md."""
    listed = []
    for index in (DOCS / "index.md", DOCS / "decisions" / "index.md"):
        links = re.findall(r"^- \[[^\]]+\]\(([^)#]+)\)", index.read_text(), re.MULTILINE)
        listed += [(index.parent / link).resolve() for link in links]
    notebooks = [file for file in DOCS.rglob("*.ipynb") if ".ipynb_checkpoints" not in file.parts]
    assert sorted(listed) == sorted({*PAGES, *notebooks} - {DOCS / "index.md"})


def test_entry_pages_are_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8_000
    assert len((ROOT / "ARCHITECTURE.md").read_bytes()) <= 15_000


def test_a_wrong_page_is_found():
    """The checks can fail."""
    assert faults_of(["replay", "x", "--no-such-thing"]) == ["replay has no '--no-such-thing'"]
    assert faults_of(["nothing"]) == ["no command 'nothing'"]
    assert faults_of(["data", "nothing"]) == ["no command data 'nothing'"]
    assert list(commands_in("`RECSYS_DATA=x recsys up --detach`")) == [["up", "--detach"]]
    assert unknown_keys("`step.examples`, `step.wrong`, `RECSYS__STEP__WORSE=1`") == {
        "step.wrong",
        "step.worse",
    }
    assert missing_paths("`tests/docs/test_docs.py` `tests/nothing.py` `tests/test_<x>.py`") == [
        "tests/nothing.py"
    ]
    assert broken_links("[a](README.md#x) [b](nothing.md) [c](https://x.org)", ROOT) == ["nothing.md"]
