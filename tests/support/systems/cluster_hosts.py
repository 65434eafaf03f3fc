"""Hosts in network namespaces on one bridge, which run the launcher's commands as shipped.

The bridge lies in a namespace too: this machine's own network stays as it is.

Each host has its own network, processes, mounts, temporary folder and name; the repository lies at
``/srv/recsys`` and the shared folder at ``/mnt/recsys``, as in ``ray_cluster.yaml``, whose addresses it has.
Needs root and the tools ``ip``, ``unshare`` and ``nsenter``.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.paths import ROOT

NETWORK: Final = "recsys-net"  # the namespace of the bridge, and of the test meanwhile
BRIDGE: Final = "recsys-br"
TESTER: Final = "192.0.2.1"
SERVICES: Final = "192.0.2.20"  # Kafka and Redis
NAMES: Final = ("kafka.internal", "redis.internal")
_TOOLS: Final = ("ip", "unshare", "nsenter", "mount")
_INIT: Final = """
set -e
mount --make-rprivate /
mount --bind {hosts} /etc/hosts
mount -t tmpfs none /srv && mkdir /srv/recsys && mount --bind {code} /srv/recsys
mount -t tmpfs none /mnt && mkdir /mnt/recsys && mount --bind {shared} /mnt/recsys
mount --bind {tmp} /tmp
hostname {name}
echo ready
while :; do sleep 3600 & wait; done
"""


def missing() -> str:
    """The reason why hosts can't be made here; empty where they can."""
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"no {', '.join(absent)}"
    if os.geteuid():
        return "network namespaces need root"
    made = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount", "true"], capture_output=True, text=True
    )
    return f"no network namespaces: {made.stderr.strip()}" if made.returncode else ""


def ip(words: str, check: bool = True) -> None:
    """Runs ``ip`` with these words."""
    subprocess.run(["ip", *words.split()], check=check, capture_output=not check)


def left_over() -> list[str]:
    """Namespaces of a killed test, whose processes have ended with it."""
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in listed.splitlines()]
    return [name for name in names if name.startswith("recsys-")]


def _end_with_parent() -> None:
    """Lets the kernel kill this process when the test that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def set_namespace(descriptor: int) -> None:
    """Moves this thread into a network namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """A bridge. Entering it moves this thread, and those that it starts, into the bridge's namespace; leaving
    it removes it and all hosts on it."""

    def __init__(self) -> None:
        self._hosts: list[Host] = []
        self._outside = -1

    def __enter__(self) -> "Network":
        for name in left_over():
            ip(f"netns del {name}")
        ip(f"netns add {NETWORK}")
        for words in (f"link add {BRIDGE} type bridge", f"addr add {TESTER}/24 dev {BRIDGE}",
                      f"link set {BRIDGE} up", "link set lo up"):  # fmt: skip
            ip(f"-n {NETWORK} {words}")
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{NETWORK}", os.O_RDONLY)
        set_namespace(inside)
        os.close(inside)
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.close()
        set_namespace(self._outside)
        os.close(self._outside)
        ip(f"netns del {NETWORK}", check=False)

    def host(self, address: str, folder: Path, shared: Path) -> "Host":
        """Adds a host; ``folder`` holds its temporary files and home."""
        host = Host(address, folder, shared)
        self._hosts.append(host)
        host.start()
        return host


