"""Tests of a module: those that import it, directly or through others, the nearest first."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

FARTHEST = 3  # imports between a test and a module whose mutants it may catch
LEFT_OUT = ("tests/live/*", "tests/docs/*", "tests/deploy/*", "tests/test_imports.py")
# Logic beside the pure folders. Adapters, which only tests with services run, are left out.
BESIDE_PURE = (
    "parameter_server/storage/*", "training/continual/*", "training/drift/*", "training/deletion/*",
    "training/archive/*", "recsys/log/*", "serving/retrieval/*", "serving/sessions/*", "serving/index/*",
    "serving/admission/*", "replay/*", "!replay/datasets/*", "!recsys/log/kafka_*",
    "!recsys/log/embedded_broker.py", "!serving/retrieval/ray_*", "!serving/sessions/session_store.py",
    "!training/continual/driver.py", "!training/continual/worker_process.py",
    "!training/continual/ray_run.py",
)  # fmt: skip


def is_selected(path: str, globs: Iterable[str]) -> bool:
    """The last glob that fits decides; one with ``!`` in front excludes."""
    selected = False
    for glob in globs:
        if fnmatch(path, glob.removeprefix("!")):
            selected = not glob.startswith("!")
    return selected


class ImportGraph:
    """Imports between the files of a tree, by path."""

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        self._root = root
        self.paths = {
            path.relative_to(root).as_posix()
            for folder in folders
            for path in sorted((root / folder).rglob("*.py"))
        }
        self.importers = self._importers()

    def _importers(self) -> dict[str, set[str]]:
        """Files that import a file."""
        out: dict[str, set[str]] = defaultdict(set)
        for path in self.paths:
            for name in _imported(ast.parse((self._root / path).read_bytes())):
                module = name.replace(".", "/")
                for file in (f"{module}.py", f"{module}/__init__.py"):
                    if file in self.paths:
                        out[file].add(path)
        return out

    def tests_of(self, module: str) -> list[str]:
        """Test files that may notice a change: of the mirrored folder, of its package, then by distance."""
        distance, at = {module: 0}, [module]
        for path in at:
            for importer in sorted(self.importers[path]):
                if importer not in distance and distance[path] < FARTHEST:
                    distance[importer] = distance[path] + 1
                    at.append(importer)
        tests = [
            path
            for path in distance
            if Path(path).name.startswith("test_") and not is_selected(path, LEFT_OUT)
        ]
        folder, stem = f"tests/{Path(module).parent.as_posix()}", Path(module).stem
        package = f"tests/{Path(module).parts[0]}/"

        def order(path: str) -> tuple[bool, bool, bool, bool, int, str]:
            same, near = Path(path).parent.as_posix() == folder, path.startswith(package)
            name = Path(path).stem if same else ""
            return (name != f"test_{stem}", stem not in name, not same, not near, distance[path], path)

        return sorted(tests, key=order)


def _imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names
