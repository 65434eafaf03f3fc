"""Changes the core line by line and counts how many changes the tests notice.

``python -m tests.support.mutation [FOLDER or FILE ...] [--sample N] [--jobs N]`` takes the pure folders of
pyproject.toml by default. Mutants and their sample are the same in each run. Each is tested in a copy of the
working tree, in ``build/mutants``, by the tests that import its module. The result, with each survivor, is
``build/mutants.json``. ``equivalents.toml`` lists mutants that no test can notice, with reasons.
"""

import argparse
import json
import queue
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tests.support.mutation.operators import Mutant, mutants
from tests.support.mutation.selection import ImportGraph, is_selected

ROOT = Path(__file__).parents[3]
FOLDERS = (
    "recsys", "parameter_server", "experiments", "training", "serving", "replay", "runtime", "benchmarks",
    "tests",
)  # fmt: skip
NEAREST = 6  # test files that judge the mutants of a module
BASELINE_S = 200.0  # an undisturbed run that takes longer fails
CAUGHT, SURVIVED, TIMED_OUT, EQUIVALENT = "caught", "survived", "timed out", "equivalent"


@dataclass
class Workplace:
    """A copy of the working tree with a process that runs tests in it."""

    folder: Path
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        command = ["git", "ls-files", "-co", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / path for path in listed.stdout.splitlines()]
        for folder in FOLDERS:  # bytecode and compiled kernels
            paths += (ROOT / folder).rglob("__pycache__/*")
        for path in filter(Path.is_file, paths):
            target = self.folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        self.process = subprocess.Popen(
            [sys.executable, "tests/support/mutation/zygote.py"],
            cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def run(self, tests: Sequence[str], timeout_s: float, clean: bool) -> tuple[int, float]:
        """Exit code of pytest (-1: too slow) and seconds. Only ``clean`` runs write bytecode: a mutant may
        have the size and time of the file that it stands for."""
        assert self.process.stdin and self.process.stdout
        wanted = {"tests": list(tests), "timeout_s": timeout_s, "writes_bytecode": clean}
        print(json.dumps(wanted), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return int(answer["code"]), float(answer["seconds"])

    def judge(self, mutant: Mutant, tests: Sequence[str], timeout_s: float) -> tuple[str, float]:
        path = self.folder / mutant.path
        original = path.read_text()
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            stale.unlink()
        try:
            path.write_text(mutant.source)
            code, seconds = self.run(tests, timeout_s, clean=False)
        finally:
            path.write_text(original)
        return {0: SURVIVED, 5: SURVIVED, -1: TIMED_OUT}.get(code, CAUGHT), seconds

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Baseline:
    """The nearest test files of a module that pass undisturbed."""

    def __init__(self) -> None:
        self._failing: dict[str, bool] = {}
        self._lock = threading.Lock()

    def tests_of(self, graph: ImportGraph, module: str, at: Workplace) -> tuple[list[str], float]:
        """Test files, and the seconds that they take together."""
        tests = graph.tests_of(module)[:NEAREST]
        code, seconds = at.run(tests, BASELINE_S, clean=True)
        if code:
            tests = [test for test in tests if not self._fails(test, at)]
            code, seconds = at.run(tests, BASELINE_S, clean=True) if tests else (5, 0.0)
        return tests, seconds

    def _fails(self, test: str, at: Workplace) -> bool:
        with self._lock:
            if test not in self._failing:
                code, _ = at.run([test], BASELINE_S, clean=True)
                self._failing[test] = code not in (0, 5)
                if self._failing[test]:
                    print(f"{test} fails without a mutant (code {code}): left out", file=sys.stderr)
        return self._failing[test]


def equivalents() -> set[tuple[str, str, str]]:
    listed = tomllib.loads((Path(__file__).parent / "equivalents.toml").read_text())
    return {(its["path"], its["was"], its["now"]) for its in listed.get("mutant", [])}


def chosen(paths: Sequence[str], sample: int | None) -> dict[str, list[Mutant]]:
    """Mutants by module. ``sample``: at most as many of each folder."""
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["recsys"]["pure"]
    folders: dict[str, list[Mutant]] = defaultdict(list)
    for file in sorted(ROOT.glob("*/**/*.py")):
        path = file.relative_to(ROOT).as_posix()
        if is_selected(path, globs) and (not paths or any(_within(path, p) for p in paths)):
            folders[Path(path).parent.as_posix()] += mutants(path, file.read_text())
    modules: dict[str, list[Mutant]] = defaultdict(list)
    for its in folders.values():
        drawn = sorted(its, key=lambda mutant: mutant.order)
        for mutant in islice((mutant for mutant in drawn if mutant.parses), sample):
            modules[mutant.path].append(mutant)
    return modules


def _within(path: str, wanted: str) -> bool:
    return path == wanted or path.startswith(wanted.rstrip("/") + "/")


def run(modules: dict[str, list[Mutant]], jobs: int, write: Path) -> list[dict[str, Any]]:
    """Judges all mutants; the result is written after each module."""
    graph, baseline, known = ImportGraph(ROOT, FOLDERS), Baseline(), equivalents()
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for module in modules:
        waiting.put(module)
    results: list[dict[str, Any]] = []

    def work(number: int) -> None:
        place = Workplace(ROOT / "build/mutants" / str(number))
        try:
            while True:
                module = waiting.get_nowait()
                tests, seconds = baseline.tests_of(graph, module, place)
                for mutant in modules[module]:
                    fate, took = (EQUIVALENT, 0.0)
                    if (mutant.path, mutant.was, mutant.now) not in known:
                        fate, took = place.judge(mutant, tests, 20 + 5 * seconds)
                    results.append(described(mutant, fate, took))
                print(score_line(module, results, len(tests), seconds), flush=True)
                write.write_text(json.dumps(results, indent=1))
        except queue.Empty:
            pass
        finally:
            place.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def described(mutant: Mutant, fate: str, seconds: float) -> dict[str, Any]:
    return {
        "path": mutant.path, "line": mutant.line, "operator": mutant.operator, "fate": fate,
        "seconds": round(seconds, 2), "was": mutant.was, "now": mutant.now,
    }  # fmt: skip


def score(results: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Mutants that were caught (an endless loop is), and those that can be."""
    fates = Counter(result["fate"] for result in results)
    return fates[CAUGHT] + fates[TIMED_OUT], len(results) - fates[EQUIVALENT]


def score_line(module: str, results: Sequence[dict[str, Any]], tests: int, seconds: float) -> str:
    its = [result for result in results if result["path"] == module]
    caught, total = score(its)
    survivors = [result for result in its if result["fate"] == SURVIVED]
    lines = [f"{caught:4d} of {total:4d}  {module}  ({tests} test files, {seconds:.0f} s)"]
    for one in survivors:
        lines += [
            f"        {one['path']}:{one['line']}",
            f"          - {one['was']}",
            f"          + {one['now']}",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutation", description=__doc__)
    parser.add_argument("paths", nargs="*", help="folders or files; default: all of the core")
    parser.add_argument("--sample", type=int, help="mutants of each folder, chosen by hash")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--least", type=float, default=0.0, help="share below which it fails")
    options = parser.parse_args()
    write, began = ROOT / "build/mutants.json", time.monotonic()
    write.parent.mkdir(exist_ok=True)
    modules = chosen(options.paths, options.sample)
    if not modules:
        print(
            f"no module of the core below {options.paths}; it is listed in pyproject.toml",
            file=sys.stderr,
        )
        return 2
    results = run(modules, options.jobs, write)
    caught, total = score(results)
    minutes = (time.monotonic() - began) / 60
    print(f"{caught} of {total} caught ({caught / max(1, total):.1%}), {minutes:.0f} min; {write}")
    return int(caught < options.least * total)


if __name__ == "__main__":
    sys.exit(main())