class Host:
    """A machine of its own, as far as processes can tell."""

    def __init__(self, address: str, folder: Path, shared: Path) -> None:
        self.address, self.folder, self._shared = address, folder, shared
        self.name = f"recsys-{address.rpartition('.')[2]}"
        self._outer: subprocess.Popen[str] | None = None
        self._init = 0  # process id, in this machine's numbers

    def start(self) -> None:
        """Makes the network namespace and its link, then the first process."""
        ip(f"netns add {self.name}")
        ip(f"-n {NETWORK} link add {self.name} type veth peer name eth0 netns {self.name}")
        ip(f"-n {NETWORK} link set {self.name} master {BRIDGE} up")
        for words in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up",
                      "route add default dev eth0"):  # fmt: skip
            ip(f"-n {self.name} {words}")
        self.boot()

    def boot(self) -> None:
        """Starts the first process, after ``kill`` anew."""
        (self.folder / "tmp" / "home").mkdir(parents=True, exist_ok=True)
        hosts = self.folder / "hosts"
        lines = [f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n", f"{SERVICES} {' '.join(NAMES)}\n"]
        hosts.write_text("".join(lines))
        script = _INIT.format(
            tmp=self.folder / "tmp", hosts=hosts, code=ROOT, shared=self._shared, name=self.name
        )
        self._outer = subprocess.Popen(
            ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--mount", "--uts",
             "--ipc", "--mount-proc", "--kill-child", "bash", "-c", script],
            stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        assert self._outer.stdout is not None and self._outer.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        self._init = int(children.split()[0])

    def popen(self, command: str, environment: Mapping[str, str] = {}, **options: Any) -> Any:
        """Starts a shell command on the host."""
        assigned = [f"{name}={value}" for name, value in environment.items()]
        words = ["nsenter", "-t", str(self._init), "--all", "env", "-i", "HOME=/tmp/home",
                 "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin", *assigned, "bash", "-c", command]  # fmt: skip
        return subprocess.Popen(words, text=True, start_new_session=True, **options)

    def run(self, command: str, environment: Mapping[str, str] = {}, timeout_s: float = 300) -> str:
        """Runs a shell command on the host; returns its output. Fails with it where it fails."""
        output = self.folder / "output"
        with output.open("w") as file:  # not a pipe, which a daemon that the command starts would hold
            process = self.popen(command, environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            status = process.wait(timeout_s)
        text = output.read_text()
        if status:
            raise RuntimeError(f"{self.name}: exit status {status} of {command}\n{text[-4000:]}")
        return text

    def kill(self) -> None:
        """Kills all processes of the host at once."""
        if self._outer is not None:
            with contextlib.suppress(ProcessLookupError):
                # And with it all of its namespace. Process 0 would be this test's own group.
                os.kill(self._init or self._outer.pid, signal.SIGKILL)
            self._outer.wait(10)
            self._outer, self._init = None, 0

    def owns(self, pid: int) -> bool:
        """Whether a process runs on this host."""
        with contextlib.suppress(OSError):
            own, of = (os.readlink(f"/proc/{each}/ns/pid") for each in (self._init, pid))
            return own == of
        return False

    def cut(self) -> None:
        """Takes the host's link down: packets vanish, as with a pulled cable."""
        ip(f"-n {NETWORK} link set {self.name} down")

    def join(self) -> None:
        ip(f"-n {NETWORK} link set {self.name} up")

    @contextlib.contextmanager
    def delayed(self, delay_s: float, loss: float) -> Iterator[None]:
        """Delays the frames to and from the host, and loses a share of them, while the context lasts."""
        wire, near, far = f"{self.name}-wire", "slow0", "slow1"
        # In a namespace without addresses, so that nothing but the forwarder answers there.
        with contextlib.ExitStack() as undo:

            def change(words: str, back: str = "") -> None:
                ip(words)
                if back:
                    undo.callback(ip, back)

            change(f"netns add {wire}", f"netns del {wire}")
            change(f"-n {NETWORK} link add {far} type veth peer name {near} netns {wire}")
            change(
                f"-n {NETWORK} link set {self.name} nomaster",
                f"-n {NETWORK} link set {self.name} master {BRIDGE} up",
            )
            change(
                f"-n {NETWORK} link set {self.name} netns {wire}",
                f"-n {wire} link set {self.name} promisc off netns {NETWORK}",
            )
            change(f"-n {NETWORK} link set {far} master {BRIDGE} up")
            for device in (near, self.name):
                change(f"-n {wire} link set {device} up promisc on")
            forwarder = subprocess.Popen(
                ["ip", "netns", "exec", wire, sys.executable, "-m", "tests.support.systems.slow_link",
                 self.name, near, str(delay_s), str(loss), "0"],
                stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=_end_with_parent,
            )  # fmt: skip
            undo.callback(forwarder.wait, 10)
            undo.callback(forwarder.kill)
            assert forwarder.stdout is not None and forwarder.stdout.readline() == "ready\n"
            yield

    def close(self) -> None:
        """Ends and removes the host."""
        self.kill()
        time.sleep(0.1)
        ip(f"netns del {self.name}", check=False)


def launcher() -> Any:
    """The launcher file as shipped."""
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
