"""The command line as a whole: listed commands and shared options."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from runtime.cli.main import COMMANDS, app, load

_WITHOUT_BENCHMARKS = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] == "benchmarks" else find(name, path, target)

PathFinder.find_spec = find_others
from runtime.cli.main import app

sys.argv = ["recsys", "--help"]
app()
"""


def test_without_the_benchmarks_the_other_commands_are_listed() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_BENCHMARKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"up", "replay", "models"} <= listed
    assert not {"bench", "study"} & listed


_WITH_PLUG_INS = """
import importlib.metadata as metadata

entries = [metadata.EntryPoint("shop", "os.path:join", "recsys.commands"),
           metadata.EntryPoint("up", "os.path:join", "recsys.commands"),
           metadata.EntryPoint("gone", "examples.gone.module:run", "recsys.commands")]
offered = metadata.EntryPoints(entries)
metadata.entry_points = lambda group: offered.select(group=group)
from runtime.cli.main import COMMANDS, app

assert COMMANDS["up"][0] == "runtime.cli.up:up"
import sys
sys.argv = ["recsys", "--help"]
app()
"""


def test_commands_of_plug_ins_are_listed_and_take_no_name_of_ours() -> None:
    done = subprocess.run([sys.executable, "-c", _WITH_PLUG_INS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"up", "shop"} <= listed and not {"gone", "viewers"} & listed
    assert "Command of the plug-in os.path." in done.stdout
    assert COMMANDS["viewers"][0] == "examples.short_video.viewers_command:viewers"


_WITH_ADDED_COMMANDS = """
import importlib.metadata as metadata

power = "plugins.experiment_power.command:power"
added = {"experiment.shop": power, "experiment.stop": "os.path:join", "status.more": "os.path:join",
         "experiment.gone": "examples.gone.module:run"}
offered = metadata.EntryPoints(metadata.EntryPoint(*it, "recsys.commands") for it in added.items())
installed = metadata.entry_points
metadata.entry_points = lambda **by: (
    offered if by.get("group") == "recsys.commands" else installed(**by)
)
from runtime.cli.main import COMMANDS, load

commands = load(COMMANDS["experiment"][0], "experiment").commands
assert "shop" in commands and "gone" not in commands
assert commands["stop"].callback.__module__ == "runtime.cli.experiment"
assert load(COMMANDS["status"][0], "status").name == "status"
"""


def test_a_plug_in_adds_a_command_to_a_group_and_breaks_none() -> None:
    done = subprocess.run([sys.executable, "-c", _WITH_ADDED_COMMANDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left_out = [line.partition(" is left out: ") for line in done.stderr.splitlines()]
    assert [(name, reason) for name, _, reason in left_out] == [
        (
            "recsys: plug-in experiment.stop (os.path:join)",
            "experiment stop exists, or experiment is no group",
        ),
        ("recsys: plug-in experiment.gone (examples.gone.module:run)", "No module named 'examples.gone'"),
        ("recsys: plug-in status.more (os.path:join)", "status more exists, or status is no group"),
    ]


def test_the_version_is_that_of_the_package() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"recsys {version('recsys-swipe')}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_json_has_no_negative_form(name: str) -> None:
    pending = [load(COMMANDS[name][0], name)]
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        for parameter in command.params:
            assert "--no-json" not in parameter.secondary_opts, command.name


def test_parts_of_the_training_benchmark_are_processes_unless_told_otherwise() -> None:
    pytest.importorskip("benchmarks")
    from benchmarks.harness.commands import _command_line

    train = load(COMMANDS["bench"][0], "bench").commands["train"]
    (apart,) = [parameter for parameter in train.params if parameter.name == "apart"]
    assert (apart.opts, apart.secondary_opts, apart.default) == (["--apart"], ["--together"], True)
    assert _command_line("train", {"ids": 9, "apart": True}) == "recsys bench train --ids 9"
    assert _command_line("train", {"apart": False}) == "recsys bench train --together"
