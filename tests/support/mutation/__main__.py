"""Changes the core line by line and counts how many changes the tests notice.

``python -m tests.support.mutation [FOLDER or FILE ...] [--sample N] [--seed N] [--minutes N] [--jobs N]``
takes the core by default: the pure folders of pyproject.toml and those of ``selection.BESIDE_PURE``. The same
seed gives the same sample. Each mutant is tested in a copy of the working tree, in ``build/mutants``, by the
nearest tests that import its module. A test that fails without the mutant too is left out. The result,
with each survivor, is ``build/mutants.json``. ``equivalents.toml`` lists mutants that no test can notice,
with reasons.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, islice
from pathlib import Path

from tests.support.mutation.operators import Mutant, mutants
from tests.support.mutation.selection import BESIDE_PURE, ImportGraph, is_selected

ROOT = Path(__file__).parents[3]
FOLDERS = (
    "recsys", "parameter_server", "experiments", "training", "serving", "replay", "runtime", "benchmarks",
    "plugins", "examples", "tests",
)  # fmt: skip
NEAREST = 4  # test files that judge the mutants of a module
TESTS_S = 10.0  # seconds of all these tests, but for the first
RUN_S = 300.0  # a run that takes longer is endless, if one without a mutant is not
CAUGHT, SURVIVED, TIMED_OUT, EQUIVALENT = "caught", "survived", "timed out", "equivalent"


@dataclass(frozen=True)
class TestRun:
    """Exit code of pytest (-1: too slow), seconds, the first failed test, and the seconds of each file."""

    code: int
    seconds: float
    failed: str
    times: dict[str, float]

    @property
    def passed(self) -> bool:
        return self.code in (0, 5)


@dataclass(frozen=True)
class Verdict:
    path: str
    line: int
    operator: str
    fate: str
    by: str
    seconds: float
    was: str
    now: str


class Workplace:
    """A copy of the working tree with a process that runs tests in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out: list[str] = []  # tests that fail without a mutant
        self._copy()
        kernels = [path for path in self._modules() if "\n@kernel(" in path.read_text()]
        names = [".".join(path.relative_to(folder).with_suffix("").parts) for path in kernels]
        subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], cwd=folder, check=True)
        self._compiled = {path: path.read_bytes() for path, _ in self._kernels()}
        self.process = subprocess.Popen(
            [sys.executable, "tests/support/mutation/zygote.py"],
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def _copy(self) -> None:
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

    def _modules(self) -> list[Path]:
        return sorted(self.folder.glob("*/**/*.py"))

    def mutants(self, paths: Sequence[str], sample: int | None, seed: int) -> list[Mutant]:
        """Mutants of the core, at most ``sample`` of each folder; the first of each folder come first."""
        settings = tomllib.loads((self.folder / "pyproject.toml").read_text())
        pure = settings["tool"]["recsys"]["pure"]
        folders: dict[str, list[Mutant]] = defaultdict(list)
        for file in self._modules():
            path = file.relative_to(self.folder).as_posix()
            if not paths or any(_within(path, p) for p in paths):
                if is_selected(path, pure) or is_selected(path, BESIDE_PURE):
                    folders[Path(path).parent.as_posix()] += mutants(path, file.read_text())
        ranked: list[tuple[int, str, Mutant]] = []
        for folder, all_mutants in folders.items():
            drawn = sorted(all_mutants, key=lambda mutant: mutant.order(seed))
            parsed = islice((mutant for mutant in drawn if mutant.parses), sample)
            ranked += [(rank, folder, mutant) for rank, mutant in enumerate(parsed)]
        return [mutant for _, _, mutant in sorted(ranked, key=lambda one: one[:2])]

    def run(self, tests: Sequence[str], mutant: Mutant | None = None) -> TestRun:
        """Only runs without a mutant write bytecode: a mutant may have the size and time of the file that it
        stands for."""
        if not mutant:
            return self._ask(tests, writes_bytecode=True)
        path, compiled = self.folder / mutant.path, self._kernels()
        original, stamp = path.read_bytes(), path.stat()
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            stale.unlink()
        try:
            path.write_text(mutant.source)
            return self._ask(tests, writes_bytecode=False)
        finally:
            path.write_bytes(original)
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            for changed, _ in self._kernels() ^ compiled:
                changed.unlink(missing_ok=True)
                if changed in self._compiled:
                    changed.write_bytes(self._compiled[changed])

    def _ask(self, tests: Sequence[str], writes_bytecode: bool) -> TestRun:
        assert self.process.stdin and self.process.stdout
        wanted = {
            "tests": list(tests),
            "left_out": self.left_out,
            "timeout_s": RUN_S,
            "writes_bytecode": writes_bytecode,
        }
        print(json.dumps(wanted), file=self.process.stdin, flush=True)
        return TestRun(**json.loads(self.process.stdout.readline()))

    def _kernels(self) -> set[tuple[Path, int]]:
        """Files of compiled kernels, and when they were written."""
        return {
            (path, path.stat().st_mtime_ns)
            for folder in FOLDERS
            for path in (self.folder / folder).rglob("__pycache__/*.nb?")
        }

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Judge:
    """Runs the nearest tests of mutants, quick ones first, and leaves out those that fail by themselves."""

    def __init__(self, root: Path) -> None:
        self._graph = ImportGraph(root, FOLDERS)
        self._sound: dict[str, bool] = {}
        self._times: dict[str, float] = {}

    def tests_of(self, module: str) -> list[str]:
        """The nearest test file, then others, quick ones first."""
        near = [test for test in self._graph.tests_of(module) if self._sound.get(test, True)]
        near = near[:NEAREST]
        rest = sorted(near[1:], key=self._seconds_of)
        until = accumulate(map(self._seconds_of, rest))
        return near[:1] + [test for test, s in zip(rest, until, strict=True) if s <= TESTS_S]

    def _seconds_of(self, test: str) -> float:
        return self._times.get(test, 1.0)

    def judge(self, mutant: Mutant, place: Workplace) -> tuple[str, str, float]:
        """Fate of a mutant, the test that decided it, and the seconds that it took."""
        passed, seconds = set[str](), 0.0
        while tests := [test for test in self.tests_of(mutant.path) if test not in passed]:
            tests = tests if passed else tests[:1]  # most mutants need one file
            place.left_out = [test for test, sound in self._sound.items() if not sound]
            run = place.run(tests, mutant)
            seconds += run.seconds
            if run.passed:
                passed |= set(tests)
                self._times |= run.times
                continue
            suspects = [run.failed] if run.failed else tests
            if all([self._is_sound(test, place) for test in suspects]):
                return (TIMED_OUT if run.code < 0 else CAUGHT), run.failed, seconds
        return self._by_slow_tests(mutant, place, seconds)

    def _by_slow_tests(self, mutant: Mutant, place: Workplace, seconds: float) -> tuple[str, str, float]:
        """Fate by the slow tests of the nearest file."""
        for nearest in self.tests_of(mutant.path)[:1]:
            run = place.run([nearest, "-m", "slow and not services"], mutant)
            seconds += run.seconds
            if run.failed and self._is_sound(run.failed, place):
                return CAUGHT, run.failed, seconds
        return SURVIVED, "", seconds

    def _is_sound(self, test: str, place: Workplace) -> bool:
        """Whether a test, or a file, passes without a mutant."""
        if test not in self._sound:
            self._sound[test] = place.run([test, "-m", "not services"]).passed
            if not self._sound[test]:
                print(f"{test} fails without a mutant: left out", file=sys.stderr, flush=True)
        return self._sound[test]


def equivalents() -> set[tuple[str, str, str]]:
    listed = tomllib.loads((Path(__file__).parent / "equivalents.toml").read_text())
    return {(one["path"], one["was"], one["now"]) for one in listed.get("mutant", [])}


def _within(path: str, wanted: str) -> bool:
    return path == wanted or path.startswith(wanted.rstrip("/") + "/")


def run(wanted: Sequence[Mutant], places: Sequence[Workplace], until: float, file: Path) -> list[Verdict]:
    """Verdicts on mutants until a time; those that exist are written after each."""
    judge, equivalent, lock = Judge(places[0].folder), equivalents(), threading.Lock()
    waiting, verdicts = iter(wanted), list[Verdict]()

    def work(place: Workplace) -> None:
        while time.monotonic() < until:
            with lock:
                mutant = next(waiting, None)
            if mutant is None:
                return
            fate, by, seconds = EQUIVALENT, "", 0.0
            if (mutant.path, mutant.was, mutant.now) not in equivalent:
                fate, by, seconds = judge.judge(mutant, place)
            verdict = Verdict(
                mutant.path, mutant.line, mutant.operator, fate, by, round(seconds, 2), mutant.was, mutant.now
            )
            with lock:
                verdicts.append(verdict)
                file.write_text(json.dumps([asdict(one) for one in verdicts], indent=1))
            if fate == SURVIVED:
                print(described(verdict), flush=True)

    threads = [threading.Thread(target=work, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts


def described(verdict: Verdict) -> str:
    return f"{verdict.path}:{verdict.line}\n  - {verdict.was}\n  + {verdict.now}"


def score(verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """Mutants that were caught (an endless loop is), and those that can be."""
    fates = Counter(verdict.fate for verdict in verdicts)
    return fates[CAUGHT] + fates[TIMED_OUT], len(verdicts) - fates[EQUIVALENT]


def table(verdicts: Sequence[Verdict]) -> str:
    """Score of each folder and of each of the modules in it."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[Path(verdict.path).parent.as_posix()].append(verdict)
        groups[verdict.path].append(verdict)
    lines = [f"{'caught':>6s} {'of':>5s}  {'score':>6s}  module"]
    for name in sorted(groups):
        caught, total = score(groups[name])
        indent = "  " if name.endswith(".py") else ""
        lines.append(f"{caught:6d} {total:5d}  {caught / max(1, total):6.1%}  {indent}{name}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutation", description=__doc__)
    parser.add_argument("paths", nargs="*", help="folders or files; default: all of the core")
    parser.add_argument("--sample", type=int, help="mutants of each folder, chosen by hash")
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="judge no more after")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--least", type=float, default=0.0, help="share below which it fails")
    options = parser.parse_args()
    file, began = ROOT / "build/mutants.json", time.monotonic()
    file.parent.mkdir(exist_ok=True)
    places = [Workplace(ROOT / "build/mutants" / str(number)) for number in range(options.jobs)]
    try:
        wanted = places[0].mutants(options.paths, options.sample, options.seed)
        verdicts = run(wanted, places, began + 60 * options.minutes, file)
    finally:
        for place in places:
            place.close()
    if not wanted:
        print(f"no module of the core below {options.paths}: see pyproject.toml", file=sys.stderr)
        return 2
    caught, total = score(verdicts)
    minutes = (time.monotonic() - began) / 60
    print(table(verdicts))
    print(
        f"{caught} of {total} caught ({caught / max(1, total):.1%}), seed {options.seed}, "
        f"{len(wanted) - len(verdicts)} not judged, {minutes:.0f} min; {file}"
    )
    return int(caught < options.least * total)


if __name__ == "__main__":
    sys.exit(main())
